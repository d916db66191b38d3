// Threads: torch's OpenMP pool where OpenMP was found, else the calling thread alone. Results do
// not depend on which thread computes a piece: pieces have fixed sizes and are merged in their
// order.
#pragma once

#include "tasks.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastinfogan {

// Below this number of elements, starting the other threads costs more than they save.
constexpr Index kMinParallelElements = 32768;

inline int max_threads() {
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

inline int thread_index() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

constexpr Index pieces_of(Index size, Index piece) { return (size + piece - 1) / piece; }

enum class Order { ascending, descending };

// Calls function(i) for i from 0 to pieces - 1; each thread takes consecutive ones, in ascending or
// descending order. Of two passes over the same memory the first descends and the second ascends:
// so each begins with what the one before (a matrix product, too, ascends) left in the thread's
// cache. `elements` is the size of the whole. The function must not throw: an exception cannot
// leave a parallel region.
template <typename Function>
void for_pieces(Index pieces, Index elements, Function function, Order order = Order::ascending) {
#ifdef _OPENMP
  const bool parallel = pieces > 1 && elements >= kMinParallelElements;
#pragma omp parallel if (parallel)
  {
    const Index team = omp_get_num_threads(), self = omp_get_thread_num();
    const Index first = pieces * self / team, last = pieces * (self + 1) / team;
#else
  {
    (void)elements;
    const Index first = 0, last = pieces;
#endif
    for (Index i = first; i < last; ++i)
      function(order == Order::ascending ? i : first + last - 1 - i);
  }
}

}  // namespace fastinfogan
