// Sixteen floats in two registers of 256 bits. lanes.h says what each function promises.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace lanes {

struct Lanes {
  __m256 low, high;
};
struct Words {
  __m256i low, high;
};
struct Mask {
  int64_t count; // of the first lanes
};

#ifdef __AVXVNNI__
#define INT8_WORDS 1
constexpr int INT8_ZERO = 128;
#else
#define INT8_WORDS 2
constexpr int INT8_ZERO = 0;
#endif

inline Mask first(int64_t count) { return {count < 16 ? count : 16}; }

inline Lanes all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Lanes load(const float *from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline __m256 load_wide(const bfloat16 *from) {
  const __m128i narrow = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
}
inline Lanes load(const bfloat16 *from) { return {load_wide(from), load_wide(from + 8)}; }
template <class T> inline Lanes load(const T *from, Mask mask) {
  if (mask.count == 16) return load(from);
  alignas(32) T values[16] = {};
  std::memcpy(values, from, mask.count * sizeof(T));
  return load(values);
}

// Of each float the nearest bfloat16 in the upper half of its word; the lower half means nothing.
inline __m256i rounded_words(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i number = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_ORD_Q));
  return _mm256_blendv_epi8(_mm256_set1_epi32(0x7fc00000), up, number);
}
inline __m128i rounded(__m256 x) {
  const __m256i wide = _mm256_srli_epi32(rounded_words(x), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
}
inline void store(float *to, Lanes x) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
}
inline void store(bfloat16 *to, Lanes x) {
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), rounded(x.low));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to + 8), rounded(x.high));
}
template <class T> inline void store(T *to, Mask mask, Lanes x) {
  if (mask.count == 16) return store(to, x);
  alignas(32) T values[16];
  store(values, x);
  std::memcpy(to, values, mask.count * sizeof(T));
}

inline Lanes add(Lanes a, Lanes b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Lanes subtract(Lanes a, Lanes b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Lanes multiply(Lanes a, Lanes b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Lanes divide(Lanes a, Lanes b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes larger(Lanes a, Lanes b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Lanes smaller(Lanes a, Lanes b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Lanes nearest(Lanes x) { return {_mm256_round_ps(x.low, 8), _mm256_round_ps(x.high, 8)}; }

inline __m256 absolute(__m256 x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
inline Lanes absolute(Lanes x) { return {absolute(x.low), absolute(x.high)}; }

// In two factors: 2^n itself may be too small for a normal number.
inline __m256 scaled(__m256 x, __m256 n) {
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  const auto power = [](__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
  };
  return _mm256_mul_ps(_mm256_mul_ps(x, power(half)), power(_mm256_sub_epi32(whole, half)));
}
inline Lanes scaled(Lanes x, Lanes n) { return {scaled(x.low, n.low), scaled(x.high, n.high)}; }

// The approximate reciprocal differs between makers of processors.
inline Lanes inverse(Lanes x) { return divide(all(1.0f), x); }

inline __m256 one_beyond(__m256 limit, __m256 x, __m256 otherwise) {
  const __m256 one = _mm256_or_ps(_mm256_set1_ps(1.0f), _mm256_and_ps(x, _mm256_set1_ps(-0.0f)));
  return _mm256_blendv_ps(otherwise, one, _mm256_cmp_ps(absolute(x), limit, _CMP_GT_OQ));
}
inline Lanes one_beyond(Lanes limit, Lanes x, Lanes otherwise) {
  return {one_beyond(limit.low, x.low, otherwise.low), one_beyond(limit.high, x.high, otherwise.high)};
}

inline __m256 low_half(Lanes x) { return x.low; }
inline __m256 high_half(Lanes x) { return x.high; }

inline __m256 between(__m256 x, int first, int last) {
  const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  const __m256i kept = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                                           _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane));
  return _mm256_blendv_ps(_mm256_set1_ps(-INFINITE), x, _mm256_castsi256_ps(kept));
}
inline Lanes between(Lanes x, int first, int last) {
  return {between(x.low, first, last), between(x.high, first - 8, last - 8)};
}

inline void store_rounded(bfloat16 *to, Lanes a, Lanes b) {
  store(to, a);
  store(to + 16, b);
}

inline __m256i rounded_pairs(__m256 low, __m256 high) {
  return _mm256_blend_epi16(_mm256_srli_epi32(rounded_words(low), 16), rounded_words(high), 0xaa);
}
inline Words rounded_pairs(Lanes low, Lanes high) {
  return {rounded_pairs(low.low, high.low), rounded_pairs(low.high, high.high)};
}

inline Words all_words(uint32_t value) {
  const __m256i words = _mm256_set1_epi32(static_cast<int>(value));
  return {words, words};
}
inline Words load_words(const void *from) {
  const __m256i *words = static_cast<const __m256i *>(from);
  return {_mm256_loadu_si256(words), _mm256_loadu_si256(words + 1)};
}
inline __m256i load_eight_bytes(const uint8_t *from) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)));
}
inline Words load_bytes(const uint8_t *from) { return {load_eight_bytes(from), load_eight_bytes(from + 8)}; }
inline void store_words(void *to, Words x) {
  __m256i *words = static_cast<__m256i *>(to);
  _mm256_storeu_si256(words, x.low);
  _mm256_storeu_si256(words + 1, x.high);
}
inline Words subtract(Words a, Words b) {
  return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)};
}
inline Lanes floats_of(Words x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline Lanes bits_as_floats(Words x) { return {_mm256_castsi256_ps(x.low), _mm256_castsi256_ps(x.high)}; }

template <int SHIFT> inline __m256 int4_values(__m256i x) {
  const __m256i nibble = _mm256_and_si256(_mm256_srli_epi32(x, SHIFT), _mm256_set1_epi32(15));
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(nibble, _mm256_set1_epi32(8)));
}
template <int SHIFT> inline Lanes int4_values(Words x) { return {int4_values<SHIFT>(x.low), int4_values<SHIFT>(x.high)}; }

inline void store_bytes(uint8_t *to, Mask mask, Lanes x, int offset) {
  const __m256i more = _mm256_set1_epi32(offset), bytes = _mm256_set1_epi32(0xff);
  const __m256i low = _mm256_and_si256(_mm256_add_epi32(_mm256_cvtps_epi32(x.low), more), bytes);
  const __m256i high = _mm256_and_si256(_mm256_add_epi32(_mm256_cvtps_epi32(x.high), more), bytes);
  const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
  const __m128i all = _mm_packus_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
  alignas(16) uint8_t values[16];
  _mm_store_si128(reinterpret_cast<__m128i *>(values), all);
  std::memcpy(to, values, mask.count);
}

#if INT8_WORDS == 1
inline void store_int8(uint32_t *to, Mask mask, Lanes x) {
  store_bytes(reinterpret_cast<uint8_t *>(to), mask, x, INT8_ZERO);
}
#else
// Of each four values the first and the third, then the second and the fourth, as `fours` has them.
inline void store_int8(uint32_t *to, Mask mask, Lanes x) {
  const __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));
  const __m256i ordered = _mm256_permute4x64_epi64(mixed, 0xd8);
  alignas(32) int16_t values[16];
  _mm256_store_si256(reinterpret_cast<__m256i *>(values),
                     _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(ordered, 0xd8), 0xd8));
  std::memcpy(to, values, 2 * mask.count);
}
#endif

inline Lanes add_product(Lanes sum, Words a, Words b) {
  return multiply_add(bits_as_floats(a), bits_as_floats(b), sum);
}

inline Lanes first_of_pairs(Words x) {
  return bits_as_floats({_mm256_slli_epi32(x.low, 16), _mm256_slli_epi32(x.high, 16)});
}
inline Lanes second_of_pairs(Words x) {
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return bits_as_floats({_mm256_and_si256(x.low, mask), _mm256_and_si256(x.high, mask)});
}
inline __m256 add_pairs(__m256 sum, __m256 a, __m256 b) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u)));
  const auto first = [](__m256 x) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 16)); };
  sum = _mm256_fmadd_ps(first(a), first(b), sum);
  return _mm256_fmadd_ps(_mm256_and_ps(a, mask), _mm256_and_ps(b, mask), sum);
}
inline Lanes add_pairs(Lanes sum, Lanes a, Lanes b) {
  return {add_pairs(sum.low, a.low, b.low), add_pairs(sum.high, a.high, b.high)};
}
inline Lanes add_pairs(Lanes sum, Words a, Words b) { return add_pairs(sum, bits_as_floats(a), bits_as_floats(b)); }

#if INT8_WORDS == 1
inline Words add_fours(Words sum, Words a, Words b) {
  return {_mm256_dpbusd_avx_epi32(sum.low, a.low, b.low), _mm256_dpbusd_avx_epi32(sum.high, a.high, b.high)};
}
#else
// Four int8 of each word in two words of 16 bits a value: products of bytes would be cut off at 16 bits.
struct Fours {
  Words even, odd;
};
inline Words even_bytes(Words x) {
  const auto even = [](__m256i x) { return _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8); };
  return {even(x.low), even(x.high)};
}
inline Words odd_bytes(Words x) { return {_mm256_srai_epi16(x.low, 8), _mm256_srai_epi16(x.high, 8)}; }
inline Fours fours(Words x) { return {even_bytes(x), odd_bytes(x)}; }

inline Words add_twos(Words sum, Words a, Words b) {
  return {_mm256_add_epi32(sum.low, _mm256_madd_epi16(a.low, b.low)),
          _mm256_add_epi32(sum.high, _mm256_madd_epi16(a.high, b.high))};
}
inline Words add_fours(Words sum, Words even, Words odd, Fours b) {
  return add_twos(add_twos(sum, even, b.even), odd, b.odd);
}
#endif

} // namespace lanes
