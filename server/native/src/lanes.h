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
//   inverse(x)                    1 / x, within a bit, for 1 <= x < 2^126
//   one_beyond(limit, x, other)   1 with the sign of x where |x| > limit, else other
//   between(x, first, last)       lanes first to last - 1 of x, -inf elsewhere
//   store_rounded(to, a, b)       two times sixteen floats, each to the nearest bfloat16
//   store_bytes(to, mask, x, n)   the nearest integers plus n, as bytes
//   add_pairs(sum, a, b)          adds the products of both bfloat16 of each word
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

// In one order for all callers.
inline float sum(Lanes x) {
  alignas(64) float values[LANES];
  store(values, x);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) values[i] += values[i + half];
  return values[0];
}

inline float largest(Lanes x) {
  alignas(64) float values[LANES];
  store(values, x);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) values[i] = values[i] > values[i + half] ? values[i] : values[i + half];
  return values[0];
}

} // namespace lanes
