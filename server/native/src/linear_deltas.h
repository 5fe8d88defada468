// What adapters change of a product: scale * (in_scale * x) W^T + B (A x) + added, before the bias.
//
// A x is computed for all rows before the product, and B (A x) panel by panel with it, so that a thread has in its
// cache what it adds. Every element is summed in one order: a row's result depends on that row and its adapter alone.
#pragma once

#include "linear_epilogue.h"
#include "linear_kinds.h"

#include <algorithm>
#include <vector>

namespace linear_kernels {

// The words of A x that a panel of B multiplies, and where the panel begins. B is zero at all others.
struct RankPart {
  int64_t start, first, count;
};

struct Fixed;

// One adapter at one product. Addresses are null where the part is absent; a, b and parts are there together.
struct Delta {
  const uint32_t *a; // [groups, words, 16]: rows of A, 16 together
  int64_t num_groups;
  const uint32_t *b; // of each panel [count, 48]
  const RankPart *parts;
  const float *in_scale; // of x
  const float *scale, *added; // places count rows of the product's packed weight
  const Fixed *whole; // in place of the product, all other parts are absent then
};

// Neighbouring rows of one adapter, with what it changes by number of the product, null for nothing.
struct Run {
  int64_t start, count;
  const Delta *const *deltas;
};

// Sums that the registers hold, and rows that are multiplied together with V vectors of a weight.
#ifdef __AVX512BF16__
constexpr int HELD = 24;
#else
constexpr int HELD = 6;
#endif
// Lines of A that are on their way while one is multiplied: a group is short, and the processor sees late what is next.
constexpr int64_t AHEAD = 16;
template <int V> constexpr int64_t TOGETHER = std::min(8, HELD / V);

// Calls `finish(row, vector, sum)` for `count` rows of x times V vectors of each word of `weight`; `count` is at most R.
template <class Kind, int V, int R = TOGETHER<V>, class Finish>
inline void multiply_few(const uint32_t *x, int64_t stride, int64_t count, const uint32_t *weight, int64_t words,
                         Finish finish) {
  if constexpr (R > 1)
    if (count < R) return multiply_few<Kind, V, R - 1>(x, stride, count, weight, words, finish);
  Lanes sums[R][V];
  for (auto &of_row : sums)
    for (auto &sum : of_row) sum = Kind::zero();
  for (int64_t k = 0; k < words; ++k) {
    Words w[V];
    for (int v = 0; v < V; ++v) w[v] = load_words(weight + (k * V + v) * LANES);
    if (V == 1) _mm_prefetch(reinterpret_cast<const char *>(weight + (k + AHEAD) * LANES), _MM_HINT_T0);
    for (int r = 0; r < R; ++r) {
      const Words word = all_words(x[r * stride + k]);
      for (int v = 0; v < V; ++v) sums[r][v] = Kind::dot(sums[r][v], word, w[v]);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < V; ++v) finish(r, v, sums[r][v]);
}

// The adapters of one product. `In` is the type of x.
template <class In> class Adapters {
public:
  // Returns whether any row is changed. The runs are read until the product is computed.
  bool plan(const Run *runs, int64_t num_runs, int64_t number, const In *x, int64_t width) {
    this->x = x;
    this->width = width;
    changes.clear();
    pieces.clear();
    int64_t size = 0;
    for (const Run *run = runs; run < runs + num_runs; ++run) {
      const Delta *delta = run->deltas[number];
      if (!delta) continue;
      changes.push_back({delta, run->start, run->start + run->count, size});
      if (!delta->a) continue;
      for (int64_t group = 0; group < delta->num_groups; ++group)
        for (int64_t row = 0; row < run->count; row += TOGETHER<1>)
          pieces.push_back({static_cast<int64_t>(changes.size()) - 1, group, row});
      size += run->count * delta->num_groups * LANES;
    }
    low.resize(std::max<int64_t>(low.size(), size));
    return !changes.empty();
  }

  // Pieces of A x, each by one thread, all before the first call of `add_up`.
  int64_t num_pieces() const { return pieces.size(); }

  void multiply_a(int64_t index) {
    const Piece &piece = pieces[index];
    const Change &change = changes[piece.change];
    const int64_t first = change.start + piece.row, count = std::min(TOGETHER<1>, change.stop - first);
    const int64_t words = words_of(width), rank = change.delta->num_groups * LANES;
    In *to = low.data() + change.low + piece.row * rank + piece.group * LANES;
    multiply_few<Plain<In>, 1>(as_words(x + first * width), words, count, change.delta->a + piece.group * words * LANES,
                               words, [&](int r, int, Lanes sum) { store(to + r * rank, first_all(), sum); });
  }

  // Calls `use(row, change)` with what is changed of the rows `from` to `to - 1`, at the panels of a piece. The room
  // holds what is added, and lasts as long as it is used.
  template <class Use>
  void add_up(int64_t from, int64_t to, int64_t index, int64_t panels, std::vector<float> &room, Use use) const {
    const int64_t places = panels * PANEL, place = index * places;
    room.resize(std::max<int64_t>(room.size(), (to - from) * places));
    float *out = room.data();
    for (const Change &change : changes) {
      const int64_t start = std::max(from, change.start), stop = std::min(to, change.stop);
      const Delta &delta = *change.delta;
      if (start >= stop) continue;
      if (delta.b) multiply_b(change, start, stop, index * panels, panels, out);
      if (delta.b) fetch(delta, (index + 1) * panels, panels);
      for (int64_t row = start; row < stop; ++row, out += delta.b ? places : 0)
        use(row, RowDelta{delta.scale, delta.b ? out : delta.added ? delta.added + place : nullptr});
    }
  }

private:
  struct Change {
    const Delta *delta;
    int64_t start, stop, low; // rows, and where its part of A x begins
  };
  struct Piece {
    int64_t change, group, row;
  };

  static int64_t words_of(int64_t values) { return values * static_cast<int64_t>(sizeof(In)) / 4; }
  static const uint32_t *as_words(const In *values) { return reinterpret_cast<const uint32_t *>(values); }
  static Mask first_all() { return lanes::first(LANES); }

  // The words of B that this thread needs next, while it multiplies the panel of the weight. What lies behind the last
  // panel may be asked for: that never fails.
  static void fetch(const Delta &delta, int64_t panel, int64_t panels) {
    const RankPart &last = delta.parts[panel - 1];
    const char *from = reinterpret_cast<const char *>(delta.b + last.start + last.count * PANEL);
    for (int64_t line = 0; line < panels * last.count * VECTORS; ++line) _mm_prefetch(from + line * 64, _MM_HINT_T1);
  }

  void multiply_b(const Change &change, int64_t start, int64_t stop, int64_t panel, int64_t panels, float *out) const {
    const Delta &delta = *change.delta;
    const int64_t stride = words_of(delta.num_groups * LANES), places = panels * PANEL;
    const uint32_t *rows = as_words(low.data() + change.low) + (start - change.start) * stride;
    for (int64_t p = 0; p < panels; ++p) {
      const RankPart &part = delta.parts[panel + p];
      const float *added = delta.added ? delta.added + (panel + p) * PANEL : nullptr;
      for (int64_t row = 0; row < stop - start; row += TOGETHER<VECTORS>) {
        float *to = out + row * places + p * PANEL;
        const auto finish = [&](int r, int v, Lanes sum) {
          store(to + r * places + LANES * v, added ? add(sum, load(added + LANES * v)) : sum);
        };
        multiply_few<Plain<In>, VECTORS>(rows + row * stride + part.first, stride,
                                         std::min(TOGETHER<VECTORS>, stop - start - row), delta.b + part.start,
                                         part.count, finish);
      }
    }
  }

  const In *x = nullptr;
  int64_t width = 0;
  std::vector<Change> changes;
  std::vector<Piece> pieces;
  std::vector<In> low; // A x of each change: [rows, groups * 16]
};

} // namespace linear_kernels
