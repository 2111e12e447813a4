// Loops over independent items (batch x heads x blocks) on the threads of the current OpenMP team
// size. Methods use these and start no threads of their own.
#pragma once

#include <omp.h>

#include <exception>
#include <mutex>

#include "harness/core/types.h"

namespace subquad {

// Threads that a parallel loop will use at most. Set once per process by the worker.
inline int thread_count() { return omp_get_max_threads(); }

// Eigen must not start threads inside a product: it would compete with these loops, allocate, and
// round differently for every thread count. Holds for every program that includes this header.
inline const bool kEigenIsSerial = (Eigen::setNbThreads(1), true);

// Calls body(item, thread) for item = 0 .. count-1, dynamically scheduled; thread is in
// [0, thread_count()). The result must not depend on which thread takes an item.
// An exception of a body is rethrown after the loop (the first one; the other items still run).
template <class Body>
void parallel_for(Index count, Body&& body) {
  if (count <= 1 || thread_count() == 1 || omp_in_parallel()) {
    for (Index i = 0; i < count; ++i) body(i, 0);
    return;
  }
  std::exception_ptr error;
  std::mutex mutex;
#pragma omp parallel for schedule(dynamic, 1)
  for (Index i = 0; i < count; ++i) {
    try {
      body(i, omp_get_thread_num());
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace subquad
