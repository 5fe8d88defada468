// Pieces of work for the threads of a parallel region: each begins with a run of its own, so that what lies side by side
// is done by one core, and who is done early helps the others.
#pragma once

#include "python.h"

#include <atomic>
#include <memory>

class Shares {
public:
  // Outside of the parallel region.
  void reset(int64_t count, int threads) {
    if (threads > capacity) {
      cursors = std::make_unique<Cursor[]>(threads);
      capacity = threads;
    }
    this->threads = threads;
    for (int t = 0; t < threads; ++t) {
      cursors[t].next.store(count * t / threads, std::memory_order_relaxed);
      cursors[t].end = count * (t + 1) / threads;
    }
  }

  // Inside of it, by every thread: calls `work(piece)` until there is no piece left.
  template <class Work> void each(Work work) {
    const int own = omp_get_thread_num();
    for (int i = 0; i < threads; ++i) {
      Cursor &cursor = cursors[(own + i) % threads];
      for (int64_t piece; (piece = cursor.next.fetch_add(1, std::memory_order_relaxed)) < cursor.end;) work(piece);
    }
  }

private:
  struct alignas(64) Cursor {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::unique_ptr<Cursor[]> cursors;
  int capacity = 0, threads = 0;
};
