// Products where the registers hold the sums of 8 rows and a panel: the weights are read once.
#pragma once

#include "linear_epilogue.h"
#include "linear_kinds.h"

#include <algorithm>

namespace linear_kernels {

constexpr int64_t TILE = 8, AT_A_TIME = TILE;

// While this panel is used, `A` cache lines a word of the next one are on their way.
template <class Kind, int R, int A>
inline void add_up(const Job &job, int64_t row, const uint32_t *panel, const char *next,
                   typename Kind::Sum (&sums)[R][VECTORS]) {
  for (auto &of_row : sums)
    for (auto &sum : of_row) sum = Kind::zero();
  const uint32_t *x = job.x + row * job.words;
  for (int64_t k = 0; k < job.words; ++k) {
    Words w[VECTORS];
    for (int v = 0; v < VECTORS; ++v) w[v] = load_words(panel + k * PANEL + LANES * v);
    for (int line = 0; line < A; ++line) _mm_prefetch(next + (k * A + line) * 64, _MM_HINT_T1);
    for (int r = 0; r < R; ++r) {
      const Words word = all_words(x[r * job.words + k]);
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = Kind::dot(sums[r][v], word, w[v]);
    }
  }
}

// `R` rows of one panel, or of a gate's and its partner's.
template <class Kind, class In, int R, int A>
void tile(const Job &job, const uint32_t *weight, int64_t row, int64_t index, const char *next) {
  typename Kind::Sum sums[R][VECTORS];
  Lanes gate[R][VECTORS];
  const int64_t size = job.words * PANEL;
  if (job.is_gated) {
    add_up<Kind, R, A>(job, row, weight, next, sums);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < VECTORS; ++v) gate[r][v] = gate_of(job, row + r, index, v, sums[r][v]);
    weight += size;
    next += size * 4;
  }
  add_up<Kind, R, A>(job, row, weight, next, sums);
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < VECTORS; ++v) finish<In>(job, row + r, index, v, sums[r][v], gate[r][v]);
}

template <class Kind, class In, int A>
void some_rows(const Job &job, const uint32_t *weight, int64_t row, int64_t count, int64_t index, const char *next) {
  switch (count) {
#define ROWS(n) case n: return tile<Kind, In, n, A>(job, weight, row, index, next);
    ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8)
#undef ROWS
  }
}

// `weight` is the panel of this index, or the gate's and its partner's.
template <class Kind, class In>
void rows(const Job &job, const uint32_t *weight, int64_t from, int64_t to, int64_t index, bool looks_ahead) {
  const int64_t tiles = (to - from + TILE - 1) / TILE, step = (to - from + tiles - 1) / tiles;
  const int64_t panels = job.is_gated ? 2 : 1, lines = job.words * VECTORS;
  const char *next = reinterpret_cast<const char *>(weight + panels * job.words * PANEL);
  for (int64_t row = from, t = 0; row < to; row += step, ++t) {
    const int64_t count = std::min(step, to - row);
    // Few rows are done as fast as memory comes, and the processor itself sees what is next: asking for it costs a fifth.
    // Else the first tile pulls this panel in where it is not here yet; those after it each a third of the next one.
    if (!looks_ahead || to - from <= FEW)
      some_rows<Kind, In, 0>(job, weight, row, count, index, next);
    else if (tiles <= 2 && t == tiles - 1)
      some_rows<Kind, In, 3>(job, weight, row, count, index, next);
    else if (t == 0 || t > 3)
      some_rows<Kind, In, 0>(job, weight, row, count, index, next);
    else
      some_rows<Kind, In, 1>(job, weight, row, count, index, next + (t - 1) * lines / 3 * 64);
  }
}

// What one thread multiplies with.
template <class Kind, class In> struct RowsInLanes {
  void operator()(const Job &job, const uint32_t *weight, int64_t from, int64_t to, int64_t index, bool looks_ahead) {
    rows<Kind, In>(job, weight, from, to, index, looks_ahead);
  }
};

} // namespace linear_kernels
