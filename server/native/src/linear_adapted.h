// Products of which some rows have an adapter: out = residual + gate(activation(scale * x W^T + B (A x) + bias)).
//
// B A is of a low rank. A row's result depends on that row and its adapter alone, as in all products.
#pragma once

#include "linear.h"
#include "python.h"

#include <algorithm>
#include <vector>

namespace linear_kernels {

// What stays the same of a product. The fields are those of abi.py.
struct Fixed {
  WeightKind kind;
  int64_t width, words;
  const void *weight, *scale;
  const int32_t *offset;
  const float *bias;
  int64_t num_outputs, activation, is_gated;

  Job job() const {
    Job job{};
    job.words = words;
    job.weight = static_cast<const uint32_t *>(weight);
    job.scale = scale;
    job.offset = offset;
    job.bias = bias;
    job.num_outputs = num_outputs;
    job.activation = static_cast<Activation>(activation);
    job.is_gated = is_gated;
    return job;
  }
};

// One adapter at one product. Addresses are null where the part is absent; a and b are there together. The outputs of b,
// and the places of scale and constant, are the rows of the product's packed weight.
struct Delta {
  const Fixed *a, *b;
  const float *in_scale; // of x
  const float *scale;    // of the product
  const float *constant; // added where there is no b, whose bias it is otherwise
};

// Neighbouring rows of one adapter, with what it changes by number of the product, null for nothing.
struct Run {
  int64_t start, count;
  const Delta *const *deltas;
};

// Products of one thread with adapters. `In` is the type of x.
template <class In> class Adapted {
public:
  void run(const Fixed &fixed, Job job, const Run *runs, int64_t num_runs, int64_t number) {
    int64_t num_added = 0, num_low = 0;
    bool has_any = false, scales_x = false;
    for (const Run *run = runs; run < runs + num_runs; ++run)
      if (const Delta *delta = run->deltas[number]) {
        has_any = true;
        scales_x |= delta->in_scale != nullptr;
        if (!delta->b) continue;
        num_added += run->count * delta->b->num_outputs;
        num_low = std::max(num_low, run->count * delta->a->num_outputs);
      }
    if (!has_any) return linear_kernels::run<In>(fixed.kind, job, fixed.width);
    const In *x = reinterpret_cast<const In *>(job.x);
    rows.assign(job.num_rows, RowDelta{});
    added.resize(std::max<int64_t>(added.size(), num_added));
    low.resize(std::max<int64_t>(low.size(), num_low));
    if (scales_x) scaled.assign(x, x + job.num_rows * fixed.width);
    float *to = added.data();
    for (const Run *run = runs; run < runs + num_runs; ++run)
      if (const Delta *delta = run->deltas[number]) to = apply(*run, *delta, x, fixed.width, to);
    if (scales_x) job.x = reinterpret_cast<const uint32_t *>(scaled.data());
    job.deltas = rows.data();
    linear_kernels::run<In>(fixed.kind, job, fixed.width);
  }

private:
  // Writes what is added to the run's rows to `to`. Returns the place behind it.
  float *apply(const Run &run, const Delta &delta, const In *x, int64_t width, float *to) {
    if (delta.in_scale)
      for (int64_t row = run.start; row < run.start + run.count; ++row) scale_x(delta.in_scale, width, row);
    if (delta.b) {
      multiply(*delta.a, x + run.start * width, run.count, low.data(), sizeof(In) == sizeof(float));
      multiply(*delta.b, low.data(), run.count, to, true);
    }
    for (int64_t i = 0; i < run.count; ++i)
      rows[run.start + i] = {delta.scale, delta.b ? to + i * delta.b->num_outputs : delta.constant};
    return delta.b ? to + run.count * delta.b->num_outputs : to;
  }

  static void multiply(const Fixed &fixed, const In *x, int64_t num_rows, void *out, bool out_is_float) {
    Job job = fixed.job();
    job.x = reinterpret_cast<const uint32_t *>(x);
    job.num_rows = num_rows;
    job.out = out;
    job.out_is_float = out_is_float;
    linear_kernels::run<In>(fixed.kind, job, fixed.width);
  }

  void scale_x(const float *scale, int64_t width, int64_t row) {
    In *values = scaled.data() + row * width;
    for (int64_t i = 0; i < width; i += LANES) {
      const Mask mask = first(width - i);
      store(values + i, mask, lanes::multiply(load(values + i, mask), load(scale + i, mask)));
    }
  }

  std::vector<RowDelta> rows;
  std::vector<float> added;
  std::vector<In> low, scaled;
};

template <class In> void run_adapted(const Fixed &fixed, const Job &job, const Run *runs, int64_t num_runs, int64_t number) {
  static thread_local Adapted<In> adapted;
  adapted.run(fixed, job, runs, num_runs, number);
}

// linear(x, x_is_float, rows, kind, width, words, weight, scale, offset, bias, outputs, activation, is_gated, residual,
//        out, out_is_float, runs, num_runs, number)
inline PyObject *linear(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(19, count, "linear")) return nullptr;
  const Fixed fixed{static_cast<WeightKind>(integer(args[3])),
                    integer(args[4]),
                    integer(args[5]),
                    address<const void>(args[6]),
                    address<const void>(args[7]),
                    address<const int32_t>(args[8]),
                    address<const float>(args[9]),
                    integer(args[10]),
                    integer(args[11]),
                    integer(args[12])};
  Job job = fixed.job();
  job.x = address<const uint32_t>(args[0]);
  const bool x_is_float = integer(args[1]);
  job.num_rows = integer(args[2]);
  job.residual = address<const void>(args[13]);
  job.out = address<void>(args[14]);
  job.out_is_float = integer(args[15]);
  const Run *runs = address<const Run>(args[16]);
  const int64_t num_runs = integer(args[17]), number = integer(args[18]);
  return unlocked([&] {
    if (x_is_float)
      run_adapted<float>(fixed, job, runs, num_runs, number);
    else
      run_adapted<bfloat16>(fixed, job, runs, num_runs, number);
  });
}

} // namespace linear_kernels

#define LINEAR_METHODS METHOD_AS(linear, linear_kernels::linear),
