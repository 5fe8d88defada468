// Attention of a few rows, the queries of one key/value head, over one partition of the keys. What a row gets depends
// on that row alone: every sum runs over dims or keys in one order, and a masked key adds an exact zero.
#pragma once

#include "attention_heads.h"

#include <algorithm>
#include <type_traits>

namespace attention {

constexpr int ROWS = 12;
constexpr int64_t PARTITION = 128;
constexpr int64_t PARTITION_BLOCKS = PARTITION / BLOCK;
// So many blocks before it is used, a block is asked for.
constexpr int64_t AHEAD = 2;
// A line more than the width, so that rows do not all fall into the same lines of the cache.
constexpr int64_t QUERY_STRIDE = MOST_DIM + LANES;
constexpr int64_t SCORE_STRIDE = PARTITION + LANES;

// Unnormalised results: of each row the weighted sum of values, the top score, and the total of the weights.
struct Results {
  float *sums; // [rows][value_dim]
  float *tops, *totals;
};

inline Results results_at(float *place, int64_t rows, int64_t width) {
  return {place, place + rows * width, place + rows * (width + 1)};
}

// Calls body with `count`, from 1 to MOST, as a constant.
template <int MOST, class Body> inline void with_constant(int count, Body body) {
  if constexpr (MOST > 1)
    if (count < MOST) return with_constant<MOST - 1>(count, body);
  body(std::integral_constant<int, MOST>{});
}

// The word may have been written as two bfloat16.
inline Lanes everywhere(const uint32_t *word) {
  float value;
  std::memcpy(&value, word, sizeof value);
  return all(value);
}
inline Lanes load(const uint32_t *words) { return load(reinterpret_cast<const float *>(words)); }

// Asks for a line that is needed soon.
inline void fetch(const void *place) { _mm_prefetch(static_cast<const char *>(place), _MM_HINT_T1); }

// Products of R queries with the keys of `count` blocks, of `words` each. Meanwhile the keys of those AHEAD of them come.
template <class T, int R>
void score(const uint32_t *query, const Place<T> *places, int64_t count, int64_t words, float *scores) {
  for (int64_t block = 0; block < count; ++block) {
    const uint32_t *keys = places[block].keys, *ahead = places[block + AHEAD].keys;
    Lanes low[R], high[R];
    for (int r = 0; r < R; ++r) low[r] = high[r] = all(0.0f);
    for (int64_t word = 0; word < words; ++word) {
      fetch(ahead + word * BLOCK);
      fetch(ahead + word * BLOCK + LANES);
      const Lanes low_keys = load(keys + word * BLOCK), high_keys = load(keys + word * BLOCK + LANES);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Lanes q = everywhere(query + r * QUERY_STRIDE + word);
        low[r] = T::add_product(low[r], q, low_keys);
        high[r] = T::add_product(high[r], q, high_keys);
      }
    }
    for (int r = 0; r < R; ++r) {
      store(scores + r * SCORE_STRIDE + block * BLOCK, low[r]);
      store(scores + r * SCORE_STRIDE + block * BLOCK + LANES, high[r]);
    }
  }
}

// Turns a row's scores of `count` keys into weights, in place, as wide as the values are multiplied with. The row sees `first` to
// `last - 1` of them. Its own place among them, from which distances count, is `own`.
template <class T>
void weigh(const Layer &layer, float *scores, int64_t count, int64_t first, int64_t last, float *top, float *total,
           const DistanceBias &bias, int64_t own) {
  using Weight = typename T::Weight;
  Weight *weights = reinterpret_cast<Weight *>(scores);
  if (std::max<int64_t>(first, 0) >= std::min(last, count)) {
    std::fill_n(weights, count, Weight{});
    *top = -INFINITE;
    *total = 0.0f;
    return;
  }
  const float scaling = static_cast<float>(layer.scaling), softcap = static_cast<float>(layer.softcap);
  const bool is_scaled = softcap > 0.0f || bias;
  Lanes tops = all(-INFINITE);
  for (int64_t key = 0; key < count; key += LANES) {
    Lanes x = load(scores + key);
    if (softcap > 0.0f) x = multiply(tanh(multiply(x, all(scaling / softcap))), all(softcap));
    if (bias) x = multiply_add(x, all(softcap > 0.0f ? 1.0f : scaling), load(bias.at(key - own)));
    const bool is_cut = key < first || key + LANES > last;
    if (is_cut) x = between(x, static_cast<int>(first - key), static_cast<int>(last - key));
    if (is_cut || is_scaled) store(scores + key, x);
    tops = larger(tops, x);
  }
  const float factor = is_scaled ? 1.0f : scaling;
  const float most = largest(tops), steps = factor * LOG2_E;
  *top = most * factor;
  const Lanes factors = all(steps), less = all(-most * steps);
  Lanes totals = all(0.0f);
  for (int64_t key = 0; key < count; key += 2 * LANES) {
    const Lanes low = exp2_of_negative(multiply_add(load(scores + key), factors, less));
    const Lanes high = exp2_of_negative(multiply_add(load(scores + key + LANES), factors, less));
    totals = add(add(totals, low), high);
    T::store_two(weights + key, low, high);
  }
  *total = sum(totals);
}

// Weighted sums of R rows, of N times sixteen places of the values. Meanwhile the values AHEAD of them come.
template <class T, int R, int N>
void combine(const float *scores, const Place<T> *places, int64_t count, int64_t width, int64_t column, float *sums) {
  Lanes sum[R][N];
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) sum[r][n] = all(0.0f);
  for (int64_t block = 0; block < count; ++block) {
    const uint32_t *values = places[block].values + column, *ahead = places[block + AHEAD].values + column;
    const uint32_t *weights = reinterpret_cast<const uint32_t *>(scores) + block * BLOCK / T::PACK;
    for (int64_t word = 0; word < BLOCK / T::PACK; ++word) {
      Lanes value[N];
      for (int n = 0; n < N; ++n) {
        fetch(ahead + word * width + n * LANES);
        value[n] = load(values + word * width + n * LANES);
      }
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const Lanes weight = everywhere(weights + r * SCORE_STRIDE + word);
        for (int n = 0; n < N; ++n) sum[r][n] = T::add_product(sum[r][n], weight, value[n]);
      }
    }
  }
  for (int r = 0; r < R; ++r)
    for (int n = 0; n < N; ++n) store(sums + r * width + column + n * LANES, sum[r][n]);
}

template <class T, int N>
void combine_rows(int rows, const float *scores, const Place<T> *places, int64_t count, int64_t width,
                  int64_t column, float *sums) {
  constexpr int MOST = ROWS / 2;
  const int half = rows > MOST ? (rows + 1) / 2 : rows;
  for (int done = 0; done < rows; done += half) {
    with_constant<MOST>(std::min(half, rows - done), [&](auto some) {
      combine<T, some, N>(scores + done * SCORE_STRIDE, places, count, width, column, sums + done * width);
    });
  }
}

template <class T>
void combine_all(int rows, const float *scores, const Place<T> *places, int64_t count, int64_t width,
                 float *sums) {
  int64_t column = 0;
  for (; column + 4 * LANES <= width; column += 4 * LANES)
    combine_rows<T, 4>(rows, scores, places, count, width, column, sums);
  if (column + 2 * LANES <= width) {
    combine_rows<T, 2>(rows, scores, places, count, width, column, sums);
    column += 2 * LANES;
  }
  if (column < width) combine_rows<T, 1>(rows, scores, places, count, width, column, sums);
}

// The products of attention with vectors. What `score` and `combine` take is written there and at `combine_all`.
template <class T> struct VectorProducts {
  static constexpr int ROWS = attention::ROWS;
  static constexpr int64_t STEP = 1; // words of a query that are multiplied at once

  void score(int rows, const uint32_t *queries, const Place<T> *places, int64_t count, int64_t words, float *scores) {
    with_constant<ROWS>(rows, [&](auto some) { attention::score<T, some>(queries, places, count, words, scores); });
  }

  void combine(int rows, const float *scores, const Place<T> *places, int64_t count, int64_t width, float *sums) {
    combine_all<T>(rows, scores, places, count, width, sums);
  }
};

// The first `count` floats, up to sixteen, and zeros.
inline Lanes load_some(const float *from, int count) {
  alignas(64) float values[LANES] = {};
  std::copy_n(from, count, values);
  return load(values);
}

// Adds a partition's results of up to sixteen rows from `first` on to those of the partitions before it. A row that does
// not see it stays as it is.
inline void merge_some(Results into, const Results &part, int first, int count, int64_t width) {
  const Lanes old_tops = load_some(into.tops + first, count), more_tops = load_some(part.tops + first, count);
  const Lanes tops = larger(more_tops, old_tops);
  const auto factor = [&](Lanes x) { return exp2_of_negative(multiply(subtract(x, tops), all(LOG2_E))); };
  alignas(64) float top[LANES], before[LANES], now[LANES];
  store(top, tops);
  store(before, factor(old_tops));
  store(now, factor(more_tops));
  for (int i = 0; i < count; ++i) {
    const int row = first + i;
    if (part.tops[row] == -INFINITE) continue;
    into.tops[row] = top[i];
    into.totals[row] = std::fma(into.totals[row], before[i], part.totals[row] * now[i]);
    float *sums = into.sums + row * width;
    const float *more = part.sums + row * width;
    for (int64_t column = 0; column < width; column += LANES) {
      const Lanes added = multiply(load(more + column), all(now[i]));
      store(sums + column, multiply_add(load(sums + column), all(before[i]), added));
    }
  }
}

inline void merge(const Results &into, const Results &part, int rows, int64_t width) {
  for (int first = 0; first < rows; first += LANES) merge_some(into, part, first, std::min(LANES, rows - first), width);
}

} // namespace attention
