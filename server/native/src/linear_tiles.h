// Products on tiles, for bfloat16 and int8: three tiles of a panel times one or two of rows of x, 16 words along K at a
// time. A panel, one word of each of its 48 rows for a K step, is three such tiles side by side.
//
// Every element is summed in one order, whatever the number of rows beside it: a row's result does not depend on its
// batch. Both factors are padded with zeros at the end of K, not with what lies behind them in memory.
#pragma once

#include "linear_epilogue.h"
#include "tile.h"

#ifdef HAS_TILES
#include <algorithm>
#include <cstring>
#include <type_traits>

namespace linear_kernels {

// Rows of x at a time, and words along K in one product of tiles.
constexpr int64_t BLOCK = 2 * tile::ROWS, STEP = tile::WORDS;
constexpr int64_t PANEL_BYTES = 4 * PANEL;

// Tiles 0 to 2 are sums of the first rows, 3 to 5 those of the second ones.
constexpr int X_TILE = 6, WEIGHT_TILE = 7;

struct Int8; // of linear.h, as the other kind of numbers

using Sums = uint32_t[BLOCK][PANEL];

template <class Kind, int C> inline void add_tiles() {
  if constexpr (std::is_same_v<Kind, Int8>)
    tile::add_int8<C, X_TILE, WEIGHT_TILE>();
  else
    tile::add_bfloat16<C, X_TILE, WEIGHT_TILE>();
}

// The weights that few rows need soon. What lies behind the panel is the next one; asking for more never fails.
inline void fetch_ahead(const char *weight) {
  constexpr int64_t STEPS_AHEAD = 4, BYTES = STEP * PANEL_BYTES;
  for (int64_t line = 0; line < BYTES; line += 64) _mm_prefetch(weight + STEPS_AHEAD * BYTES + line, _MM_HINT_T0);
}

// One step along K of the first rows at `x`, and of the second ones where there are any.
template <class Kind, bool HAS_SECOND>
inline void add_step(const char *x, const char *second_x, int64_t x_stride, const char *weight) {
  tile::load<X_TILE>(x, x_stride);
  tile::load<WEIGHT_TILE>(weight, PANEL_BYTES);
  add_tiles<Kind, 0>();
  tile::load<WEIGHT_TILE>(weight + 64, PANEL_BYTES);
  add_tiles<Kind, 1>();
  tile::load<WEIGHT_TILE>(weight + 128, PANEL_BYTES);
  add_tiles<Kind, 2>();
  if constexpr (HAS_SECOND) {
    // Backwards, since the last tile of the panel is there already.
    tile::load<X_TILE>(second_x, x_stride);
    add_tiles<Kind, 5>();
    tile::load<WEIGHT_TILE>(weight + 64, PANEL_BYTES);
    add_tiles<Kind, 4>();
    tile::load<WEIGHT_TILE>(weight, PANEL_BYTES);
    add_tiles<Kind, 3>();
  }
}

template <int FIRST> inline void store_three(uint32_t *sums) {
  tile::store<FIRST>(sums, PANEL_BYTES);
  tile::store<FIRST + 1>(sums + tile::WORDS, PANEL_BYTES);
  tile::store<FIRST + 2>(sums + 2 * tile::WORDS, PANEL_BYTES);
}

// What one thread multiplies with.
template <class Kind, class In> class RowsOnTiles {
public:
  // Rows `from` to `to - 1` of one panel, or of a gate's and its partner's.
  void operator()(const Job &given, const uint32_t *weight, int64_t from, int64_t to, int64_t index, bool looks_ahead) {
    // A copy that no store can change: else its fields are read again for every 16 places.
    const Job job = given;
    for (int64_t row = from; row < to; row += BLOCK) {
      const int64_t count = std::min(BLOCK, to - row);
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
  static typename Kind::Sum sum_at(const Sums &sums, int64_t r, int64_t v) {
    const Words bits = load_words(sums[r] + LANES * v);
    if constexpr (std::is_same_v<Kind, Int8>)
      return bits;
    else
      return bits_as_floats(bits);
  }

  // Of at most 16 rows there are no second ones. Of more, the halves share a row where the count is odd: both give it the
  // same sums.
  void add_up(const Job &job, int64_t row, int64_t count, const uint32_t *panel, bool looks_ahead, Sums &to) {
    if (count <= tile::ROWS)
      add_up_halves<false>(job, row, count, 0, panel, looks_ahead, to);
    else
      add_up_halves<true>(job, row, (count + 1) / 2, count / 2, panel, looks_ahead, to);
  }

  template <bool HAS_SECOND>
  void add_up_halves(const Job &job, int64_t row, int64_t half, int64_t second, const uint32_t *panel,
                     bool looks_ahead, Sums &to) {
    const int64_t stride = 4 * job.words, whole = job.words / STEP, rest = job.words % STEP;
    const char *x = reinterpret_cast<const char *>(job.x + row * job.words), *second_x = x + second * stride;
    const char *weight = reinterpret_cast<const char *>(panel);
    begin(half);
    for (int64_t k = 0; k < whole; ++k) {
      if (!HAS_SECOND && looks_ahead) fetch_ahead(weight + k * STEP * PANEL_BYTES);
      add_step<Kind, HAS_SECOND>(x + 64 * k, second_x + 64 * k, stride, weight + k * STEP * PANEL_BYTES);
    }
    if (rest) {
      pad_ends(job, row, second + half, panel, whole * STEP, rest);
      add_step<Kind, HAS_SECOND>(end_of(0), end_of(second), 64, reinterpret_cast<const char *>(weight_ends));
    }
    store_three<0>(to[0]);
    if constexpr (HAS_SECOND) store_three<3>(to[second]);
  }

  // Sums of zero, for so many rows.
  void begin(int64_t num_rows) {
    tile::Shapes shapes;
    for (int t = 0; t <= X_TILE; ++t) shapes.set(t, static_cast<int>(num_rows));
    shapes.set(WEIGHT_TILE, tile::ROWS);
    tiles.shape(shapes);
    tile::zero<0>();
    tile::zero<1>();
    tile::zero<2>();
    tile::zero<3>();
    tile::zero<4>();
    tile::zero<5>();
  }

  const char *end_of(int64_t r) const { return reinterpret_cast<const char *>(x_ends[r]); }

  // The last `rest` words along K, behind `whole` of them, with zeros behind.
  void pad_ends(const Job &job, int64_t row, int64_t count, const uint32_t *panel, int64_t whole, int64_t rest) {
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(x_ends[r], job.x + (row + r) * job.words + whole, 4 * rest);
      std::fill(x_ends[r] + rest, x_ends[r] + STEP, 0u);
    }
    std::memcpy(weight_ends, panel + whole * PANEL, rest * PANEL_BYTES);
    std::memset(weight_ends + rest, 0, (STEP - rest) * PANEL_BYTES);
  }

  tile::Tiles tiles;
  alignas(64) Sums gates, sums;
  alignas(64) uint32_t x_ends[BLOCK][STEP], weight_ends[STEP][PANEL];
};

} // namespace linear_kernels
#endif
