// Norms over the rows of a dense matrix. A row is summed in one order, whatever the number of rows and threads.
#pragma once

#include "python.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace elementwise {

using bf16 = uint16_t;

inline float wide(float value) { return value; }

inline float wide(bf16 value) { return std::bit_cast<float>(static_cast<uint32_t>(value) << 16); }

template <class T> inline T rounded(float value);

template <> inline float rounded<float>(float value) { return value; }

// To the nearest, of two the even one; what is no number stays so.
template <> inline bf16 rounded<bf16>(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<bf16>(value == value ? nearest : 0x7fc0);
}

// Partial sums of a row: place i of the row goes to lane i % LANES, and the lanes are added in pairs.
constexpr int LANES = 64;

template <class Term> inline float total(int64_t width, Term term) {
  float sums[LANES] = {};
  int64_t first = 0;
  for (; first + LANES <= width; first += LANES)
    for (int lane = 0; lane < LANES; ++lane) sums[lane] += term(first + lane);
  for (int lane = 0; first + lane < width; ++lane) sums[lane] += term(first + lane);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

template <class T>
void rms_norm_row(const T *x, const float *weight, const T *residual, T *out, int64_t width, float eps) {
  const float squares = total(width, [=](int64_t i) { return wide(x[i]) * wide(x[i]); });
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
  if (residual)
    for (int64_t i = 0; i < width; ++i) out[i] = rounded<T>(wide(x[i]) * scale * weight[i] + wide(residual[i]));
  else
    for (int64_t i = 0; i < width; ++i) out[i] = rounded<T>(wide(x[i]) * scale * weight[i]);
}

template <class T>
void layer_norm_row(const T *x, const float *weight, const float *bias, T *out, int64_t width, float eps) {
  const float mean = total(width, [=](int64_t i) { return wide(x[i]); }) / static_cast<float>(width);
  const float spread = total(width, [=](int64_t i) { return (wide(x[i]) - mean) * (wide(x[i]) - mean); });
  const float scale = 1.0f / std::sqrt(spread / static_cast<float>(width) + eps);
  if (bias)
    for (int64_t i = 0; i < width; ++i) out[i] = rounded<T>((wide(x[i]) - mean) * scale * weight[i] + bias[i]);
  else
    for (int64_t i = 0; i < width; ++i) out[i] = rounded<T>((wide(x[i]) - mean) * scale * weight[i]);
}

// To wake a thread costs as much as so many values; below it neither threads nor the interpreter's lock change hands.
constexpr int64_t ENOUGH_FOR_A_THREAD = 32768;

inline bool is_little(int64_t rows, int64_t width) { return rows * width <= ENOUGH_FOR_A_THREAD; }

template <class Row> void each_row(int64_t rows, int64_t width, Row row) {
  if (is_little(rows, width)) {
    for (int64_t i = 0; i < rows; ++i) row(i);
    return;
  }
  // One thread or all: the runtime ends those that a smaller team leaves out, and the next kernel starts them anew.
  const int threads = rows * width < 2 * ENOUGH_FOR_A_THREAD ? 1 : num_threads;
  const int64_t chunk = std::max<int64_t>(1, ENOUGH_FOR_A_THREAD / 4 / width);
#pragma omp parallel for num_threads(threads) schedule(dynamic, chunk)
  for (int64_t i = 0; i < rows; ++i) row(i);
}

template <class T>
void rms_norm_rows(const T *x, const float *weight, const T *residual, T *out, int64_t rows, int64_t width, float eps) {
  each_row(rows, width, [=](int64_t i) {
    rms_norm_row(x + i * width, weight, residual ? residual + i * width : nullptr, out + i * width, width, eps);
  });
}

template <class T>
void layer_norm_rows(const T *x, const float *weight, const float *bias, T *out, int64_t rows, int64_t width, float eps) {
  each_row(rows, width, [=](int64_t i) {
    layer_norm_row(x + i * width, weight, bias, out + i * width, width, eps);
  });
}

template <class Body> PyObject *unlocked_if_much(int64_t rows, int64_t width, Body body) {
  if (!is_little(rows, width)) return unlocked(body);
  if (PyErr_Occurred()) return nullptr;
  body();
  Py_RETURN_NONE;
}

template <class Row> PyObject *for_each_row(int64_t rows, int64_t width, Row row) {
  return unlocked_if_much(rows, width, [=] { each_row(rows, width, row); });
}

template <class T> PyObject *rms_norm_of(Args args, int64_t rows, int64_t width, float eps) {
  const T *x = address<T>(args[0]), *residual = address<T>(args[2]);
  const float *weight = address<float>(args[1]);
  T *out = address<T>(args[3]);
  return unlocked_if_much(rows, width, [=] { rms_norm_rows(x, weight, residual, out, rows, width, eps); });
}

template <class T> PyObject *layer_norm_of(Args args, int64_t rows, int64_t width, float eps) {
  const T *x = address<T>(args[0]);
  const float *weight = address<float>(args[1]), *bias = address<float>(args[2]);
  T *out = address<T>(args[3]);
  return unlocked_if_much(rows, width, [=] { layer_norm_rows(x, weight, bias, out, rows, width, eps); });
}

// rms_norm(x, weight, residual, out, size, width, eps, is_bf16)
inline PyObject *rms_norm(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(8, count, "rms_norm")) return nullptr;
  const int64_t width = integer(args[5]), rows = integer(args[4]) / std::max<int64_t>(width, 1);
  const float eps = real(args[6]);
  return integer(args[7]) ? rms_norm_of<bf16>(args, rows, width, eps) : rms_norm_of<float>(args, rows, width, eps);
}

// layer_norm(x, weight, bias, out, size, width, eps, is_bf16)
inline PyObject *layer_norm(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(8, count, "layer_norm")) return nullptr;
  const int64_t width = integer(args[5]), rows = integer(args[4]) / std::max<int64_t>(width, 1);
  const float eps = real(args[6]);
  return integer(args[7]) ? layer_norm_of<bf16>(args, rows, width, eps)
                          : layer_norm_of<float>(args, rows, width, eps);
}

} // namespace elementwise

using elementwise::layer_norm;
using elementwise::rms_norm;

#define ELEMENTWISE_METHODS METHOD(rms_norm), METHOD(layer_norm)
