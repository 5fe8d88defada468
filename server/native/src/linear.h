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
#include "linear_deltas.h"
#include "linear_epilogue.h"
#include "linear_tiles.h"
#include "shares.h"

#ifdef __AVX512BF16__
#include "linear_wide.h"
#else
#include "linear_chunks.h"
#endif

#include <algorithm>
#include <type_traits>
#include <vector>

namespace linear_kernels {

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

// What adapters change of a thread's rows. Both live as long as the thread.
struct OwnDeltas {
  std::vector<RowDelta> rows;
  std::vector<float> room;
};

inline OwnDeltas &own_deltas() {
  static thread_local OwnDeltas deltas;
  return deltas;
}

// Inside of a parallel region, each thread with a job of its own.
template <class In>
void add_adapters(const Adapters<In> *adapters, Job &job, int64_t from, int64_t to, int64_t index, int64_t panels) {
  if (!adapters) return;
  OwnDeltas &own = own_deltas();
  job.first_place = index * panels * PANEL;
  adapters->add_up(from, to, index, panels, own.room, [&](int64_t row, RowDelta delta) { own.rows[row] = delta; });
}

// Inside of a parallel region.
template <class Kind, class In> void share(Job job, const Adapters<In> *adapters, const Cut &cut, Shares &shares) {
  const int64_t panels = job.is_gated ? 2 : 1;
  Rows<Kind, In> multiply_rows;
  shares.each([&](int64_t piece) {
    const int64_t from = piece % cut.blocks * cut.block, index = piece / cut.blocks;
    const int64_t to = std::min(from + cut.block, job.num_rows);
    const uint32_t *weight = job.weight + index * panels * job.words * PANEL;
    add_adapters(adapters, job, from, to, index, panels);
    multiply_rows(job, weight, from, to, index, true);
  });
}

// Makes of panel `index` of a quantised weight of this width a panel as `Plain` has it.
using Unpack = void (*)(const void *weight, const void *scale, int64_t index, int64_t width, uint32_t *to);

// The same for weights that no product reads as they are: a thread unpacks the panels it is about to use.
template <class Kind, class In>
void share_unpacked(Unpack unpack, Job job, int64_t width, const Adapters<In> *adapters, const Cut &cut, Shares &shares) {
  static thread_local std::vector<uint32_t> unpacked;
  const int64_t panels = job.is_gated ? 2 : 1, size = job.words * PANEL;
  unpacked.resize(panels * size);
  Rows<Kind, In> multiply_rows;
  shares.each([&](int64_t piece) {
    const int64_t from = piece % cut.blocks * cut.block, index = piece / cut.blocks;
    const int64_t to = std::min(from + cut.block, job.num_rows);
    for (int64_t i = 0; i < panels; ++i)
      unpack(job.weight, job.scale, index * panels + i, width, unpacked.data() + i * size);
    add_adapters(adapters, job, from, to, index, panels);
    multiply_rows(job, unpacked.data(), from, to, index, false);
  });
}

// A row of x by its largest value to -127..127, and its scale. That of a row that is not finite is NaN.
template <class In> void quantize(const In *x, int64_t width, uint32_t *to, float &scale) {
  Lanes top = all(0.0f), zero = all(0.0f);
  for (int64_t i = 0; i < width; i += LANES) {
    const Lanes part = load(x + i, first(width - i));
    top = larger(top, absolute(part));
    zero = multiply_add(part, all(0.0f), zero);
  }
  const float most = largest(top);
  const float inverse = most > 0 ? 127.0f / most : 0.0f;
  scale = most / 127.0f + sum(zero);
  for (int64_t i = 0; i < width; i += LANES) {
    const Mask mask = first(width - i);
    store_int8(to + INT8_WORDS * i / 4, mask, multiply(load(x + i, mask), all(inverse)));
  }
}

// Rows of x as `Int8` reads them.
struct Quantized {
  std::vector<uint32_t> values;
  std::vector<float> scales;

  static int64_t words(int64_t width) { return INT8_WORDS * width / 4; }

  void make_room(int64_t rows, int64_t width) {
    values.resize(rows * words(width));
    scales.resize(rows);
  }
  template <class In> void fill(const In *x, int64_t row, int64_t width) {
    quantize(x + row * width, width, values.data() + row * words(width), scales[row]);
  }
  void become_input(Job &job) const {
    job.x = values.data();
    job.row_scale = scales.data();
  }
};

// The calling thread's, freed as the thread ends: what a region only refers to is never freed.
inline Quantized &own_rows() {
  static thread_local Quantized rows;
  return rows;
}

enum class WeightKind : int64_t { float32, bfloat16, int8, int4 };

// Rows of x that a thread multiplies at a time.
template <class In> int64_t at_a_time([[maybe_unused]] WeightKind kind) {
#ifdef HAS_TILES
  if (kind == WeightKind::int8 || sizeof(In) == 2) return BLOCK;
#endif
  return AT_A_TIME;
}

// `adapters` are planned for the job, absent without.
template <class In> void run(WeightKind kind, Job job, int64_t width, Adapters<In> *adapters = nullptr) {
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
    if (adapters) {
      own_deltas().rows.assign(job.num_rows, RowDelta{});
      job.deltas = own_deltas().rows.data();
#pragma omp for schedule(static)
      for (int64_t piece = 0; piece < adapters->num_pieces(); ++piece) adapters->multiply_a(piece);
    }
    switch (kind) {
    case WeightKind::int8:
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
      share<Int8, In>(job, adapters, cut, shares);
      break;
    case WeightKind::int4: share_unpacked<Plain<In>, In>(int4::unpack<In>, job, width, adapters, cut, shares); break;
    default: share<Plain<In>, In>(job, adapters, cut, shares);
    }
  }
}

} // namespace linear_kernels
