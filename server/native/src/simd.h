// Sixteen floats at a time, and the functions of them that torch has and the instruction set has not.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __AVX512BF16__
#include <immintrin.h>
#include <initializer_list>

using bfloat16 = uint16_t;

// The first `count` of 16 places, for ends of rows.
inline __mmask16 first(int64_t count) { return count >= 16 ? 0xffff : static_cast<__mmask16>((1u << count) - 1); }

inline __m512 load(const float *from, __mmask16 mask) { return _mm512_maskz_loadu_ps(mask, from); }
inline __m512 load(const bfloat16 *from, __mmask16 mask) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline void store(float *to, __mmask16 mask, __m512 x) { _mm512_mask_storeu_ps(to, mask, x); }
inline void store(bfloat16 *to, __mmask16 mask, __m512 x) {
  _mm256_mask_storeu_epi16(to, mask, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

// e^x within 2e-7 of the result, for all x; 0 at minus infinity, infinity above 88.8, NaN stays NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial of degree 6 for e^r, then n goes into the exponent.
inline __m512 exp16(__m512 x) {
  x = _mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-104.0f), x));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 y = _mm512_set1_ps(1.3981999507e-3f);
  for (float c : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.0f, 1.0f})
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(c));
  return _mm512_scalef_ps(y, n);
}

// Abramowitz and Stegun 7.1.26: within 1.5e-7 of erf.
inline __m512 erf16(__m512 x) {
  const __m512 size = _mm512_abs_ps(x);
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(size, _mm512_set1_ps(0.3275911f), one));
  __m512 y = _mm512_set1_ps(1.061405429f);
  for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(c));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(y, t), exp16(_mm512_mul_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), x))));
  const __m512 result = _mm512_sub_ps(one, tail);
  const __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(static_cast<int>(0x80000000u)));
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(result), sign));
}

enum class Activation : int64_t { none, silu, gelu, gelu_tanh, relu };

inline __m512 sigmoid16(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  return _mm512_div_ps(one, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
}

inline __m512 activate(Activation kind, __m512 x) {
  switch (kind) {
  case Activation::none: return x;
  case Activation::silu: return _mm512_mul_ps(x, sigmoid16(x));
  case Activation::gelu: {
    const __m512 half = _mm512_mul_ps(x, _mm512_set1_ps(0.5f));
    return _mm512_fmadd_ps(half, erf16(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f))), half);
  }
  case Activation::gelu_tanh: {
    // 0.5 x (1 + tanh u) = x sigmoid(2 u)
    const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
    const __m512 u = _mm512_mul_ps(_mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x), _mm512_set1_ps(1.5957691216f));
    return _mm512_mul_ps(x, sigmoid16(u));
  }
  case Activation::relu: return _mm512_max_ps(x, _mm512_setzero_ps());
  }
  return x;
}
#endif
