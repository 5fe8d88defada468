// Sixteen floats at a time, in the same words for both instruction sets. All sums are written as explicit fused
// multiply-adds, so that no compiler's choice changes a bit between one caller and the next.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>

namespace attention {

constexpr int LANES = 16;
constexpr float INFINITE = std::numeric_limits<float>::infinity();

#ifdef __AVX512BF16__

using Lanes = __m512;

inline Lanes all(float value) { return _mm512_set1_ps(value); }
inline Lanes load(const float *from) { return _mm512_loadu_ps(from); }
inline void store(float *to, Lanes x) { _mm512_storeu_ps(to, x); }
inline Lanes add(Lanes a, Lanes b) { return _mm512_add_ps(a, b); }
inline Lanes subtract(Lanes a, Lanes b) { return _mm512_sub_ps(a, b); }
inline Lanes multiply(Lanes a, Lanes b) { return _mm512_mul_ps(a, b); }
inline Lanes divide(Lanes a, Lanes b) { return _mm512_div_ps(a, b); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
// The second where either is no number.
inline Lanes larger(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }
inline Lanes smaller(Lanes a, Lanes b) { return _mm512_min_ps(a, b); }
inline Lanes nearest(Lanes x) { return _mm512_roundscale_ps(x, 0); }
// x * 2^n
inline Lanes scaled(Lanes x, Lanes n) { return _mm512_scalef_ps(x, n); }

// Lanes first to last - 1 of x, -inf elsewhere.
inline Lanes between(Lanes x, int first, int last) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __mmask16 kept = _mm512_cmpge_epi32_mask(lane, _mm512_set1_epi32(first)) &
                         _mm512_cmplt_epi32_mask(lane, _mm512_set1_epi32(last));
  return _mm512_mask_blend_ps(kept, all(-INFINITE), x);
}

// Two times sixteen floats, each to the nearest bfloat16.
inline void store_rounded(uint16_t *to, Lanes a, Lanes b) {
  _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
}

// Adds the products of both bfloat16 of each word.
inline Lanes add_pairs(Lanes sum, Lanes a, Lanes b) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
}

#else

struct Lanes {
  __m256 low, high;
};

inline Lanes all(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline Lanes load(const float *from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float *to, Lanes x) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
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

// In two factors: 2^n itself may be too small for a normal number.
inline __m256 scaled(__m256 x, __m256 n) {
  const __m256i whole = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(whole, 1);
  const auto power = [](__m256i e) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e, _mm256_set1_epi32(127)), 23));
  };
  return _mm256_mul_ps(_mm256_mul_ps(x, power(half)), power(_mm256_sub_epi32(whole, half)));
}
inline Lanes scaled(Lanes x, Lanes n) { return {scaled(x.low, n.low), scaled(x.high, n.high)}; }

inline __m256 between(__m256 x, int first, int last) {
  const __m256i lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  const __m256i kept = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(first), lane),
                                           _mm256_cmpgt_epi32(_mm256_set1_epi32(last), lane));
  return _mm256_blendv_ps(_mm256_set1_ps(-INFINITE), x, _mm256_castsi256_ps(kept));
}
inline Lanes between(Lanes x, int first, int last) {
  return {between(x.low, first, last), between(x.high, first - 8, last - 8)};
}

inline void store_rounded(uint16_t *to, __m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i number = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_ORD_Q));
  const __m256i wide = _mm256_srli_epi32(_mm256_blendv_epi8(_mm256_set1_epi32(0x7fc00000), up, number), 16);
  const __m128i narrow = _mm_packus_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i *>(to), narrow);
}
inline void store_rounded(uint16_t *to, Lanes a, Lanes b) {
  store_rounded(to, a.low);
  store_rounded(to + 8, a.high);
  store_rounded(to + 16, b.low);
  store_rounded(to + 24, b.high);
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

#endif

// In one order, whoever calls.
inline float sum(Lanes x) {
  alignas(64) float lanes[LANES];
  store(lanes, x);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

inline float largest(Lanes x) {
  alignas(64) float lanes[LANES];
  store(lanes, x);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  return lanes[0];
}

// e^x = 2^power * (1 + rest * slope), with |rest| <= ln 2 / 2.
struct Exponential {
  Lanes power, rest, slope;
};

inline Exponential exponential(Lanes x) {
  const Lanes power = nearest(multiply(x, all(1.44269504f)));
  Lanes rest = multiply_add(power, all(-0.693359375f), x);
  rest = multiply_add(power, all(2.12194440e-4f), rest);
  Lanes slope = all(1.3981999507e-3f);
  for (const float coefficient : {8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.0f})
    slope = multiply_add(slope, rest, all(coefficient));
  return {power, rest, slope};
}

// e^x for x <= 0, within 2e-7 of the result: exactly 1 at 0, exactly 0 at -inf.
inline Lanes exp(Lanes x) {
  const Exponential e = exponential(larger(all(-120.0f), x));
  return scaled(multiply_add(e.rest, e.slope, all(1.0f)), e.power);
}

inline float exp(float x) {
  alignas(64) float lanes[LANES];
  store(lanes, exp(all(x)));
  return lanes[0];
}

// By e^2x - 1, which keeps its digits near 0.
inline Lanes tanh(Lanes x) {
  const Exponential e = exponential(smaller(all(20.0f), larger(all(-20.0f), add(x, x))));
  const Lanes two_to_power = scaled(all(1.0f), e.power);
  const Lanes less_one =
      multiply_add(two_to_power, multiply(e.rest, e.slope), subtract(two_to_power, all(1.0f)));
  return divide(less_one, add(less_one, all(2.0f)));
}

// What the cache holds: a word of 32 bits is one float, or two bfloat16 that are multiplied and added together.
struct Float32 {
  using Value = float;
  static constexpr int PACK = 1;
  static constexpr float TOO_LARGE = INFINITE; // and all above it is not finite in the cache
  static uint32_t bits(float value) { return std::bit_cast<uint32_t>(value); }
  static Lanes add_product(Lanes sum, Lanes a, Lanes b) { return multiply_add(a, b, sum); }
  static void store_two(float *to, Lanes a, Lanes b) {
    store(to, a);
    store(to + LANES, b);
  }
  static float wide(float value) { return value; }
  static float rounded(float value) { return value; }
};

struct Bfloat16 {
  using Value = uint16_t;
  static constexpr int PACK = 2;
  static constexpr float TOO_LARGE = 0x1.ffp127f;
  static uint32_t bits(uint16_t value) { return value; }
  static Lanes add_product(Lanes sum, Lanes a, Lanes b) { return add_pairs(sum, a, b); }
  static void store_two(uint16_t *to, Lanes a, Lanes b) { store_rounded(to, a, b); }
  static float wide(uint16_t value) { return std::bit_cast<float>(static_cast<uint32_t>(value) << 16); }
  static uint16_t rounded(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t up = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return static_cast<uint16_t>(value == value ? up : 0x7fc0);
  }
};

} // namespace attention
