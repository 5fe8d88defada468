// One head's vector on its way into the cache or into a tile of queries: norm, rotation, places.
#pragma once

#include "attention_bytes.h"
#include "distance_bias.h"

namespace attention {

constexpr int64_t BLOCK = 32;
constexpr int64_t MOST_DIM = 256;

// What the cache holds: numbers as the model computes them, or others.
enum class CacheKind : int64_t { own, int8 };

// What stays the same of a layer. The structs' fields are those of abi.py.
struct Layer {
  uint32_t *pool;
  int64_t num_heads, num_kv_heads, key_dim, value_dim;
  int64_t window; // 0 for none
  double scaling;
  double softcap; // 0 for none
  int64_t is_bfloat16;
  CacheKind cache_kind;
  const float *bias; // [heads][bias_width], absent without; see distance_bias.h
  int64_t bias_width, bias_middle;
};

// A sequence's new tokens: `count` from `start` on in the step, after `computed` in the cache. Or tokens that see the first
// `visible` keys of another sequence, and write none.
struct Row {
  int64_t start, count, computed;
  int64_t table;   // where its block table begins in the step's
  int64_t visible; // 0 where each token sees its own sequence up to itself

  int64_t last_key(int64_t token) const { return visible ? visible - 1 : computed + token; }
};

struct Step {
  const Row *rows;
  int64_t num_rows;
  const int64_t *block_tables;
  uint8_t *failed; // of each row, whether a key or value was not finite
};

// One layer of one step. Strides count values.
struct Call {
  const void *query, *key, *value; // without queries, keys and values are only written
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
// that a product with sixteen tokens' keys, or with sixteen places of a value, is one load away. In int8 the scales of
// all tokens follow: those of the keys, then those of the values.
template <class T> struct Place {
  uint32_t *keys, *values;
  uint16_t *scales;

  Place() = default;

  Place(const Layer &layer, int64_t block, int64_t head) {
    const int64_t key_words = BLOCK * layer.key_dim / T::PACK, value_words = BLOCK * layer.value_dim / T::PACK;
    const int64_t scale_words = T::HAS_SCALES ? BLOCK : 0;
    keys = layer.pool + (block * layer.num_kv_heads + head) * (key_words + value_words + scale_words);
    values = keys + key_words;
    scales = reinterpret_cast<uint16_t *>(values + value_words);
  }
};

template <class T> uint16_t *key_scales(const Place<T> &place) { return place.scales; }
template <class T> uint16_t *value_scales(const Place<T> &place) { return place.scales + BLOCK; }

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

// What is not finite becomes 0, and the answer is then false: a masked place still multiplies its value by zero, and
// zero times NaN is NaN.
template <class T> bool make_finite(float *values, int64_t width) {
  int failures = 0;
  for (int64_t i = 0; i < width; ++i) {
    const bool is_finite = std::abs(values[i]) < T::TOO_LARGE;
    failures |= !is_finite;
    values[i] = is_finite ? values[i] : 0.0f;
  }
  return !failures;
}

template <class T> void round_all(const float *from, int64_t width, typename T::Value *to) {
  for (int64_t i = 0; i < width; ++i) to[i] = T::rounded(from[i]);
}

// What is finite, as the cache holds it. Writes the scale only where the cache has any.
template <class T>
void store_all(const float *from, int64_t width, int offset, typename T::Stored *to, uint16_t *scale) {
  if constexpr (T::HAS_SCALES) *scale = to_bytes(from, width, offset, to);
  else round_all<T>(from, width, to);
}

// A sequence's new tokens that lie in one block.
struct Piece {
  const Row *row;
  int64_t first, count;
};

template <class T> bool write_key(const Layer &layer, const Call &call, const Place<T> &place, int64_t head, int64_t token, int64_t offset) {
  using Value = typename T::Value;
  alignas(64) float wide[MOST_DIM];
  alignas(64) typename T::Stored key[MOST_DIM];
  const Value *from = static_cast<const Value *>(call.key) + token * call.key_token + head * call.key_head;
  prepare<T>(call, from, layer.key_dim, call.key_norm, token, wide);
  const bool is_finite = make_finite<T>(wide, layer.key_dim);
  store_all<T>(wide, layer.key_dim, KEY_OFFSET, key, key_scales(place) + offset);
  for (int64_t i = 0; i < layer.key_dim / T::PACK; ++i)
    std::memcpy(place.keys + i * BLOCK + offset, key + i * T::PACK, sizeof(uint32_t));
  return is_finite;
}

template <class T> bool write_value(const Layer &layer, const Call &call, const Place<T> &place, int64_t head, int64_t token, int64_t offset) {
  using Value = typename T::Value;
  alignas(64) float wide[MOST_DIM];
  alignas(64) typename T::Stored value[MOST_DIM];
  const Value *from = static_cast<const Value *>(call.value) + token * call.value_token + head * call.value_head;
  for (int64_t i = 0; i < layer.value_dim; ++i) wide[i] = T::wide(from[i]);
  const bool is_finite = make_finite<T>(wide, layer.value_dim);
  store_all<T>(wide, layer.value_dim, VALUE_OFFSET, value, value_scales(place) + offset);
  // Whole words with the other tokens' parts left as they are: no other thread writes to this block.
  constexpr int bits = 32 / T::PACK;
  const int shift = bits * (offset % T::PACK);
  const uint32_t kept = ~(0xffffffffu >> (32 - bits) << shift);
  uint32_t *words = place.values + offset / T::PACK * layer.value_dim;
  for (int64_t i = 0; i < layer.value_dim; ++i) words[i] = (words[i] & kept) | T::bits(value[i]) << shift;
  return is_finite;
}

// Returns whether all keys and values of the piece were finite.
template <class T> bool write(const Layer &layer, const Step &step, const Call &call, const Piece &piece) {
  const Row &row = *piece.row;
  const int64_t position = row.computed + piece.first, block = step.block_tables[row.table + position / BLOCK];
  bool is_finite = true;
  for (int64_t head = 0; head < layer.num_kv_heads; ++head) {
    const Place<T> place(layer, block, head);
    for (int64_t i = 0; i < piece.count; ++i) {
      const int64_t token = row.start + piece.first + i, offset = (position + i) % BLOCK;
      is_finite &= write_key<T>(layer, call, place, head, token, offset);
      is_finite &= write_value<T>(layer, call, place, head, token, offset);
    }
  }
  return is_finite;
}

} // namespace attention
