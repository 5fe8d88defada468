// Vectors of floats, as wide as the instruction set has them, and what the kernels for encoders compute with them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace encoder {

#ifdef __AVX512F__
constexpr int64_t LANES = 16;
constexpr int MANY = 4; // vectors of a query at once
#else
constexpr int64_t LANES = 8;
constexpr int MANY = 2;
#endif
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline float widen(float value) { return value; }

inline float widen(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float wide;
  std::memcpy(&wide, &bits, sizeof wide);
  return wide;
}

inline void narrow(float value, float *to) { *to = value; }

inline void narrow(float value, uint16_t *to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  *to = value != value ? 0x7fc0 : static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline Lanes &lanes(float *values) { return *reinterpret_cast<Lanes *>(values); }

inline const Lanes &lanes(const float *values) { return *reinterpret_cast<const Lanes *>(values); }

// Halves are added until one place is left: always in the same order.
inline float sum(const Lanes &values) {
  float parts[LANES];
  std::memcpy(parts, &values, sizeof parts);
  for (int64_t width = LANES / 2; width > 0; width /= 2)
    for (int64_t i = 0; i < width; i++) parts[i] += parts[i + width];
  return parts[0];
}

// exp of values that are at most 0: exactly 0 below -87, and what is not a number stays none.
inline void exponential(Lanes &x) {
  const Bits is_tiny = x < -87.0f;
  const Lanes bounded = is_tiny ? Lanes{} - 87.0f : x;
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
  const Lanes shifted = bounded * 1.44269504f + 12582912.0f;
  const Lanes exponent = shifted - 12582912.0f;
  const Lanes rest = (bounded - exponent * 0.693359375f) + exponent * 2.12194440e-4f;
  Lanes value = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  value = value * rest + 8.3334519073e-3f;
  value = value * rest + 4.1665795894e-2f;
  value = value * rest + 1.6666665459e-1f;
  value = value * rest + 5.0000001201e-1f;
  value = value * rest * rest + rest + 1.0f;
  const Bits power = ((Bits)shifted - 0x4b400000 + 127) << 23;
  x = is_tiny ? Lanes{} : value * (Lanes)power;
}

} // namespace encoder
