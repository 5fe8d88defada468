// Products of which some rows may have an adapter.
#pragma once

#include "linear.h"
#include "python.h"

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

// x with the adapters' scales, where any adapter scales it.
template <class In> class ScaledInputs {
public:
  const In *operator()(const In *x, int64_t num_rows, int64_t width, const Run *runs, int64_t num_runs, int64_t number) {
    bool is_copied = false;
    for (const Run *run = runs; run < runs + num_runs; ++run) {
      const Delta *delta = run->deltas[number];
      if (!delta || !delta->in_scale) continue;
      if (!is_copied) rows.assign(x, x + num_rows * width);
      is_copied = true;
      for (int64_t row = run->start; row < run->start + run->count; ++row)
        scale(delta->in_scale, rows.data() + row * width, width);
    }
    return is_copied ? rows.data() : x;
  }

private:
  static void scale(const float *factors, In *values, int64_t width) {
    for (int64_t i = 0; i < width; i += LANES) {
      const Mask mask = first(width - i);
      store(values + i, mask, multiply(load(values + i, mask), load(factors + i, mask)));
    }
  }

  std::vector<In> rows;
};

// Rows whose adapter brings the product whole. The residual may be where the output goes, and the product is computed
// for all rows before: so theirs is kept.
template <class In> class WholeRows {
public:
  void keep(const Job &job, const Run *runs, int64_t num_runs, int64_t number) {
    residual.clear();
    if (!job.residual) return;
    each(runs, num_runs, number, [&](const Run &run, const Fixed &) {
      const In *from = static_cast<const In *>(job.residual) + run.start * job.num_outputs;
      residual.insert(residual.end(), from, from + run.count * job.num_outputs);
    });
  }

  void run(const Job &job, int64_t width, const Run *runs, int64_t num_runs, int64_t number) const {
    const In *kept = job.residual ? residual.data() : nullptr;
    const int64_t size = job.out_is_float ? sizeof(float) : sizeof(In);
    each(runs, num_runs, number, [&](const Run &run, const Fixed &fixed) {
      Job own = fixed.job();
      own.x = reinterpret_cast<const uint32_t *>(reinterpret_cast<const In *>(job.x) + run.start * width);
      own.num_rows = run.count;
      own.residual = kept;
      own.out = static_cast<char *>(job.out) + run.start * job.num_outputs * size;
      own.out_is_float = job.out_is_float;
      linear_kernels::run<In>(fixed.kind, own, width);
      if (kept) kept += run.count * job.num_outputs;
    });
  }

private:
  template <class Use> static void each(const Run *runs, int64_t num_runs, int64_t number, Use use) {
    for (const Run *run = runs; run < runs + num_runs; ++run)
      if (const Delta *delta = run->deltas[number]; delta && delta->whole) use(*run, *delta->whole);
  }

  std::vector<In> residual;
};

template <class In> void run_adapted(const Fixed &fixed, Job job, const Run *runs, int64_t num_runs, int64_t number) {
  static thread_local Adapters<In> adapters;
  static thread_local ScaledInputs<In> scaled;
  static thread_local WholeRows<In> whole;
  const In *x = reinterpret_cast<const In *>(job.x);
  if (!num_runs || !adapters.plan(runs, num_runs, number, x, fixed.width))
    return linear_kernels::run<In>(fixed.kind, job, fixed.width);
  job.x = reinterpret_cast<const uint32_t *>(scaled(x, job.num_rows, fixed.width, runs, num_runs, number));
  whole.keep(job, runs, num_runs, number);
  linear_kernels::run<In>(fixed.kind, job, fixed.width, &adapters);
  whole.run(job, fixed.width, runs, num_runs, number);
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
