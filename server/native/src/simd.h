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

// Within 2e-7 of erf: x times a polynomial in x^2, whose Chebyshev interpolation over |x| <= 3.95 gave the coefficients.
// Beyond, erf is 1 or -1 to within a rounding.
inline __m512 erf16(__m512 x) {
  const __m512 limit = _mm512_set1_ps(3.95f), one = _mm512_set1_ps(1.0f);
  const __mmask16 is_beyond = _mm512_cmp_ps_mask(_mm512_abs_ps(x), limit, _CMP_GT_OQ);
  const __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(INT32_MIN));
  const __m512 u = _mm512_fmsub_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(0.12818459f), one);
  __m512 y = _mm512_set1_ps(-0.00103814178f);
  for (float c : {0.00242036604f, -0.00124377245f, 0.00181908964f, -0.0085868258f, 0.0153355692f, -0.020592276f,
                  0.0304292683f, -0.044435177f, 0.0591318868f, -0.0743023604f, 0.0904566869f, -0.108639248f,
                  0.133178219f, -0.178769499f, 0.358000755f})
    y = _mm512_fmadd_ps(y, u, _mm512_set1_ps(c));
  const __m512i signed_one = _mm512_or_si512(_mm512_castps_si512(one), sign);
  return _mm512_mask_mov_ps(_mm512_mul_ps(x, y), is_beyond, _mm512_castsi512_ps(signed_one));
}

enum class Activation : int64_t { none, silu, gelu, gelu_tanh, relu };

inline __m512 sigmoid16(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  // Up to here 1 + e^-x is finite. One step of Newton from 14 bits gives all but the last.
  const __m512 power = exp16(_mm512_min_ps(_mm512_set1_ps(87.0f), _mm512_sub_ps(_mm512_setzero_ps(), x)));
  const __m512 whole = _mm512_add_ps(one, power), near = _mm512_rcp14_ps(whole);
  return _mm512_mul_ps(near, _mm512_fnmadd_ps(whole, near, _mm512_set1_ps(2.0f)));
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
  // The second where either is no number: that stays none, as in torch.
  case Activation::relu: return _mm512_max_ps(_mm512_setzero_ps(), x);
  }
  return x;
}
#endif
