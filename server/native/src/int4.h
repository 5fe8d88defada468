// Weights of four bits: panels of 48 rows as everywhere, of each row two weights of neighbouring k in a byte, the lower
// one in the lower half; [panels, K / 2, 48] bytes. -8..7 are stored as 0..15. Each 32 weights along K share a scale:
// [panels, K / 32, 48] bfloat16.
#pragma once

#include "lanes.h"

#ifdef __AVX512BF16__
namespace int4 {

using namespace lanes;

constexpr int64_t PANEL = 48, GROUP = 32;

inline void put(float *to, int64_t pair, __m512 low, __m512 high) {
  _mm512_storeu_ps(to + 2 * pair * PANEL, low);
  _mm512_storeu_ps(to + (2 * pair + 1) * PANEL, high);
}

// Two neighbours along k in one word.
inline void put(bfloat16 *to, int64_t pair, __m512 low, __m512 high) {
  const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                          5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  _mm512_storeu_si512(to + 2 * pair * PANEL, _mm512_permutexvar_epi16(places, both));
}

// One panel as `multiply` reads it, for inputs of type `In`.
template <class In> void unpack(const void *weight, const void *scale, int64_t panel, int64_t width, uint32_t *unpacked) {
  const __m512 values = _mm512_set_ps(7, 6, 5, 4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -6, -7, -8);
  const uint8_t *bytes = static_cast<const uint8_t *>(weight) + panel * (width / 2) * PANEL;
  const bfloat16 *scales = static_cast<const bfloat16 *>(scale) + panel * (width / GROUP) * PANEL;
  In *to = reinterpret_cast<In *>(unpacked);
  for (int64_t v = 0; v < PANEL; v += 16)
    for (int64_t group = 0; group < width / GROUP; ++group) {
      const __m512 factor = load(scales + group * PANEL + v, 0xffff);
      for (int64_t pair = group * GROUP / 2; pair < (group + 1) * GROUP / 2; ++pair) {
        const __m128i packed = _mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes + pair * PANEL + v));
        const __m512i two = _mm512_cvtepu8_epi32(packed);
        const __m512 low = _mm512_mul_ps(_mm512_permutexvar_ps(two, values), factor);
        const __m512 high = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32(two, 4), values), factor);
        put(to + (sizeof(In) == 4 ? v : 2 * v), pair, low, high);
      }
    }
}

} // namespace int4
#endif
