// Texts that lie end to end, and the words that their keys and values are packed into.
#pragma once

#include "distance_bias.h"
#include "encoder_lanes.h"

namespace encoder {

// Texts, and which of their tokens are queries. The fields are those of abi.py.
struct Texts {
  const int64_t *query_starts; // rows of each text's queries, and the end of the last
  const int64_t *key_starts;   // the same of its keys, which are all of its tokens; may be negative
  const int64_t *query_places; // in its text, of each text's first query; absent where all are 0
  int64_t num_texts;

  int64_t place_of(int64_t text) const { return query_places ? query_places[text] : 0; }
};

struct Problem : Texts {
  int64_t num_heads, num_kv_heads, head_dim;
  int64_t q_token, q_head, k_token, k_head, v_token, v_head; // strides, in elements
  const float *bias; // [num_heads][bias_width], absent without; see distance_bias.h
  int64_t bias_width, bias_middle;
  float scaling;
  int64_t window; // a query sees keys less than this far away; 0 for all

  DistanceBias bias_of(int64_t head) const { return {bias, bias_width, bias_middle, head}; }
};

// Words `to[0]`, `to[step]`, ... from a vector of `count` places.
template <class T> void spread(float *to, int64_t step, const T *from, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i * step] = widen(from[i]);
}

inline void spread(uint32_t *to, int64_t step, const uint16_t *from, int64_t count) {
  for (int64_t i = 0; i < count / 2; i++) std::memcpy(to + i * step, from + 2 * i, sizeof *to);
}

// One word of values from the keys at `from`, of which `count` are there.
template <class T> void join(float *to, const T *from, int64_t, int64_t, int64_t head_dim) {
  spread(to, 1, from, head_dim);
}

inline void join(uint32_t *to, const uint16_t *from, int64_t stride, int64_t count, int64_t head_dim) {
  for (int64_t d = 0; d < head_dim; d++)
    to[d] = from[d] | (count > 1 ? static_cast<uint32_t>(from[stride + d]) << 16 : 0);
}

} // namespace encoder
