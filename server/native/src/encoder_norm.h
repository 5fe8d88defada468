// Encoders: the norm that follows every block.
#pragma once

#include "encoder_lanes.h"
#include "python.h"

namespace encoder {

// stream = norm(x + stream); copy, if there is one, the same in bfloat16.
template <class T>
void add_norm(const T *x, float *stream, uint16_t *copy, const float *weight, const float *bias, int64_t rows,
              int64_t width, float eps) {
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, 16)
  for (int64_t row = 0; row < rows; row++) {
    float *to = stream + row * width;
    const T *from = x + row * width;
    for (int64_t i = 0; i < width; i++) to[i] += widen(from[i]);
    Lanes total = {};
    for (int64_t i = 0; i < width; i += LANES) total += lanes(to + i);
    const float mean = sum(total) / width;
    Lanes squares = {};
    for (int64_t i = 0; i < width; i += LANES) {
      const Lanes distance = lanes(to + i) - mean;
      squares += distance * distance;
    }
    const float factor = 1.0f / std::sqrt(sum(squares) / width + eps);
    for (int64_t i = 0; i < width; i += LANES)
      lanes(to + i) = (lanes(to + i) - mean) * factor * lanes(weight + i) + lanes(bias + i);
    if (copy != nullptr)
      for (int64_t i = 0; i < width; i++) narrow(to[i], copy + row * width + i);
  }
}

} // namespace encoder

namespace {

// x, stream, copy or 0, weight, bias, rows, width, eps, is_bfloat16 (of x). The width is a multiple of 16.
PyObject *encoder_add_norm(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(9, count, "encoder_add_norm")) return nullptr;
  const auto *x = address<void>(args[0]);
  auto *stream = address<float>(args[1]);
  auto *copy = address<uint16_t>(args[2]);
  const auto *weight = address<float>(args[3]), *bias = address<float>(args[4]);
  const int64_t rows = integer(args[5]), width = integer(args[6]);
  const float eps = real(args[7]);
  const bool is_bfloat16 = integer(args[8]) != 0;
  return unlocked([&] {
    if (is_bfloat16) {
      encoder::add_norm(static_cast<const uint16_t *>(x), stream, copy, weight, bias, rows, width, eps);
    } else {
      encoder::add_norm(static_cast<const float *>(x), stream, copy, weight, bias, rows, width, eps);
    }
  });
}

} // namespace
