// Products where the registers hold few sums: a chunk of a panel, which the first cache holds, is multiplied with all
// rows, a few rows and columns at a time, and the sums wait in memory between chunks.
#pragma once

#include "linear_epilogue.h"
#include "linear_kinds.h"

#include <algorithm>
#include <type_traits>

namespace linear_kernels {

// Sums that the registers hold beside what is added to them: 12 of 16.
constexpr int SUMS = 6;

// Rows that share a chunk, and words along K of a chunk, which widened to floats has the size of the others.
constexpr int64_t BLOCK_ROWS = 24, MANY = 13, AT_A_TIME = BLOCK_ROWS;
template <class Kind> constexpr int64_t CHUNK = std::is_same_v<Kind, BFloat16> ? 32 : 64;

// Sums of all rows of a block, as floats or words.
using BlockSums = uint32_t[BLOCK_ROWS][PANEL];

template <class Sum> inline Sum sum_in(const uint32_t *place) {
  if constexpr (std::is_same_v<Sum, Lanes>)
    return bits_as_floats(load_words(place));
  else
    return load_words(place);
}
inline void put_sum(uint32_t *place, Lanes sum) { store(reinterpret_cast<float *>(place), sum); }
inline void put_sum(uint32_t *place, Words sum) { store_words(place, sum); }

// Rows that go over a chunk first. They read its lines one after another, so that the processor sees by itself what comes
// next, and the rows after them ask for the next chunk: memory is at its fastest with both. It counts for floats, which
// are multiplied as soon as they are here.
template <class Kind> constexpr int64_t LEADERS = std::is_same_v<Kind, Float32> ? 2 : 0;

// Adds `R` rows times a chunk to their sums. Meanwhile the next chunk comes, where it `looks_ahead`.
template <class Kind, int R, bool LOOKS_AHEAD>
void add_chunk(const uint32_t *x, int64_t stride, const uint32_t *weight, int64_t words, uint32_t (*to)[PANEL]) {
  using Step = linear_kernels::Step<Kind>;
  constexpr int V = R * VECTORS <= SUMS ? VECTORS : 1;
  const uint32_t *next = weight + words * PANEL;
  for (int64_t column = 0; column < PANEL; column += LANES * V) {
    typename Kind::Sum sums[R][V];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) sums[r][v] = sum_in<typename Kind::Sum>(to[r] + column + LANES * v);
    for (int64_t k = 0; k < words; ++k) {
      const uint32_t *line = weight + k * PANEL + column;
      for (int v = 0; v < V; ++v) {
        if (LOOKS_AHEAD) {
          const uint32_t *asked = LEADERS<Kind> ? next : line + CHUNK<Kind> * PANEL + LANES * v;
          _mm_prefetch(reinterpret_cast<const char *>(asked), _MM_HINT_T1);
          next += LANES;
        }
        const typename Step::Weights w = Step::weights(load_words(line + LANES * v));
        for (int r = 0; r < R; ++r) sums[r][v] = Step::add(sums[r][v], x + r * stride + Step::WORDS * k, w);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v) put_sum(to[r] + column + LANES * v, sums[r][v]);
  }
}

template <class Kind, bool LOOKS_AHEAD>
void add_some_rows(int64_t count, const uint32_t *x, int64_t stride, const uint32_t *weight, int64_t words,
                   uint32_t (*to)[PANEL]) {
  switch (count) {
#define SOME(n) \
  case n: return add_chunk<Kind, std::min<int>(n, Step<Kind>::ROWS), LOOKS_AHEAD>(x, stride, weight, words, to);
    SOME(1) SOME(2) SOME(3) SOME(4) SOME(5) SOME(6)
#undef SOME
  }
}

// Of at most two rows the processor itself sees what is next: asking for it costs a fifth.
template <class Kind>
void add_rows(int64_t count, const uint32_t *x, int64_t stride, const uint32_t *weight, int64_t words,
              bool looks_ahead, uint32_t (*to)[PANEL]) {
  const bool asks = looks_ahead && count > 2;
  const int64_t leaders = asks ? LEADERS<Kind> : 0, others = count - leaders;
  const int64_t tiles = (others + Step<Kind>::ROWS - 1) / Step<Kind>::ROWS, step = (others + tiles - 1) / tiles;
  if (leaders) add_some_rows<Kind, false>(leaders, x, stride, weight, words, to);
  for (int64_t r = leaders; r < count; r += step) {
    const int64_t some = std::min(step, count - r);
    if (asks && r == leaders)
      add_some_rows<Kind, true>(some, x + r * stride, stride, weight, words, to + r);
    else
      add_some_rows<Kind, false>(some, x + r * stride, stride, weight, words, to + r);
  }
}

// A chunk of bfloat16 and the rows' part of x as floats, which are then summed in the same order: for MANY rows
// this is quicker than to take pairs apart for each.
class Widened {
public:
  void add(int64_t count, const uint32_t *x, int64_t stride, const uint32_t *weight, int64_t words, bool looks_ahead,
           uint32_t (*to)[PANEL]) {
    for (int64_t r = 0; r < count; ++r) {
      const bfloat16 *row = reinterpret_cast<const bfloat16 *>(x + r * stride);
      for (int64_t i = 0; i < 2 * words; i += LANES) store(rows[r] + i, load(row + i, first(2 * words - i)));
    }
    for (int64_t k = 0; k < words; ++k)
      for (int64_t v = 0; v < PANEL; v += LANES) {
        const uint32_t *line = weight + k * PANEL + v;
        if (looks_ahead) _mm_prefetch(reinterpret_cast<const char *>(line + CHUNK<BFloat16> * PANEL), _MM_HINT_T1);
        const Words pairs = load_words(line);
        store(panel[2 * k] + v, first_of_pairs(pairs));
        store(panel[2 * k + 1] + v, second_of_pairs(pairs));
      }
    const auto words_of = [](const float *values) { return reinterpret_cast<const uint32_t *>(values); };
    add_rows<Float32>(count, words_of(rows[0]), MOST, words_of(panel[0]), 2 * words, false, to);
  }

private:
  static constexpr int64_t MOST = 2 * CHUNK<BFloat16>;
  alignas(64) float rows[BLOCK_ROWS][MOST], panel[MOST][PANEL];
};

// What one thread multiplies with.
template <class Kind, class In> class RowsInLanes {
public:
  // Rows `from` to `to - 1` of one panel, or of a gate's and its partner's.
  void operator()(const Job &job, const uint32_t *weight, int64_t from, int64_t to, int64_t index, bool looks_ahead) {
    for (int64_t row = from; row < to; row += BLOCK_ROWS) {
      const int64_t count = std::min(BLOCK_ROWS, to - row);
      if (job.is_gated) add_up(job, row, count, weight, looks_ahead, gates);
      add_up(job, row, count, weight + (job.is_gated ? job.words * PANEL : 0), looks_ahead, sums);
      for (int64_t r = 0; r < count; ++r)
        for (int64_t v = 0; v < VECTORS; ++v) {
          const Lanes gate = job.is_gated ? gate_of(job, row + r, index, v, sum_at(gates, r, v)) : all(0.0f);
          finish<In>(job, row + r, index, v, sum_at(sums, r, v), gate);
        }
    }
  }

private:
  static typename Kind::Sum sum_at(const BlockSums &sums, int64_t r, int64_t v) {
    return sum_in<typename Kind::Sum>(sums[r] + LANES * v);
  }

  void add_up(const Job &job, int64_t row, int64_t count, const uint32_t *panel, bool looks_ahead, BlockSums &to) {
    constexpr int64_t WORDS = Step<Kind>::WORDS;
    const uint32_t *x = job.x + row * WORDS * job.words;
    std::fill_n(to[0], count * PANEL, 0u);
    for (int64_t k = 0; k < job.words; k += CHUNK<Kind>) {
      const int64_t words = std::min(CHUNK<Kind>, job.words - k);
      const uint32_t *part = x + WORDS * k, *chunk = panel + k * PANEL;
      if constexpr (std::is_same_v<Kind, BFloat16>)
        if (count >= MANY) {
          widened.add(count, part, job.words, chunk, words, looks_ahead, to);
          continue;
        }
      add_rows<Kind>(count, part, WORDS * job.words, chunk, words, looks_ahead, to);
    }
  }

  alignas(64) BlockSums gates, sums;
  Widened widened;
};

} // namespace linear_kernels
