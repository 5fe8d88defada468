// Values of the cache as the attention kernels load, multiply and round them.
#pragma once

#include "lanes_math.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace attention {

using namespace lanes;
// By name, since this namespace has more functions of this name.
using lanes::load;

// What the cache holds: a word of 32 bits is one float, or two bfloat16 that are multiplied and added together.
struct Float32 {
  using Value = float;
  using Stored = float;
  using Weight = float;
  static constexpr int PACK = 1;
  static constexpr bool HAS_SCALES = false;
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
  using Stored = uint16_t;
  using Weight = uint16_t;
  static constexpr int PACK = 2;
  static constexpr bool HAS_SCALES = false;
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
