// One head's vector on its way into the cache or into a tile of queries: norm, rotation, places.
#pragma once

#include "attention_lanes.h"

namespace attention {

constexpr int64_t BLOCK = 32;
constexpr int64_t MOST_DIM = 256;

// What stays the same of a layer. The structs' fields are those of native.py.
struct Layer {
  uint32_t *pool;
  int64_t num_heads, num_kv_heads, key_dim, value_dim;
  int64_t window; // 0 for none
  double scaling;
  double softcap; // 0 for none
  int64_t is_bfloat16;
};

// A sequence's new tokens: `count` from `start` on in the step, after `computed` in the cache.
struct Row {
  int64_t start, count, computed;
  int64_t table; // where its block table begins in the step's
};

struct Step {
  const Row *rows;
  int64_t num_rows;
  const int64_t *block_tables;
  uint8_t *failed; // of each row, whether a key or value was not finite
};

// One layer of one step. Strides count values.
struct Call {
  const void *query, *key, *value;
  void *out;
  int64_t query_head, query_token, key_head, key_token, value_head, value_token;
  const int64_t *positions;
  const float *cos, *sin; // absent without rotation
  int64_t num_rotated;
  const float *query_norm, *key_norm; // absent without norm
  double eps;
  const float *sinks;
};

// A block holds for each head its keys as [dim / PACK][token] words, then its values as [token / PACK][dim] words, so
// that a product with sixteen tokens' keys, or with sixteen places of a value, is one load away.
template <class T> struct Place {
  uint32_t *keys, *values;

  Place() = default;

  Place(const Layer &layer, int64_t block, int64_t head) {
    const int64_t key_words = BLOCK * layer.key_dim / T::PACK, value_words = BLOCK * layer.value_dim / T::PACK;
    keys = layer.pool + (block * layer.num_kv_heads + head) * (key_words + value_words);
    values = keys + key_words;
  }
};

// Widened to float32, then normed and rotated where the call says so, rounded where the model rounds.
template <class T>
void prepare(const Call &call, const typename T::Value *from, int64_t width, const float *norm, int64_t token,
             float *to) {
  for (int64_t i = 0; i < width; ++i) to[i] = T::wide(from[i]);
  if (norm) {
    Lanes squares = all(0.0f);
    for (int64_t i = 0; i < width; i += LANES) squares = multiply_add(load(to + i), load(to + i), squares);
    const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + static_cast<float>(call.eps));
    for (int64_t i = 0; i < width; ++i) to[i] = T::wide(T::rounded(to[i] * scale * norm[i]));
  }
  if (!call.cos) return;
  const int64_t half = call.num_rotated, row = call.positions[token] * half;
  const float *cos = call.cos + row, *sin = call.sin + row;
  for (int64_t i = 0; i < half; ++i) {
    const float first = to[i], second = to[i + half];
    to[i] = std::fma(first, cos[i], -(second * sin[i]));
    to[i + half] = std::fma(second, cos[i], first * sin[i]);
  }
}

// Rounds to what the cache holds. What is not finite becomes 0, and the answer is then false: a masked place still
// multiplies its value by zero, and zero times NaN is NaN.
template <class T> bool settle(const float *from, int64_t width, typename T::Value *to) {
  int failures = 0;
  for (int64_t i = 0; i < width; ++i) {
    const typename T::Value value = T::rounded(from[i]);
    const bool is_finite = std::abs(T::wide(value)) < INFINITE;
    failures += !is_finite;
    to[i] = is_finite ? value : typename T::Value{};
  }
  return failures == 0;
}

// Writes one token's key and value of one head. Returns whether both were finite.
template <class T>
bool write_head(const Layer &layer, const Step &step, const Call &call, const Row &row, int64_t token, int64_t head) {
  using Value = typename T::Value;
  alignas(64) float wide[MOST_DIM];
  alignas(64) Value key[MOST_DIM], value[MOST_DIM];
  const int64_t at = row.start + token, position = row.computed + token, offset = position % BLOCK;
  const Place<T> place(layer, step.block_tables[row.table + position / BLOCK], head);

  const Value *from = static_cast<const Value *>(call.key) + at * call.key_token + head * call.key_head;
  prepare<T>(call, from, layer.key_dim, call.key_norm, at, wide);
  bool is_finite = settle<T>(wide, layer.key_dim, key);
  Value *keys = reinterpret_cast<Value *>(place.keys) + offset * T::PACK;
  for (int64_t i = 0; i < layer.key_dim; ++i) keys[i / T::PACK * BLOCK * T::PACK + i % T::PACK] = key[i];

  from = static_cast<const Value *>(call.value) + at * call.value_token + head * call.value_head;
  for (int64_t i = 0; i < layer.value_dim; ++i) wide[i] = T::wide(from[i]);
  is_finite &= settle<T>(wide, layer.value_dim, value);
  Value *values = reinterpret_cast<Value *>(place.values) + offset / T::PACK * layer.value_dim * T::PACK;
  for (int64_t i = 0; i < layer.value_dim; ++i) values[i * T::PACK + offset % T::PACK] = value[i];
  return is_finite;
}

} // namespace attention
