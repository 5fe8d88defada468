// Sixteen floats in one register of 512 bits. lanes.h says what each function promises.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace lanes {

using Lanes = __m512;
using Words = __m512i;
using Mask = __mmask16;

#define INT8_WORDS 1
constexpr int INT8_ZERO = 128;

inline Mask first(int64_t count) { return count >= 16 ? 0xffff : static_cast<Mask>((1u << count) - 1); }

inline Lanes all(float value) { return _mm512_set1_ps(value); }
inline Lanes load(const float *from) { return _mm512_loadu_ps(from); }
inline Lanes load(const float *from, Mask mask) { return _mm512_maskz_loadu_ps(mask, from); }
inline Lanes load(const bfloat16 *from, Mask mask) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store(float *to, Lanes x) { _mm512_storeu_ps(to, x); }
inline void store(float *to, Mask mask, Lanes x) { _mm512_mask_storeu_ps(to, mask, x); }
inline void store(bfloat16 *to, Mask mask, Lanes x) {
  _mm256_mask_storeu_epi16(to, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

inline Lanes add(Lanes a, Lanes b) { return _mm512_add_ps(a, b); }
inline Lanes subtract(Lanes a, Lanes b) { return _mm512_sub_ps(a, b); }
inline Lanes multiply(Lanes a, Lanes b) { return _mm512_mul_ps(a, b); }
inline Lanes divide(Lanes a, Lanes b) { return _mm512_div_ps(a, b); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
inline Lanes larger(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }
inline Lanes smaller(Lanes a, Lanes b) { return _mm512_min_ps(a, b); }
inline Lanes absolute(Lanes x) { return _mm512_abs_ps(x); }
inline Lanes nearest(Lanes x) { return _mm512_roundscale_ps(x, 0); }
inline Lanes scaled(Lanes x, Lanes n) { return _mm512_scalef_ps(x, n); }

// One step of Newton from 14 bits gives all but the last.
inline Lanes inverse(Lanes x) {
  const Lanes near = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(near, _mm512_fnmadd_ps(x, near, all(2.0f)));
}

inline Lanes one_beyond(Lanes limit, Lanes x, Lanes otherwise) {
  const Mask is_beyond = _mm512_cmp_ps_mask(absolute(x), limit, _CMP_GT_OQ);
  const __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN));
  const __m512i one = _mm512_or_si512(_mm512_castps_si512(all(1.0f)), sign);
  return _mm512_mask_mov_ps(otherwise, is_beyond, _mm512_castsi512_ps(one));
}

inline __m256 low_half(Lanes x) { return _mm512_castps512_ps256(x); }
inline __m256 high_half(Lanes x) { return _mm512_extractf32x8_ps(x, 1); }

inline Lanes between(Lanes x, int first, int last) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const Mask kept = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(first)) &
                    _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(last));
  return _mm512_mask_blend_ps(kept, all(-INFINITE), x);
}

inline void store_rounded(bfloat16 *to, Lanes a, Lanes b) {
  _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
}

inline Words rounded_pairs(Lanes low, Lanes high) {
  const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                          5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(places, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}

inline Words all_words(uint32_t value) { return _mm512_set1_epi32(static_cast<int>(value)); }
inline Words load_words(const void *from) { return _mm512_loadu_si512(from); }
inline Words load_bytes(const uint8_t *from) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}
inline void store_words(void *to, Words x) { _mm512_storeu_si512(to, x); }
inline Words subtract(Words a, Words b) { return _mm512_sub_epi32(a, b); }
inline Lanes floats_of(Words x) { return _mm512_cvtepi32_ps(x); }
inline Lanes bits_as_floats(Words x) { return _mm512_castsi512_ps(x); }

template <int SHIFT> inline Lanes int4_values(Words x) {
  const Lanes values = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
  return _mm512_permutexvar_ps(_mm512_srli_epi32(x, SHIFT), values);
}

inline void store_bytes(uint8_t *to, Mask mask, Lanes x, int offset) {
  const __m512i moved = _mm512_add_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(offset));
  _mm_mask_storeu_epi8(to, mask, _mm512_cvtepi32_epi8(moved));
}
inline void store_int8(uint32_t *to, Mask mask, Lanes x) {
  store_bytes(reinterpret_cast<uint8_t *>(to), mask, x, INT8_ZERO);
}

inline Lanes add_product(Lanes sum, Words a, Words b) {
  return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
}
inline Lanes add_pairs(Lanes sum, Words a, Words b) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); // the intrinsic makes GCC copy every sum
  return sum;
}
inline Lanes add_pairs(Lanes sum, Lanes a, Lanes b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}
inline Words add_fours(Words sum, Words a, Words b) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}

} // namespace lanes
