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

// Calls function(i) for i from 0 to pieces - 1. `elements` is the whole work. The function must not
// throw: it runs in threads that have no one to catch.
template <typename Function>
void for_pieces(Index pieces, Index elements, Function function) {
#ifdef _OPENMP
  const bool worth = pieces > 1 && elements >= kWorthThreads;
#pragma omp parallel for schedule(static) if (worth)
#else
  (void)elements;
#endif
  for (Index i = 0; i < pieces; ++i) function(i);
}

}  // namespace fastinfogan
