// Weights of four bits: panels of 48 rows as everywhere, of each row two weights of neighbouring k in a byte, the lower
// one in the lower half; [panels, K / 2, 48] bytes. -8..7 are stored as 0..15. Each 32 weights along K share a scale:
// [panels, K / 32, 48] bfloat16.
#pragma once

#include "lanes.h"

namespace int4 {

using namespace lanes;

constexpr int64_t PANEL = 48, GROUP = 32;

inline void put(float *to, int64_t pair, Lanes low, Lanes high) {
  store(to + 2 * pair * PANEL, low);
  store(to + (2 * pair + 1) * PANEL, high);
}

// Two neighbours along k in one word.
inline void put(bfloat16 *to, int64_t pair, Lanes low, Lanes high) {
  store_words(to + 2 * pair * PANEL, rounded_pairs(low, high));
}

// One panel as `add_up` reads it, for inputs of type `In`.
template <class In> void unpack(const void *weight, const void *scale, int64_t panel, int64_t width, uint32_t *unpacked) {
  const uint8_t *bytes = static_cast<const uint8_t *>(weight) + panel * (width / 2) * PANEL;
  const bfloat16 *scales = static_cast<const bfloat16 *>(scale) + panel * (width / GROUP) * PANEL;
  In *to = reinterpret_cast<In *>(unpacked);
  for (int64_t v = 0; v < PANEL; v += LANES)
    for (int64_t group = 0; group < width / GROUP; ++group) {
      const Lanes factor = load(scales + group * PANEL + v, first(LANES));
      for (int64_t pair = group * GROUP / 2; pair < (group + 1) * GROUP / 2; ++pair) {
        const Words two = load_bytes(bytes + pair * PANEL + v);
        const Lanes low = multiply(int4_values<0>(two), factor), high = multiply(int4_values<4>(two), factor);
        put(to + (sizeof(In) == 4 ? v : 2 * v), pair, low, high);
      }
    }
}

} // namespace int4
