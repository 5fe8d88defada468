// The products of attention with a cache in int8; see attention_bytes.h.
#pragma once

#include "attention_bytes.h"
#include "attention_tile.h"

namespace attention {

// As many sums at once as there are registers for.
#ifdef __AVX512BF16__
constexpr int SCORED_ROWS = 6, SUMMED_ROWS = 3, SUMMED_COLUMNS = 4;
#else
constexpr int SCORED_ROWS = 3, SUMMED_ROWS = 3, SUMMED_COLUMNS = 2;
#endif

template <class T> class ByteProducts {
public:
  static constexpr int ROWS = attention::ROWS;
  static constexpr int64_t STEP = 1; // words of a query that are multiplied at once

  // Products of queries with the keys of `count` blocks, of `words` each. Meanwhile the keys of those AHEAD of them come.
  void score(int rows, const uint32_t *queries, const Place<T> *places, int64_t count, int64_t words, float *scores) {
    in_parts<SCORED_ROWS>(rows, [&](int first, auto some) {
      score_some<some>(queries + first * QUERY_STRIDE, places, count, words, scores + first * SCORE_STRIDE);
    });
  }

  // Sums of values, weighted with what `scores` holds by now. Meanwhile the values AHEAD of them come.
  void combine(int rows, const float *scores, const Place<T> *places, int64_t count, int64_t width, float *sums) {
    alignas(64) float scales[PARTITION];
    load_scales(places, count, scales);
    for (int r = 0; r < rows; ++r)
      scale_weights(scores + r * SCORE_STRIDE, scales, count * BLOCK, weights + r * WEIGHT_STRIDE);
    in_parts<SUMMED_ROWS>(rows, [&](int first, auto some) {
      const uint32_t *from = weights + first * WEIGHT_STRIDE;
      float *to = sums + first * width;
      int64_t column = 0;
      for (; column + SUMMED_COLUMNS * LANES <= width; column += SUMMED_COLUMNS * LANES)
        combine_some<some, SUMMED_COLUMNS>(from, places, count, width, column, to);
      for (; column < width; column += LANES) combine_some<some, 1>(from, places, count, width, column, to);
    });
  }

private:
  static constexpr int64_t WEIGHT_STRIDE = fixed_words(PARTITION);
  static constexpr int64_t BLOCK_WORDS = BLOCK / T::PACK;

  // Calls body with the first of some rows and their number, a constant of up to MOST. All parts are about as large.
  template <int MOST, class Body> static void in_parts(int rows, Body body) {
    const int cuts = (rows + MOST - 1) / MOST, size = (rows + cuts - 1) / cuts;
    for (int first = 0; first < rows; first += size)
      with_constant<MOST>(std::min(size, rows - first), [&](auto some) { body(first, some); });
  }

  template <int R>
  static void score_some(const uint32_t *queries, const Place<T> *places, int64_t count, int64_t words, float *scores) {
    for (int64_t block = 0; block < count; ++block) {
      const Place<T> &place = places[block], &ahead = places[block + AHEAD];
      fetch(key_scales(ahead));
      ByteSums low[R], high[R]; // of the first and of the last tokens of the block
      for (int r = 0; r < R; ++r) low[r] = high[r] = no_sums();
      for (int64_t word = 0; word < words; ++word) {
        fetch(ahead.keys + word * BLOCK);
        fetch(ahead.keys + word * BLOCK + LANES);
        const Keys low_keys = load_keys(place.keys + word * BLOCK);
        const Keys high_keys = load_keys(place.keys + word * BLOCK + LANES);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
          const Fours query(queries + r * QUERY_STRIDE + FIXED_HEAD + 2 * word);
          add_products(low[r], low_keys, query);
          add_products(high[r], high_keys, query);
        }
      }
      const Lanes low_scales = load(key_scales(place), first(LANES)), high_scales = load(key_scales(place) + LANES, first(LANES));
      for (int r = 0; r < R; ++r) {
        const uint32_t *query = queries + r * QUERY_STRIDE;
        const Lanes scale = all(scale_of(query));
        float *to = scores + r * SCORE_STRIDE + block * BLOCK;
        store(to, multiply(whole(low[r], start_of(query)), multiply(scale, low_scales)));
        store(to + LANES, multiply(whole(high[r], start_of(query)), multiply(scale, high_scales)));
      }
    }
  }

  static void load_scales(const Place<T> *places, int64_t count, float *scales) {
    for (int64_t block = 0; block < count; ++block)
      for (int64_t i = 0; i < BLOCK; i += LANES)
        store(scales + block * BLOCK + i, load(value_scales(places[block]) + i, first(LANES)));
  }

  static void scale_weights(const float *weights, const float *scales, int64_t count, uint32_t *to) {
    alignas(64) float scaled[PARTITION];
    Lanes most = all(0.0f);
    for (int64_t i = 0; i < count; i += LANES) {
      const Lanes x = multiply(load(weights + i), load(scales + i));
      most = larger(x, most);
      store(scaled + i, x);
    }
    fix_weights(scaled, largest(most), count, to);
  }

  template <int R, int N>
  static void combine_some(const uint32_t *weights, const Place<T> *places, int64_t count, int64_t width, int64_t column,
                           float *results) {
    ByteSums sums[R][N];
    for (auto &of_row : sums)
      for (ByteSums &sum : of_row) sum = no_sums();
    for (int64_t block = 0; block < count; ++block) {
      const uint32_t *values = places[block].values + column, *ahead = places[block + AHEAD].values + column;
      fetch(value_scales(places[block + AHEAD]));
      for (int64_t word = 0; word < BLOCK_WORDS; ++word) {
        Values value[N];
        for (int n = 0; n < N; ++n) {
          fetch(ahead + word * width + n * LANES);
          value[n] = load_values(values + word * width + n * LANES);
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const Fours weight(weights + r * WEIGHT_STRIDE + FIXED_HEAD + 2 * (block * BLOCK_WORDS + word));
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) add_products(sums[r][n], value[n], weight);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      const uint32_t *weight = weights + r * WEIGHT_STRIDE;
      for (int n = 0; n < N; ++n)
        store(results + r * width + column + n * LANES,
              multiply(whole(sums[r][n], start_of(weight)), all(scale_of(weight))));
    }
  }

  alignas(64) uint32_t weights[ROWS * WEIGHT_STRIDE];
};

// What multiplies with a cache of this type in vectors.
template <class T> using LanesProducts = std::conditional_t<T::HAS_SCALES, ByteProducts<T>, VectorProducts<T>>;

} // namespace attention
