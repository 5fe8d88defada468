// Products with packed weights: out = residual + gate(activation(x W^T + bias)).
//
// Rows of the weight lie in panels of 48. A panel holds, word after word along K, one 32-bit word for each of its rows:
// one float, two bfloat16 or four int8. So the inner loop is the same for all kinds: load 3 x 16 words of the weight,
// broadcast a word of each of up to 8 rows of x, multiply and add. Int4 becomes bfloat16 or float, one panel at a time.
//
// Every element of the result is summed over K in one order, whatever the number of rows or threads: a row's result
// does not depend on its batch.
#pragma once

#include "int4.h"
#include "linear_epilogue.h"
#include "linear_tiles.h"
#include "python.h"
#include "shares.h"

#ifdef __AVX512BF16__
#include <algorithm>
#include <type_traits>
#include <vector>

namespace linear_kernels {

constexpr int64_t TILE = 8, FEW = 4;

struct Float32 {
  using Sum = Lanes;
  static Sum zero() { return all(0.0f); }
  static Sum dot(Sum sum, Words x, Words w) { return add_product(sum, x, w); }
};

struct BFloat16 {
  using Sum = Lanes;
  static Sum zero() { return all(0.0f); }
  static Sum dot(Sum sum, Words x, Words w) { return add_pairs(sum, x, w); }
};

// x is unsigned with an offset of 128, which `Job::offset` takes back.
struct Int8 {
  using Sum = Words;
  static Sum zero() { return all_words(0); }
  static Sum dot(Sum sum, Words x, Words w) { return add_fours(sum, x, w); }
};

// While this panel is used, `A` cache lines a word of the next one are on their way.
template <class Kind, int R, int A>
inline void add_up(const Job &job, int64_t row, const uint32_t *panel, const char *next,
                   typename Kind::Sum (&sums)[R][VECTORS]) {
  for (auto &of_row : sums)
    for (auto &sum : of_row) sum = Kind::zero();
  const uint32_t *x = job.x + row * job.words;
  for (int64_t k = 0; k < job.words; ++k) {
    Words w[VECTORS];
    for (int v = 0; v < VECTORS; ++v) w[v] = load_words(panel + k * PANEL + LANES * v);
    for (int line = 0; line < A; ++line) _mm_prefetch(next + (k * A + line) * 64, _MM_HINT_T1);
    for (int r = 0; r < R; ++r) {
      const Words word = all_words(x[r * job.words + k]);
      for (int v = 0; v < VECTORS; ++v) sums[r][v] = Kind::dot(sums[r][v], word, w[v]);
    }
  }
}

// `R` rows of one panel, or of a gate's and its partner's.
template <class Kind, class In, int R, int A>
void tile(const Job &job, const uint32_t *weight, int64_t row, int64_t index, const char *next) {
  typename Kind::Sum sums[R][VECTORS];
  Lanes gate[R][VECTORS];
  const int64_t size = job.words * PANEL;
  if (job.is_gated) {
    add_up<Kind, R, A>(job, row, weight, next, sums);
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < VECTORS; ++v) gate[r][v] = gate_of(job, row + r, index, v, sums[r][v]);
    weight += size;
    next += size * 4;
  }
  add_up<Kind, R, A>(job, row, weight, next, sums);
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < VECTORS; ++v) finish<In>(job, row + r, index, v, sums[r][v], gate[r][v]);
}

template <class Kind, class In, int A>
void some_rows(const Job &job, const uint32_t *weight, int64_t row, int64_t count, int64_t index, const char *next) {
  switch (count) {
#define ROWS(n) case n: return tile<Kind, In, n, A>(job, weight, row, index, next);
    ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8)
#undef ROWS
  }
}

// `weight` is the panel of this index, or the gate's and its partner's.
template <class Kind, class In>
void rows(const Job &job, const uint32_t *weight, int64_t from, int64_t to, int64_t index, bool looks_ahead) {
  const int64_t tiles = (to - from + TILE - 1) / TILE, step = (to - from + tiles - 1) / tiles;
  const int64_t panels = job.is_gated ? 2 : 1, lines = job.words * VECTORS;
  const char *next = reinterpret_cast<const char *>(weight + panels * job.words * PANEL);
  for (int64_t row = from, t = 0; row < to; row += step, ++t) {
    const int64_t count = std::min(step, to - row);
    // Few rows are done as fast as memory comes, and the processor itself sees what is next: asking for it costs a fifth.
    // Else the first tile pulls this panel in where it is not here yet; those after it each a third of the next one.
    if (!looks_ahead || to - from <= FEW)
      some_rows<Kind, In, 0>(job, weight, row, count, index, next);
    else if (tiles <= 2 && t == tiles - 1)
      some_rows<Kind, In, 3>(job, weight, row, count, index, next);
    else if (t == 0 || t > 3)
      some_rows<Kind, In, 0>(job, weight, row, count, index, next);
    else
      some_rows<Kind, In, 1>(job, weight, row, count, index, next + (t - 1) * lines / 3 * 64);
  }
}

// What one thread multiplies with.
template <class Kind, class In> struct RowsInLanes {
  void operator()(const Job &job, const uint32_t *weight, int64_t from, int64_t to, int64_t index, bool looks_ahead) {
    rows<Kind, In>(job, weight, from, to, index, looks_ahead);
  }
};

#ifdef HAS_TILES
template <class Kind, class In>
using Rows = std::conditional_t<std::is_same_v<Kind, Float32>, RowsInLanes<Kind, In>, RowsOnTiles<Kind, In>>;
#else
template <class Kind, class In> using Rows = RowsInLanes<Kind, In>;
#endif

// How the work is cut: some rows of some panels each, so many at a time.
struct Cut {
  int64_t blocks, block, pieces;

  Cut(const Job &job, int64_t at_a_time) : blocks(1) {
    const int64_t panels = (job.num_outputs + PANEL - 1) / PANEL;
    while (panels * blocks < 4 * num_threads && job.num_rows / (blocks + 1) >= at_a_time) ++blocks;
    block = ((job.num_rows + blocks - 1) / blocks + at_a_time - 1) / at_a_time * at_a_time;
    blocks = (job.num_rows + block - 1) / block;
    pieces = panels * blocks;
  }
};

// Inside of a parallel region.
template <class Kind, class In> void share(const Job &job, const Cut &cut, Shares &shares) {
  const int64_t panels = job.is_gated ? 2 : 1;
  Rows<Kind, In> multiply_rows;
  shares.each([&](int64_t piece) {
    const int64_t from = piece % cut.blocks * cut.block, index = piece / cut.blocks;
    const uint32_t *weight = job.weight + index * panels * job.words * PANEL;
    multiply_rows(job, weight, from, std::min(from + cut.block, job.num_rows), index, true);
  });
}

// The same for int4: a thread unpacks the panels it is about to use.
template <class Kind, class In> void share_int4(const Job &job, int64_t width, const Cut &cut, Shares &shares) {
  static thread_local std::vector<uint32_t> unpacked;
  const int64_t panels = job.is_gated ? 2 : 1, size = job.words * PANEL;
  unpacked.resize(panels * size);
  Rows<Kind, In> multiply_rows;
  shares.each([&](int64_t piece) {
    const int64_t from = piece % cut.blocks * cut.block, index = piece / cut.blocks;
    for (int64_t i = 0; i < panels; ++i)
      int4::unpack<In>(job.weight, job.scale, index * panels + i, width, unpacked.data() + i * size);
    multiply_rows(job, unpacked.data(), from, std::min(from + cut.block, job.num_rows), index, false);
  });
}

// Each row of x by its largest value to 1..255, 128 is zero. The scale of a row that is not finite is NaN.
template <class In> void quantize(const In *x, int64_t row, int64_t width, uint8_t *to, float *scale) {
  const In *from = x + row * width;
  Lanes top = all(0.0f), zero = all(0.0f);
  for (int64_t i = 0; i < width; i += LANES) {
    const Lanes part = load(from + i, first(width - i));
    top = larger(top, absolute(part));
    zero = multiply_add(part, all(0.0f), zero);
  }
  const float most = largest(top);
  const float inverse = most > 0 ? 127.0f / most : 0.0f;
  scale[row] = most / 127.0f + sum(zero);
  for (int64_t i = 0; i < width; i += LANES) {
    const Mask mask = first(width - i);
    store_bytes(to + row * width + i, mask, multiply(load(from + i, mask), all(inverse)), 128);
  }
}

// Rows of x as `Int8` reads them.
struct Quantized {
  std::vector<uint8_t> values;
  std::vector<float> scales;

  void make_room(int64_t rows, int64_t width) {
    values.resize(rows * width);
    scales.resize(rows);
  }
  template <class In> void fill(const In *x, int64_t row, int64_t width) {
    quantize(x, row, width, values.data(), scales.data());
  }
  void become_input(Job &job) const {
    job.x = reinterpret_cast<const uint32_t *>(values.data());
    job.row_scale = scales.data();
  }
};

// The calling thread's, freed as the thread ends: what a region only refers to is never freed.
inline Quantized &own_rows() {
  static thread_local Quantized rows;
  return rows;
}

enum class WeightKind : int64_t { float32, bfloat16, int8, int4 };

// Products of floats are summed as floats, of bfloat16 by pairs.
template <class In> using Plain = std::conditional_t<sizeof(In) == 4, Float32, BFloat16>;

// Rows of x that a thread multiplies at a time.
template <class In> int64_t at_a_time([[maybe_unused]] WeightKind kind) {
#ifdef HAS_TILES
  if (kind == WeightKind::int8 || sizeof(In) == 2) return BLOCK;
#endif
  return TILE;
}

template <class In> void run(WeightKind kind, Job job, int64_t width) {
  static thread_local Shares own_shares;
  // The caller's, also inside of the parallel region.
  Quantized &rows = own_rows();
  Shares &shares = own_shares;
  // Of few rows every thread makes its own, which is quicker than to wait for others.
  const bool quantizes_together = kind == WeightKind::int8 && job.num_rows > FEW;
  if (quantizes_together) rows.make_room(job.num_rows, width);
  const Cut cut(job, at_a_time<In>(kind));
  shares.reset(cut.pieces, num_threads);
  const In *x = reinterpret_cast<const In *>(job.x);
#pragma omp parallel num_threads(num_threads) firstprivate(job)
  {
    if (kind == WeightKind::int8) {
      if (quantizes_together) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < job.num_rows; ++row) rows.fill(x, row, width);
        rows.become_input(job);
      } else {
        Quantized &own = own_rows();
        own.make_room(job.num_rows, width);
        for (int64_t row = 0; row < job.num_rows; ++row) own.fill(x, row, width);
        own.become_input(job);
      }
      share<Int8, In>(job, cut, shares);
    } else if (kind == WeightKind::int4) {
      share_int4<Plain<In>, In>(job, width, cut, shares);
    } else {
      share<Plain<In>, In>(job, cut, shares);
    }
  }
}

// linear(x, x_is_float, rows, kind, width, words, weight, scale, offset, bias, outputs, activation, is_gated, residual,
//        out, out_is_float)
PyObject *linear(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(16, count, "linear")) return nullptr;
  Job job{};
  job.x = address<const uint32_t>(args[0]);
  const bool x_is_float = integer(args[1]);
  job.num_rows = integer(args[2]);
  const auto kind = static_cast<WeightKind>(integer(args[3]));
  const int64_t width = integer(args[4]);
  job.words = integer(args[5]);
  job.weight = address<const uint32_t>(args[6]);
  job.scale = address<const void>(args[7]);
  job.offset = address<const int32_t>(args[8]);
  job.bias = address<const float>(args[9]);
  job.num_outputs = integer(args[10]);
  job.activation = static_cast<Activation>(integer(args[11]));
  job.is_gated = integer(args[12]);
  job.residual = address<const void>(args[13]);
  job.out = address<void>(args[14]);
  job.out_is_float = integer(args[15]);
  return unlocked([&] {
    if (x_is_float)
      run<float>(kind, job, width);
    else
      run<bfloat16>(kind, job, width);
  });
}

} // namespace linear_kernels

#define LINEAR_METHODS METHOD_AS(linear, linear_kernels::linear),
#else
#define LINEAR_METHODS
#endif
