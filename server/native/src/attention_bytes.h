// Numbers of a cache in int8. Each token has one scale for its key and one for its value, in each head, so that what it
// stores depends on that token alone.
//
// What these numbers are multiplied with is rounded to 16 bits, with one scale for a row: queries, which meet keys, and
// weights, which meet values. Then all products are of integers, and their sums are exact: the same with every
// instruction set. An instruction multiplies unsigned bytes with signed ones. Weights are never negative, so values are
// signed. Queries are, so keys are stored plus 128, and every sum begins with what takes that back.
#pragma once

#include "attention_lanes.h"

namespace attention {

// A row of numbers of 16 bits: its scale, what every sum with it begins with, and two words for each four numbers.
constexpr int64_t FIXED_HEAD = 2;
constexpr int64_t fixed_words(int64_t count) { return FIXED_HEAD + count / 2; }
// The upper byte of a query's number is at most 127, also where the lower one, which is signed, rounds it up.
constexpr float MOST_QUERY = 127 * 256;
constexpr float MOST_WEIGHT = 32767;
constexpr float MOST_BYTE = 127;
constexpr int KEY_OFFSET = 128, VALUE_OFFSET = 0;
// Numbers that are all smaller count as zero: the inverse of their scale may be infinite.
constexpr float TINY = 0x1p-100f;

#ifdef __AVX512BF16__

// Four bytes of sixteen keys, or of sixteen places of four values.
using Keys = __m512i;
struct Values {
  __m512i words;
};
inline Keys load_keys(const uint32_t *from) { return load_words(from); }
inline Values load_values(const uint32_t *from) { return {load_words(from)}; }

// Four numbers of 16 bits, in every lane: their upper bytes, and their lower ones.
struct Fours {
  __m512i high, low;
  explicit Fours(const uint32_t *words) : high(all_words(words[0])), low(all_words(words[1])) {}
};

// Sums of products with the upper bytes and with the lower bytes.
struct ByteSums {
  __m512i high, low;
};
inline ByteSums no_sums() { return {all_words(0), all_words(0)}; }
inline void add_products(ByteSums &sums, Keys keys, const Fours &query) {
  sums.high = add_fours(sums.high, keys, query.high);
  sums.low = add_fours(sums.low, keys, query.low);
}
inline void add_products(ByteSums &sums, Values values, const Fours &weights) {
  sums.high = add_fours(sums.high, weights.high, values.words);
  sums.low = add_fours(sums.low, weights.low, values.words);
}
inline Lanes whole(const ByteSums &sums, int start) {
  const __m512i both = _mm512_add_epi32(_mm512_slli_epi32(sums.high, 8), sums.low);
  return floats_of(_mm512_add_epi32(both, _mm512_set1_epi32(start)));
}

// Sixteen numbers as eight words, with signed lower bytes: the upper ones are rounded up where these are negative.
inline void store_signed(uint32_t *to, Lanes x) {
  const __m512i n = _mm512_cvtps_epi32(x), high = _mm512_srai_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(128)), 8);
  const __m128i highs = _mm512_cvtepi32_epi8(high), lows = _mm512_cvtepi32_epi8(n);
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm_unpacklo_epi32(highs, lows));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to + 4), _mm_unpackhi_epi32(highs, lows));
}

// Two times sixteen numbers that are not negative as sixteen words, with unsigned bytes.
inline void store_unsigned(uint32_t *to, Lanes a, Lanes b) {
  const __m512i n = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
  const __m512i high = _mm512_srli_epi16(n, 8), low = _mm512_and_si512(n, _mm512_set1_epi16(0xff));
  // In every part of 128 bits: four upper bytes of a, of b, then the lower ones.
  const __m512i bytes = _mm512_shuffle_epi32(_mm512_packus_epi16(high, low), _MM_PERM_DBCA);
  store_words(to, _mm512_permutexvar_epi64(_mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), bytes));
}

#else

// Two of the four bytes of eight keys, or of eight places of four values, as numbers of 16 bits.
struct Pairs {
  __m256i low_even, low_odd, high_even, high_odd;
};
inline Pairs load_keys(const uint32_t *from) {
  const Words x = load_words(from);
  const __m256i even = _mm256_set1_epi32(0x00ff00ff);
  return {_mm256_and_si256(x.low, even), _mm256_srli_epi16(x.low, 8), _mm256_and_si256(x.high, even),
          _mm256_srli_epi16(x.high, 8)};
}
inline Pairs load_values(const uint32_t *from) {
  const Words x = load_words(from);
  const auto even = [](__m256i y) { return _mm256_srai_epi16(_mm256_slli_epi16(y, 8), 8); };
  return {even(x.low), _mm256_srai_epi16(x.low, 8), even(x.high), _mm256_srai_epi16(x.high, 8)};
}
using Keys = Pairs;
using Values = Pairs;

// Four numbers of 16 bits, in every lane: the first and third, the second and fourth.
struct Fours {
  __m256i even, odd;
  explicit Fours(const uint32_t *words)
      : even(_mm256_set1_epi32(static_cast<int>(words[0]))), odd(_mm256_set1_epi32(static_cast<int>(words[1]))) {}
};

struct ByteSums {
  __m256i low, high;
};
inline ByteSums no_sums() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline __m256i add_twos(__m256i sum, __m256i a, __m256i b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
inline void add_products(ByteSums &sums, const Pairs &pairs, const Fours &fours) {
  sums.low = add_twos(add_twos(sums.low, pairs.low_even, fours.even), pairs.low_odd, fours.odd);
  sums.high = add_twos(add_twos(sums.high, pairs.high_even, fours.even), pairs.high_odd, fours.odd);
}
inline Lanes whole(const ByteSums &sums, int start) {
  const __m256i more = _mm256_set1_epi32(start);
  return {_mm256_cvtepi32_ps(_mm256_add_epi32(sums.low, more)), _mm256_cvtepi32_ps(_mm256_add_epi32(sums.high, more))};
}

// Eight numbers as four words; here the bytes of a number stay together.
inline void store_eight(uint32_t *to, __m256 x) {
  const __m256i sorted = _mm256_shuffle_epi32(_mm256_cvtps_epi32(x), _MM_SHUFFLE(3, 1, 2, 0));
  const __m256i pairs = _mm256_packs_epi32(sorted, sorted);
  _mm_storel_epi64(reinterpret_cast<__m128i *>(to), _mm256_castsi256_si128(pairs));
  _mm_storel_epi64(reinterpret_cast<__m128i *>(to + 2), _mm256_extracti128_si256(pairs, 1));
}
inline void store_signed(uint32_t *to, Lanes x) {
  store_eight(to, x.low);
  store_eight(to + 4, x.high);
}
inline void store_unsigned(uint32_t *to, Lanes a, Lanes b) {
  store_signed(to, a);
  store_signed(to + LANES / 2, b);
}

#endif

// The largest magnitude of `count` floats, which must be a multiple of LANES; NaN where one is not finite.
inline float largest_magnitude(const float *values, int64_t count) {
  Lanes most = all(0.0f), zeros = all(0.0f);
  for (int64_t i = 0; i < count; i += LANES) {
    const Lanes x = load(values + i);
    most = larger(absolute(x), most);
    zeros = multiply_add(x, all(0.0f), zeros);
  }
  return largest(most) + sum(zeros);
}

// Both write `fixed_words(count)` words. Of a query that is not finite, the scale is NaN, and so is every product.
inline void fix_query(const float *values, int64_t count, uint32_t *to) {
  const float most = largest_magnitude(values, count);
  const Lanes inverse = all(most >= TINY ? MOST_QUERY / most : 0.0f);
  Lanes total = all(0.0f); // exact: up to 256 numbers of 15 bits
  for (int64_t i = 0; i < count; i += LANES) {
    const Lanes n = nearest(multiply(load(values + i), inverse));
    total = add(total, n);
    store_signed(to + FIXED_HEAD + i / 2, n);
  }
  to[0] = std::bit_cast<uint32_t>(most < TINY ? 0.0f : most / MOST_QUERY);
  const bool is_finite = most == most;
  to[1] = is_finite ? static_cast<uint32_t>(-KEY_OFFSET * static_cast<int>(sum(total))) : 0;
}

// `count` must be a multiple of 2 LANES. Weights that are not finite may become anything: their total is NaN.
inline void fix_weights(const float *values, float most, int64_t count, uint32_t *to) {
  const bool is_some = most >= TINY;
  const Lanes inverse = all(is_some ? MOST_WEIGHT / most : 0.0f);
  for (int64_t i = 0; i < count; i += 2 * LANES) {
    const Lanes a = multiply(load(values + i), inverse), b = multiply(load(values + i + LANES), inverse);
    store_unsigned(to + FIXED_HEAD + i / 2, a, b);
  }
  to[0] = std::bit_cast<uint32_t>(is_some ? most / MOST_WEIGHT : 0.0f);
  to[1] = 0;
}

inline float scale_of(const uint32_t *fixed) { return std::bit_cast<float>(fixed[0]); }
inline int start_of(const uint32_t *fixed) { return static_cast<int>(fixed[1]); }

// Writes finite values as bytes, plus `offset`, and returns their scale, a bfloat16. That is rounded up, so that no byte
// is cut off.
inline uint16_t to_bytes(const float *values, int64_t count, int offset, uint8_t *to) {
  const float most = largest_magnitude(values, count);
  const bool is_some = most >= TINY;
  const uint16_t scale = is_some ? (std::bit_cast<uint32_t>(most / MOST_BYTE) + 0xffff) >> 16 : 0;
  const Lanes inverse = all(is_some ? 1.0f / Bfloat16::wide(scale) : 0.0f);
  for (int64_t i = 0; i < count; i += LANES)
    store_bytes(to + i, first(LANES), multiply(load(values + i), inverse), offset);
  return scale;
}

// A cache in int8 of a model in T. Weights stay floats until they meet the scales of the values.
template <class T> struct Int8 : T {
  using Stored = uint8_t;
  using Weight = float;
  static constexpr int PACK = 4;
  static constexpr bool HAS_SCALES = true;
  static uint32_t bits(uint8_t value) { return value; }
  static void store_two(float *to, Lanes a, Lanes b) {
    store(to, a);
    store(to + LANES, b);
  }
};

} // namespace attention
