// Encoders: attention among the tokens of each text, and the norm that follows every block.
//
// A query's result depends on its text alone: keys are summed in their order, whoever else is in the batch.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "python.h"

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
constexpr int64_t QUERIES = 4; // that go through the keys together
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

// Products word by word: a word is what one lane multiplies and adds at once.
struct Float32 {
  using Word = float;
  static constexpr int64_t PER_WORD = 1;

  static void multiply(Lanes &total, Word one, const Word *many) { total += one * lanes(many); }
};

#ifdef __AVX512BF16__
struct Bfloat16 {
  using Word = uint32_t;
  static constexpr int64_t PER_WORD = 2;

  static void multiply(Lanes &total, Word one, const Word *many) {
    total = (Lanes)_mm512_dpbf16_ps((__m512)total, (__m512bh)_mm512_set1_epi32(static_cast<int>(one)),
                                    (__m512bh)_mm512_loadu_si512(many));
  }
};
#endif

struct Problem {
  const int64_t *query_starts, *key_starts; // of each text, and the end of the last
  int64_t num_texts, num_heads, num_kv_heads, head_dim;
  int64_t q_token, q_head, k_token, k_head, v_token, v_head; // strides, in elements
  float scaling;
  int64_t window; // a query sees keys less than this far away; 0 for all
};

template <class Core> struct Scratch {
  std::vector<typename Core::Word> keys, values, queries, weights;
  std::vector<float> scores;

  void fit(int64_t length, int64_t head_dim) {
    const int64_t padded = (length + LANES - 1) / LANES * LANES;
    const auto grow = [](auto &store, int64_t size) {
      if (static_cast<int64_t>(store.size()) < size) store.resize(size);
    };
    grow(keys, padded * head_dim / Core::PER_WORD);
    grow(values, padded * head_dim / Core::PER_WORD);
    grow(queries, QUERIES * head_dim / Core::PER_WORD);
    grow(weights, QUERIES * padded / Core::PER_WORD);
    grow(scores, QUERIES * padded);
  }
};

// Words `to[0]`, `to[step]`, ... from a vector of `count` places.
template <class T> void spread(float *to, int64_t step, const T *from, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i * step] = widen(from[i]);
}

inline void spread(uint32_t *to, int64_t step, const uint16_t *from, int64_t count) {
  for (int64_t i = 0; i < count / 2; i++) std::memcpy(to + i * step, from + 2 * i, sizeof *to);
}

// Keys as [blocks of LANES][words of a head][LANES]; keys after the last are 0.
template <class Core, class T>
void pack_keys(typename Core::Word *to, const T *keys, int64_t stride, int64_t length, int64_t head_dim) {
  const int64_t block = LANES * head_dim / Core::PER_WORD;
  for (int64_t first = 0; first < length; first += LANES, to += block) {
    if (length - first < LANES) std::fill_n(to, block, typename Core::Word(0));
    for (int64_t lane = 0; lane < std::min(LANES, length - first); lane++)
      spread(to + lane, LANES, keys + (first + lane) * stride, head_dim);
  }
}

// One word of values from the keys at `from`, of which `count` are there.
template <class T> void join(float *to, const T *from, int64_t, int64_t, int64_t head_dim) {
  spread(to, 1, from, head_dim);
}

inline void join(uint32_t *to, const uint16_t *from, int64_t stride, int64_t count, int64_t head_dim) {
  for (int64_t d = 0; d < head_dim; d++)
    to[d] = from[d] | (count > 1 ? static_cast<uint32_t>(from[stride + d]) << 16 : 0);
}

// Values as [words of keys][head]; those after the last are 0.
template <class Core, class T>
void pack_values(typename Core::Word *to, const T *values, int64_t stride, int64_t length, int64_t head_dim) {
  const int64_t padded = (length + LANES - 1) / LANES * LANES;
  for (int64_t key = 0; key < padded; key += Core::PER_WORD, to += head_dim) {
    if (key < length) {
      join(to, values + key * stride, stride, length - key, head_dim);
    } else {
      std::fill_n(to, head_dim, typename Core::Word(0));
    }
  }
}

template <class Core, int BLOCKS>
inline void score_blocks(float *scores, int64_t padded, const typename Core::Word *queries,
                         const typename Core::Word *keys, int64_t words) {
  Lanes totals[QUERIES][BLOCKS] = {};
  for (int64_t word = 0; word < words; word++)
#pragma GCC unroll 4
    for (int query = 0; query < QUERIES; query++)
#pragma GCC unroll 4
      for (int block = 0; block < BLOCKS; block++)
        Core::multiply(totals[query][block], queries[query * words + word], keys + (block * words + word) * LANES);
#pragma GCC unroll 4
  for (int query = 0; query < QUERIES; query++)
#pragma GCC unroll 4
    for (int block = 0; block < BLOCKS; block++) lanes(scores + query * padded + block * LANES) = totals[query][block];
}

template <class Core, int VECTORS>
inline void weigh_vectors(float *out, int64_t head_dim, const typename Core::Word *weights, int64_t row,
                          const typename Core::Word *values, int64_t words) {
  Lanes totals[QUERIES][VECTORS] = {};
  for (int64_t word = 0; word < words; word++)
#pragma GCC unroll 4
    for (int query = 0; query < QUERIES; query++)
#pragma GCC unroll 4
      for (int vector = 0; vector < VECTORS; vector++)
        Core::multiply(totals[query][vector], weights[query * row + word], values + word * head_dim + vector * LANES);
#pragma GCC unroll 4
  for (int query = 0; query < QUERIES; query++)
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; vector++)
      lanes(out + query * head_dim + vector * LANES) = totals[query][vector];
}

// Scores of keys `first` to `last - 1` to weights in place, those of all others up to whole blocks to 0.
// Returns the sum of the weights.
inline float soften(float *scores, int64_t begin, int64_t end, int64_t first, int64_t last, float scaling) {
  for (int64_t key = begin; key < first; key++) scores[key] = -INFINITY;
  for (int64_t key = last; key < end; key++) scores[key] = -INFINITY;
  Lanes best = lanes(scores + begin);
  for (int64_t key = begin + LANES; key < end; key += LANES) {
    const Lanes &block = lanes(scores + key);
    best = block > best ? block : best;
  }
  float most = best[0];
  for (int64_t lane = 1; lane < LANES; lane++) most = std::max(most, static_cast<float>(best[lane]));
  Lanes total = {};
  for (int64_t key = begin; key < end; key += LANES) {
    Lanes block = (lanes(scores + key) - most) * scaling;
    exponential(block);
    lanes(scores + key) = block;
    total += block;
  }
  return sum(total);
}

inline void pack_weights(float *to, const float *weights, int64_t count) {
  std::memcpy(to, weights, count * sizeof(float));
}

#ifdef __AVX512BF16__
inline void pack_weights(uint32_t *to, const float *weights, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES)
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + i / 2), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(weights + i)));
}
#endif

// Queries `query` to `query + QUERIES - 1` of a text; those after its last are the last once more.
template <class Core, class T>
void attend_queries(const Problem &problem, Scratch<Core> &scratch, const T *q, T *out, int64_t query,
                    int64_t num_queries, int64_t length) {
  constexpr int64_t P = Core::PER_WORD;
  const int64_t D = problem.head_dim, padded = (length + LANES - 1) / LANES * LANES, words = D / P;
  const int64_t count = std::min(QUERIES, num_queries - query);
  for (int64_t i = 0; i < QUERIES; i++) {
    const T *from = q + (query + std::min(i, count - 1)) * problem.q_token;
    spread(scratch.queries.data() + i * words, 1, from, D);
  }
  const int64_t reach = problem.window == 0 ? length : problem.window - 1;
  const int64_t begin = std::max<int64_t>(0, query - reach) / LANES * LANES;
  const int64_t limit = std::min(length, query + count + reach);
  const int64_t end = (limit + LANES - 1) / LANES * LANES;

  float *scores = scratch.scores.data();
  for (int64_t key = begin; key < end;) {
    const auto *keys = scratch.keys.data() + key * words;
    if (end - key >= MANY * LANES) {
      score_blocks<Core, MANY>(scores + key, padded, scratch.queries.data(), keys, words), key += MANY * LANES;
    } else {
      score_blocks<Core, 1>(scores + key, padded, scratch.queries.data(), keys, words), key += LANES;
    }
  }
  float shares[QUERIES];
  for (int64_t i = 0; i < QUERIES; i++) {
    const int64_t at = query + std::min(i, count - 1);
    const int64_t first = std::max<int64_t>(0, at - reach), last = std::min(length, at + reach + 1);
    shares[i] = 1.0f / soften(scores + i * padded, begin, end, first, last, problem.scaling);
    pack_weights(scratch.weights.data() + (i * padded + begin) / P, scores + i * padded + begin, end - begin);
  }
  const auto *weights = scratch.weights.data() + begin / P;
  float totals[QUERIES * 256];
  for (int64_t d = 0; d < D;) {
    const auto *values = scratch.values.data() + begin / P * D + d;
    if (D - d >= MANY * LANES) {
      weigh_vectors<Core, MANY>(totals + d, D, weights, padded / P, values, (end - begin) / P), d += MANY * LANES;
    } else if (D - d >= MANY / 2 * LANES) {
      weigh_vectors<Core, MANY / 2>(totals + d, D, weights, padded / P, values, (end - begin) / P);
      d += MANY / 2 * LANES;
    } else {
      weigh_vectors<Core, 1>(totals + d, D, weights, padded / P, values, (end - begin) / P), d += LANES;
    }
  }
  for (int64_t i = 0; i < count; i++)
    for (int64_t d = 0; d < D; d++)
      narrow(totals[i * D + d] * shares[i], out + (query + i) * problem.num_heads * D + d);
}

template <class Core, class T>
void attend(const Problem &problem, const T *q, const T *k, const T *v, T *out) {
  const int64_t D = problem.head_dim, H = problem.num_heads;
#pragma omp parallel for num_threads(num_threads) schedule(dynamic)
  for (int64_t item = 0; item < problem.num_texts * H; item++) {
    static thread_local Scratch<Core> scratch;
    const int64_t text = item / H, head = item % H, kv_head = head / (H / problem.num_kv_heads);
    const int64_t query = problem.query_starts[text], num_queries = problem.query_starts[text + 1] - query;
    const int64_t key = problem.key_starts[text], length = problem.key_starts[text + 1] - key;
    if (length == 0) continue;
    scratch.fit(length, D);
    pack_keys<Core>(scratch.keys.data(), k + key * problem.k_token + kv_head * problem.k_head, problem.k_token, length, D);
    pack_values<Core>(scratch.values.data(), v + key * problem.v_token + kv_head * problem.v_head, problem.v_token,
                      length, D);
    for (int64_t i = 0; i < num_queries; i += QUERIES)
      attend_queries<Core, T>(problem, scratch, q + query * problem.q_token + head * problem.q_head,
                              out + (query * H + head) * D, i, num_queries, length);
  }
}

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

// q, k, v, out, query_starts, key_starts, texts, heads, kv_heads, head_dim, the strides of q, k and v from token to
// token and from head to head, scaling, window, is_bfloat16. `out` is [queries, heads, head_dim]; head_dim is a multiple
// of 16 and at most 256.
PyObject *encoder_attention(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(19, count, "encoder_attention")) return nullptr;
  using encoder::attend;
  const encoder::Problem problem = {
      address<int64_t>(args[4]), address<int64_t>(args[5]), integer(args[6]),  integer(args[7]),  integer(args[8]),
      integer(args[9]),          integer(args[10]),         integer(args[11]), integer(args[12]), integer(args[13]),
      integer(args[14]),         integer(args[15]),         real(args[16]),    integer(args[17])};
  const auto *q = address<void>(args[0]), *k = address<void>(args[1]), *v = address<void>(args[2]);
  auto *out = address<void>(args[3]);
  const bool is_bfloat16 = integer(args[18]) != 0;
  return unlocked([&] {
    if (!is_bfloat16) {
      attend<encoder::Float32>(problem, static_cast<const float *>(q), static_cast<const float *>(k),
                               static_cast<const float *>(v), static_cast<float *>(out));
    } else {
#ifdef __AVX512BF16__
      using Core = encoder::Bfloat16;
#else
      using Core = encoder::Float32;
#endif
      attend<Core>(problem, static_cast<const uint16_t *>(q), static_cast<const uint16_t *>(k),
                   static_cast<const uint16_t *>(v), static_cast<uint16_t *>(out));
    }
  });
}

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

#define ENCODER_METHODS METHOD(encoder_attention), METHOD(encoder_add_norm)
