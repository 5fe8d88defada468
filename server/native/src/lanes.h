// Sixteen floats or words of 32 bits at a time, in the same words for every instruction set: `Lanes` and `Words`, and
// a `Mask` of the first of them for ends of rows. Sums are explicit fused multiply-adds, so that the compiler's choices
// do not change a bit between one caller and the next.
//
// What lanes_avx512.h and lanes_avx2.h define:
//   first(count)                  the mask of so many lanes, at most all
//   load, store                   of float or bfloat16; lanes outside of the mask are 0, or not touched
//   multiply_add(a, b, c)         a * b + c, rounded once
//   larger(a, b), smaller(a, b)   b where either is NaN
//   nearest(x)                    to integers, of two the even one
//   scaled(x, n)                  x * 2^n
//   low_half(x), high_half(x)     eight floats each
//   inverse(x)                    1 / x, within a bit, for 1 <= x < 2^126
//   one_beyond(limit, x, other)   1 with the sign of x where |x| > limit, else other
//   between(x, first, last)       lanes first to last - 1 of x, -inf elsewhere
//   store_rounded(to, a, b)       two times sixteen floats, each to the nearest bfloat16
//   rounded_pairs(low, high)      words of two bfloat16, each the nearest
//   int4_values<shift>(x)         the four bits of each word from `shift` on, minus 8
//   store_bytes(to, mask, x, n)   the nearest integers plus n, as bytes
//   store_int8(to, mask, x)       the nearest integers plus INT8_ZERO, in INT8_WORDS words for each four values
//   add_product, add_pairs, add_fours(sum, a, b)
//                                 add the product of the float, of both bfloat16, or of all four int8 of each word; sums
//                                 of int8 are exact for values of a stored by `store_int8`, and -127..127 of b
#pragma once

#include <cstdint>
#include <limits>

namespace lanes {

using bfloat16 = uint16_t;

constexpr int LANES = 16;
constexpr float INFINITE = std::numeric_limits<float>::infinity();

} // namespace lanes

#ifdef __AVX512BF16__
#include "lanes_avx512.h"
#else
#include "lanes_avx2.h"
#endif

namespace lanes {

// The first half is combined with the second until one lane is left: one order for all callers.
template <class Eight, class Four> inline float folded(Lanes x, Eight combine_eight, Four combine_four) {
  const __m256 eight = combine_eight(low_half(x), high_half(x));
  const __m128 four = combine_four(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = combine_four(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(combine_four(two, _mm_movehdup_ps(two)));
}

inline float sum(Lanes x) {
  return folded(x, [](__m256 a, __m256 b) { return _mm256_add_ps(a, b); },
                [](__m128 a, __m128 b) { return _mm_add_ps(a, b); });
}

inline float largest(Lanes x) {
  return folded(x, [](__m256 a, __m256 b) { return _mm256_max_ps(a, b); },
                [](__m128 a, __m128 b) { return _mm_max_ps(a, b); });
}

} // namespace lanes
