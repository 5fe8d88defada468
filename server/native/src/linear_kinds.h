// The kinds of numbers that products multiply, a word of 32 bits of each factor at a time.
#pragma once

#include "lanes.h"

#include <type_traits>

namespace linear_kernels {

using namespace lanes;

constexpr int64_t FEW = 4; // rows, which are done as fast as memory comes

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

// Products of floats are summed as floats, of bfloat16 by pairs.
template <class In> using Plain = std::conditional_t<sizeof(In) == 4, Float32, BFloat16>;

// x may have an offset, which `Job::offset` takes back. Where INT8_WORDS is 2, x has 16 bits a value, and each word of the
// weight is `Fours`.
struct Int8 {
  using Sum = Words;
  static Sum zero() { return all_words(0); }
#if INT8_WORDS == 1
  static Sum dot(Sum sum, Words x, Words w) { return add_fours(sum, x, w); }
#endif
};

// One word of the weight times the same of x, which is `words` long there.
template <class Kind> struct Step {
  static constexpr int64_t WORDS = 1, ROWS = 6; // rows that the registers of AVX2 take at a time
  using Weights = Words;
  static Weights weights(Words w) { return w; }
  static typename Kind::Sum add(typename Kind::Sum sum, const uint32_t *x, Weights w) {
    return Kind::dot(sum, all_words(*x), w);
  }
};

#if INT8_WORDS == 2
template <> struct Step<Int8> {
  static constexpr int64_t WORDS = 2, ROWS = 4;
  using Weights = Fours;
  static Weights weights(Words w) { return fours(w); }
  static Words add(Words sum, const uint32_t *x, Weights w) { return add_fours(sum, all_words(x[0]), all_words(x[1]), w); }
};
#endif

} // namespace linear_kernels
