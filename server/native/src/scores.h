// Passes over the scores of one row, as wide as a vocabulary: each in one order, whatever else is computed beside it.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <numeric>
#include <vector>

namespace scores {

constexpr float NONE = -std::numeric_limits<float>::infinity();
constexpr float LEAST = std::numeric_limits<float>::lowest();
constexpr float HUGE = 1e30f; // a bound, for minus infinity times 0 is no number

// A row falls into blocks of DEPTH lines of LANES places each; a group is one lane of a block.
constexpr int LANES = 64, DEPTH = 16, BLOCK = LANES * DEPTH;

inline int64_t num_blocks(int64_t width) { return (width + BLOCK - 1) / BLOCK; }

constexpr float LOG2_E = 1.44269504088896341f;

// 2 to the y within a rounding step or two, for y up to 0; what is below the smallest normal number is 0.
inline float power_of_2(float y) {
  const float shifted = y + 12582912.0f; // the nearest integer is in the low bits
  const float rest = y - (shifted - 12582912.0f);
  float series = 1.535336188319500e-4f;
  series = series * rest + 1.339887440266574e-3f;
  series = series * rest + 9.618437357674640e-3f;
  series = series * rest + 5.550332471162809e-2f;
  series = series * rest + 2.402264791363012e-1f;
  series = series * rest + 6.931472028550421e-1f;
  series = series * rest + 1.0f;
  const uint32_t scaled = std::bit_cast<uint32_t>(series) + (std::bit_cast<uint32_t>(shifted) << 23);
  return y < -126.0f ? 0.0f : std::bit_cast<float>(scaled);
}

// Calls line(first, length) for every line of a block, all but the last of which are LANES long.
template <class Line> inline void for_each_line(int64_t first, int64_t stop, Line line) {
  for (; first + LANES <= stop; first += LANES) line(first, std::integral_constant<int, LANES>());
  if (first < stop) line(first, static_cast<int>(stop - first));
}

inline double sum_of(const float *lanes) {
  double halves[LANES / 2];
  for (int lane = 0; lane < LANES / 2; ++lane)
    halves[lane] = static_cast<double>(lanes[lane]) + static_cast<double>(lanes[lane + LANES / 2]);
  for (int half = LANES / 4; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) halves[lane] += halves[lane + half];
  return halves[0];
}

// Sum of term(i) over a range: lanes of a block in float32, these in float64.
template <class Term> inline double block_sum(int64_t first, int64_t stop, Term term) {
  alignas(64) float sums[LANES] = {};
  for_each_line(first, stop, [&](int64_t begin, auto length) {
    for (int lane = 0; lane < length; ++lane) sums[lane] += term(begin + lane);
  });
  return sum_of(sums);
}

template <class Term> inline double sum(int64_t width, Term term) {
  double total = 0.0;
  for (int64_t first = 0; first < width; first += BLOCK)
    total += block_sum(first, std::min<int64_t>(first + BLOCK, width), term);
  return total;
}

// The greatest of each group, by key(i) of every place, which is also written to keys; returns the greatest of all.
template <class Key> inline float survey(int64_t width, float *keys, float *maxima, Key key) {
  float top = NONE;
  for (int64_t first = 0; first < width; first += BLOCK, maxima += LANES) {
    alignas(64) float group[LANES];
    std::fill_n(group, LANES, NONE);
    for_each_line(first, std::min<int64_t>(first + BLOCK, width), [&](int64_t begin, auto length) {
      for (int lane = 0; lane < length; ++lane) {
        const float value = key(begin + lane);
        keys[begin + lane] = value;
        group[lane] = value > group[lane] ? value : group[lane];
      }
    });
    for (int lane = 0; lane < LANES; ++lane) top = group[lane] > top ? group[lane] : top;
    std::copy_n(group, LANES, maxima);
  }
  return top;
}

// As `survey` of the values themselves. Minus infinity where one is infinite or no number, or all are minus infinity,
// which forbids a token. By the bits: as signed integers infinity and positive NaN are above all numbers, as unsigned
// ones negative NaN is above minus infinity.
inline float survey(const float *values, int64_t width, float *maxima) {
  float top = NONE;
  alignas(64) int32_t greatest[LANES];
  alignas(64) uint32_t farthest[LANES];
  std::fill_n(greatest, LANES, std::numeric_limits<int32_t>::min());
  std::fill_n(farthest, LANES, 0u);
  for (int64_t first = 0; first < width; first += BLOCK, maxima += LANES) {
    alignas(64) float group[LANES];
    std::fill_n(group, LANES, NONE);
    for_each_line(first, std::min<int64_t>(first + BLOCK, width), [&](int64_t begin, auto length) {
      for (int lane = 0; lane < length; ++lane) {
        const float value = values[begin + lane];
        const uint32_t bits = std::bit_cast<uint32_t>(value);
        group[lane] = value > group[lane] ? value : group[lane];
        greatest[lane] = std::max(greatest[lane], static_cast<int32_t>(bits));
        farthest[lane] = std::max(farthest[lane], bits);
      }
    });
    for (int lane = 0; lane < LANES; ++lane) top = group[lane] > top ? group[lane] : top;
    std::copy_n(group, LANES, maxima);
  }
  const bool is_finite = *std::max_element(greatest, greatest + LANES) < 0x7f800000 &&
                         *std::max_element(farthest, farthest + LANES) <= 0xff800000u;
  return is_finite ? top : NONE;
}

// Which places of a line are at least the bound, as bits.
inline uint64_t above(const float *line, int length, float bound) {
  uint64_t bits = 0;
#if defined(__AVX512F__)
  for (int part = 0; part * 16 < length; ++part) {
    const __mmask16 exists = static_cast<__mmask16>((1u << std::min(16, length - part * 16)) - 1);
    const __m512 values = _mm512_maskz_loadu_ps(exists, line + part * 16);
    bits |= static_cast<uint64_t>(_mm512_mask_cmp_ps_mask(exists, values, _mm512_set1_ps(bound), _CMP_GE_OQ)) << part * 16;
  }
#else
  int lane = 0;
  for (; lane + 8 <= length; lane += 8) {
    const __m256 is_above = _mm256_cmp_ps(_mm256_loadu_ps(line + lane), _mm256_set1_ps(bound), _CMP_GE_OQ);
    bits |= static_cast<uint64_t>(_mm256_movemask_ps(is_above)) << lane;
  }
  for (; lane < length; ++lane) bits |= static_cast<uint64_t>(line[lane] >= bound) << lane;
#endif
  return bits;
}

// Calls found(i) for every place of at least the bound, in rising order.
template <class Found> inline void for_each_above(const float *keys, int64_t width, float bound, Found found) {
  for_each_line(0, width, [&](int64_t begin, auto length) {
    for (uint64_t bits = above(keys + begin, length, bound); bits != 0; bits &= bits - 1)
      found(begin + std::countr_zero(bits));
  });
}

inline float kth_largest(std::vector<float> &values, int64_t k) {
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<float>());
  return values[k - 1];
}

// The least value that is at least the bound; the greatest where there is none.
inline float least_above(const float *keys, int64_t width, float bound, float top) {
  alignas(64) float least[LANES];
  std::fill_n(least, LANES, top);
  for_each_line(0, width, [&](int64_t begin, auto length) {
    for (int lane = 0; lane < length; ++lane) {
      const float key = keys[begin + lane] < bound ? top : keys[begin + lane];
      least[lane] = key < least[lane] ? key : least[lane];
    }
  });
  return *std::min_element(least, least + LANES);
}

// A value that at least k of the row reach, and seldom many more: so many of the groups' greatest reach it. Found by
// halving; minus infinity where there is none.
inline float lower_bound(const float *maxima, int64_t num_groups, int64_t k) {
  const auto count_above = [=](float bound) {
    int32_t counts[LANES] = {};
    for (int64_t first = 0; first < num_groups; first += LANES)
      for (int lane = 0; lane < LANES; ++lane) counts[lane] += maxima[first + lane] >= bound;
    return std::accumulate(counts, counts + LANES, int64_t{0});
  };
  if (count_above(LEAST) < k) return NONE;
  float high = *std::max_element(maxima, maxima + num_groups);
  float low = least_above(maxima, num_groups, LEAST, high);
  for (int step = 0; step < 32; ++step) {
    const float middle = 0.5f * low + 0.5f * high;
    const int64_t count = count_above(middle);
    (count >= k ? low : high) = middle;
    if (count >= k && count <= k + k / 4) break;
  }
  return low;
}

// Orders by falling key, of equal ones the later place first, which is transformers' order. Equal are 0 and minus 0.
inline uint64_t ranked(float key, int64_t place) {
  const uint32_t bits = std::bit_cast<uint32_t>(key + 0.0f);
  const uint32_t rising = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(rising) << 32 | static_cast<uint32_t>(place);
}

struct Edge {
  float key;
  int64_t place;

  bool keeps(float other, int64_t at) const { return other > key || (other == key && at >= place); }
};

struct Memory {
  std::vector<uint64_t> ranks;
  std::vector<int32_t> bins;
  std::vector<double> sums;
};

// Adds the weights in falling order of the keys to what is there already. True where they have the mass.
template <class Weight>
inline bool walk(const float *keys, Memory &memory, double sum, double mass, Weight weight, Edge &edge) {
  std::sort(memory.ranks.begin(), memory.ranks.end(), std::greater<uint64_t>());
  for (const uint64_t rank : memory.ranks) {
    const int64_t place = static_cast<uint32_t>(rank);
    edge = {keys[place], place};
    sum += static_cast<double>(weight(place));
    if (sum >= mass) return true;
  }
  return false;
}

// As `walk`, over the whole row: the weights are counted in bins of like keys, and only the last bin is sorted.
template <class Weight>
inline Edge edge_by_bins(const float *keys, int64_t width, float top, double mass, Weight weight, Memory &memory) {
  constexpr int NUM_BINS = 4096;
  const float scale = (NUM_BINS - 2) / std::max(top - least_above(keys, width, top - 40.0f, top), 1e-30f);
  memory.bins.resize(width);
  memory.sums.assign(NUM_BINS, 0.0);
  for_each_line(0, width, [&](int64_t begin, auto length) {
    alignas(64) float weights[LANES];
    int32_t *bins = memory.bins.data() + begin;
    for (int lane = 0; lane < length; ++lane) {
      const float bin = (top - keys[begin + lane]) * scale;
      bins[lane] = static_cast<int32_t>(bin < NUM_BINS - 1.0f ? bin : NUM_BINS - 1.0f);
      weights[lane] = weight(begin + lane);
    }
    for (int lane = 0; lane < length; ++lane) memory.sums[bins[lane]] += static_cast<double>(weights[lane]);
  });
  double sum = 0.0;
  int bin = 0;
  while (bin < NUM_BINS - 1 && sum + memory.sums[bin] < mass) sum += memory.sums[bin++];
  Edge edge = {NONE, 0};
  for (; bin < NUM_BINS; sum += memory.sums[bin++]) {
    memory.ranks.clear();
    for (int64_t i = 0; i < width; ++i)
      if (memory.bins[i] == bin) memory.ranks.push_back(ranked(keys[i], i));
    if (walk(keys, memory, sum, mass, weight, edge)) break;
  }
  return edge;
}

// The last of the places that, in falling order of their keys, have the mass together; the very last if none have it.
template <class Weight>
inline Edge edge_of(const float *keys, int64_t width, const float *maxima, float top, double mass, Weight weight,
                    Memory &memory) {
  Edge edge = {LEAST, 0};
  for (const int64_t window : {64, 256, 1024}) {
    const bool is_wide = width <= 2 * window;
    const float bound = is_wide ? NONE : lower_bound(maxima, num_blocks(width) * LANES, window);
    memory.ranks.clear();
    for_each_above(keys, width, std::max(bound, LEAST), [&](int64_t i) { memory.ranks.push_back(ranked(keys[i], i)); });
    if (walk(keys, memory, 0.0, mass, weight, edge) || bound == NONE) return edge;
  }
  return edge_by_bins(keys, width, top, mass, weight, memory);
}

} // namespace scores
