// Attention of encoders on matrix units: a head's keys and values are packed into blocks like those of a cache and
// multiplied as from there.
#pragma once

#include "attention_matrix.h"
#include "encoder_texts.h"
#include "python.h"

#include <vector>

#ifdef HAS_TILES

namespace encoder {

using attention::AHEAD, attention::BLOCK, attention::MatrixProducts, attention::PARTITION_BLOCKS;
using Cache = attention::Bfloat16;
using Place = attention::Place<Cache>;

constexpr int64_t BLOCK_PAIRS = BLOCK / Cache::PACK;

inline int64_t whole_steps(int64_t words) {
  return (words + MatrixProducts::STEP - 1) / MatrixProducts::STEP * MatrixProducts::STEP;
}

// The keys and values of one text and head. Where there is no token, or no dim of a key, they are zero.
class Blocks {
public:
  // `length` is not 0.
  void pack(const Problem &problem, const uint16_t *keys, const uint16_t *values, int64_t length) {
    const int64_t D = problem.head_dim, num_words = D / Cache::PACK, count = (length + BLOCK - 1) / BLOCK;
    const int64_t key_words = whole_steps(num_words) * BLOCK, block_words = key_words + BLOCK_PAIRS * D;
    if (static_cast<int64_t>(words.size()) < count * block_words) words.resize(count * block_words);
    places.clear();
    for (uint32_t *block = words.data(); block < words.data() + count * block_words; block += block_words) {
      Place place;
      place.keys = block;
      place.values = block + key_words;
      places.push_back(place);
      std::fill(place.keys + num_words * BLOCK, place.values, 0);
    }
    std::fill_n(places.back().keys, block_words, 0);
    for (int64_t token = 0; token < length; ++token)
      spread(places[token / BLOCK].keys + token % BLOCK, BLOCK, keys + token * problem.k_token, D);
    for (int64_t token = 0; token < length; token += Cache::PACK)
      join(places[token / BLOCK].values + token % BLOCK / Cache::PACK * D, values + token * problem.v_token,
           problem.v_token, length - token, D);
    places.resize(count + AHEAD, places.back());
  }

  const Place *from(int64_t block) const { return places.data() + block; }

private:
  std::vector<uint32_t> words;
  std::vector<Place> places; // and AHEAD more
};

// One thread's work on the queries of a text that share a head's keys: query i is head i % group of token i / group.
class MatrixWorker {
public:
  MatrixWorker(const Problem &problem, Blocks &blocks)
      : problem(problem), blocks(blocks), group(problem.num_heads / problem.num_kv_heads),
        num_words(problem.head_dim / Cache::PACK), reach(problem.window) {
    layer.scaling = problem.scaling;
    products.is_near = true;
  }

  void run(int64_t text, int64_t of_head, const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *out) {
    kv_head = of_head;
    const int64_t key = problem.key_starts[text], query = problem.query_starts[text];
    const int64_t num_queries = (problem.query_starts[text + 1] - query) * group, head = kv_head * group;
    place = problem.place_of(text);
    length = problem.key_starts[text + 1] - key;
    if (length == 0) return;
    if (problem.window == 0) reach = length;
    blocks.pack(problem, k + key * problem.k_token + kv_head * problem.k_head,
                v + key * problem.v_token + kv_head * problem.v_head, length);
    q += query * problem.q_token + head * problem.q_head;
    out += (query * problem.num_heads + head) * problem.head_dim;
    for (first = 0; first < num_queries; first += ROWS) {
      rows = static_cast<int>(std::min<int64_t>(ROWS, num_queries - first));
      load(q);
      attend();
      store(out);
    }
  }

private:
  static constexpr int ROWS = MatrixProducts::ROWS;

  int64_t token_of(int r) const { return (first + r) / group; }
  int64_t place_of(int r) const { return place + token_of(r); }
  int64_t head_of(int r) const { return (first + r) % group; }

  void load(const uint16_t *q) {
    for (int r = 0; r < rows; ++r) {
      uint32_t *to = queries + r * attention::QUERY_STRIDE;
      spread(to, 1, q + token_of(r) * problem.q_token + head_of(r) * problem.q_head, problem.head_dim);
      std::fill(to + num_words, to + whole_steps(num_words), 0);
    }
    std::fill_n(total.sums, rows * problem.head_dim, 0.0f);
    std::fill_n(total.tops, rows, -attention::INFINITE);
    std::fill_n(total.totals, rows, 0.0f);
  }

  // Over the blocks that any of the queries sees.
  void attend() {
    const int64_t begin = std::max<int64_t>(0, place_of(0) - reach + 1) / BLOCK;
    const int64_t end = (std::min(length, place_of(rows - 1) + reach) + BLOCK - 1) / BLOCK;
    for (int64_t block = begin; block < end;) {
      const int64_t next = std::min(end, (block / PARTITION_BLOCKS + 1) * PARTITION_BLOCKS);
      attend_partition(block, next - block);
      block = next;
    }
  }

  void attend_partition(int64_t block, int64_t count) {
    products.score(rows, queries, blocks.from(block), count, num_words, scores);
    for (int r = 0; r < rows; ++r) {
      const int64_t at = place_of(r) - block * BLOCK, last = std::min(length - block * BLOCK, at + reach);
      attention::weigh<Cache>(layer, scores + r * attention::SCORE_STRIDE, count * BLOCK, at - reach + 1, last,
                              part.tops + r, part.totals + r, problem.bias_of(kv_head * group + head_of(r)), at);
    }
    products.combine(rows, scores, blocks.from(block), count, problem.head_dim, part.sums);
    attention::merge(total, part, rows, problem.head_dim);
  }

  void store(uint16_t *out) const {
    for (int r = 0; r < rows; ++r) {
      const float *sums = total.sums + r * problem.head_dim;
      const float factor = 1.0f / total.totals[r];
      uint16_t *to = out + (token_of(r) * problem.num_heads + head_of(r)) * problem.head_dim;
      for (int64_t d = 0; d < problem.head_dim; ++d) narrow(sums[d] * factor, to + d);
    }
  }

  const Problem &problem;
  Blocks &blocks;
  const int64_t group, num_words; // of a query
  attention::Layer layer{};
  int64_t length = 0, reach; // a query sees keys less than so far away
  int64_t kv_head = 0, first = 0, place = 0; // of the first query in its text
  int rows = 0;
  MatrixProducts products;
  alignas(64) uint32_t queries[ROWS * attention::QUERY_STRIDE];
  alignas(64) float scores[ROWS * attention::SCORE_STRIDE];
  alignas(64) float memory[2][ROWS * (attention::MOST_DIM + 2)];
  const attention::Results total = attention::results_at(memory[0], ROWS, attention::MOST_DIM);
  const attention::Results part = attention::results_at(memory[1], ROWS, attention::MOST_DIM);
};

inline void attend_with_tiles(const Problem &problem, const uint16_t *q, const uint16_t *k, const uint16_t *v,
                              uint16_t *out) {
#pragma omp parallel num_threads(num_threads)
  {
    static thread_local Blocks blocks;
    MatrixWorker worker(problem, blocks);
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < problem.num_texts * problem.num_kv_heads; ++item)
      worker.run(item / problem.num_kv_heads, item % problem.num_kv_heads, q, k, v, out);
  }
}

} // namespace encoder

#endif
