// Threads: torch's OpenMP pool where OpenMP was found, else this thread alone. Who computes what
// never matters to a result: pieces are cut by fixed sizes, and merged in their order.
#pragma once

#include "tasks.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastinfogan {

// How many elements make waking the other threads worth its time.
constexpr Index kWorthThreads = 32768;

inline int threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

inline int thread() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

constexpr Index pieces_of(Index size, Index piece) { return (size + piece - 1) / piece; }

enum class Order { up, down };

// Calls function(i) for i from 0 to pieces - 1; every thread takes a run of them, upwards or
// downwards. Of two passes over the same memory the first goes down and the second up: so each
// begins with what the one before (a product, too, writes upwards) has left in the thread's cache.
// `elements` is the whole work. The function must not throw: it runs in threads that have no one to
// catch.
template <typename Function>
void for_pieces(Index pieces, Index elements, Function function, Order order = Order::up) {
#ifdef _OPENMP
  const bool worth = pieces > 1 && elements >= kWorthThreads;
#pragma omp parallel if (worth)
  {
    const Index team = omp_get_num_threads(), self = omp_get_thread_num();
    const Index first = pieces * self / team, last = pieces * (self + 1) / team;
#else
  {
    (void)elements;
    const Index first = 0, last = pieces;
#endif
    for (Index i = first; i < last; ++i) function(order == Order::up ? i : first + last - 1 - i);
  }
}

}  // namespace fastinfogan
