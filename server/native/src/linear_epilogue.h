// What every product ends with: out = residual + gate(activation(product + bias)), sixteen places of a row at a time.
#pragma once

#include "lanes_math.h"

namespace linear_kernels {

using namespace lanes;

constexpr int64_t VECTORS = 3, PANEL = LANES * VECTORS;

// What an adapter changes of one row: scale * product + added, before the bias. Places of scale count rows of the packed
// weight, those of added begin with the panels that are computed. Either may be null.
struct RowDelta {
  const float *scale, *added;
};

// One call. Addresses may be null where the part is absent.
struct Job {
  const uint32_t *x;       // [M, words]
  int64_t num_rows, words; // M, 32-bit words along K
  const uint32_t *weight;  // [panels, words, 48]; of int4 what `int4.h` says
  const void *scale;       // [panels * 48] floats, int8; of int4 what `int4.h` says
  const int32_t *offset;   // [panels * 48], int8: 128 times the sum of a row's weights
  const float *row_scale;  // [M], int8
  const float *bias;       // [panels * 48]
  int64_t num_outputs;     // places of an output row
  Activation activation;
  bool is_gated;           // panels alternate: gate, up, gate, up
  const void *residual;    // [M, num_outputs], in the type of x
  void *out;               // [M, num_outputs]
  bool out_is_float;       // else in the type of x
  const RowDelta *deltas;  // [M]
  int64_t first_place;     // of deltas[row].added
};

// Sums of floats are the product. Sums of int8 count in units of both scales, and have the zero of x in them.
inline Lanes product_of(const Job &, int64_t, int64_t, Lanes sum) { return sum; }
inline Lanes product_of(const Job &job, int64_t row, int64_t column, Words sum) {
  const Words whole = INT8_ZERO ? subtract(sum, load_words(job.offset + column)) : sum;
  const Lanes scale = multiply(load(static_cast<const float *>(job.scale) + column), all(job.row_scale[row]));
  return multiply(floats_of(whole), scale);
}

// With what an adapter changes, and the bias. `column` counts rows of the weight, those that pad panels too.
template <class Sum> inline Lanes biased(const Job &job, int64_t row, int64_t column, Sum sum) {
  Lanes y = product_of(job, row, column, sum);
  if (job.deltas) {
    const RowDelta &delta = job.deltas[row];
    if (delta.scale) y = multiply(y, load(delta.scale + column));
    if (delta.added) y = add(y, load(delta.added + column - job.first_place));
  }
  return job.bias ? add(y, load(job.bias + column)) : y;
}

// The gate's side of 16 places: vector `v` of panel `2 * index`.
template <class Sum> inline Lanes gate_of(const Job &job, int64_t row, int64_t index, int64_t v, Sum sum) {
  return activate(job.activation, biased(job, row, 2 * index * PANEL + LANES * v, sum));
}

// Writes 16 places of a row from the sums of vector `v` of panel `index`, or of the panel `2 * index + 1` that `gate`
// multiplies. `In` is the type of x.
template <class In, class Sum>
inline void finish(const Job &job, int64_t row, int64_t index, int64_t v, Sum sum, const Lanes &gate) {
  const int64_t panel = job.is_gated ? 2 * index + 1 : index, place = index * PANEL + LANES * v;
  if (place >= job.num_outputs) return;
  const Mask mask = first(job.num_outputs - place);
  const int64_t at = row * job.num_outputs + place;
  Lanes y = biased(job, row, panel * PANEL + LANES * v, sum);
  y = job.is_gated ? multiply(gate, y) : activate(job.activation, y);
  if (job.residual) y = add(y, load(static_cast<const In *>(job.residual) + at, mask));
  if (job.out_is_float)
    store(static_cast<float *>(job.out) + at, mask, y);
  else
    store(static_cast<In *>(job.out) + at, mask, y);
}

} // namespace linear_kernels
