// Attention of encoders with vectors.
#pragma once

#include "encoder_texts.h"
#include "python.h"

#include <vector>

namespace encoder {

constexpr int64_t QUERIES = 4; // that go through the keys together

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
// Returns the sum of the weights. The query is at key `own`.
inline float soften(float *scores, int64_t begin, int64_t end, int64_t first, int64_t last, float scaling,
                    const DistanceBias &bias, int64_t own) {
  if (bias) {
    for (int64_t key = begin; key < end; key += LANES)
      lanes(scores + key) = lanes(scores + key) * scaling + lanes(bias.at(key - own));
    scaling = 1.0f;
  }
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

// Queries `query` to `query + QUERIES - 1` of a text, those after its last being the last once more. `place` is that of
// query 0 in the text.
template <class Core, class T>
void attend_queries(const Problem &problem, Scratch<Core> &scratch, const T *q, T *out, int64_t query,
                    int64_t num_queries, int64_t place, int64_t length, const DistanceBias &bias) {
  constexpr int64_t P = Core::PER_WORD;
  const int64_t D = problem.head_dim, padded = (length + LANES - 1) / LANES * LANES, words = D / P;
  const int64_t count = std::min(QUERIES, num_queries - query);
  for (int64_t i = 0; i < QUERIES; i++) {
    const T *from = q + (query + std::min(i, count - 1)) * problem.q_token;
    spread(scratch.queries.data() + i * words, 1, from, D);
  }
  const int64_t reach = problem.window == 0 ? length : problem.window - 1;
  const int64_t begin = std::max<int64_t>(0, place + query - reach) / LANES * LANES;
  const int64_t limit = std::min(length, place + query + count + reach);
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
    const int64_t at = place + query + std::min(i, count - 1);
    const int64_t first = std::max<int64_t>(0, at - reach), last = std::min(length, at + reach + 1);
    shares[i] = 1.0f / soften(scores + i * padded, begin, end, first, last, problem.scaling, bias, at);
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
                              out + (query * H + head) * D, i, num_queries, problem.place_of(text), length,
                              problem.bias_of(head));
  }
}

} // namespace encoder
