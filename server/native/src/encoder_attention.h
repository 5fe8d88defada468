// Encoders: attention among the tokens of each text.
//
// A query's result depends on its text alone: keys are summed in their order, whatever else is in the batch.
#pragma once

#include "encoder_matrix.h"
#include "encoder_vectors.h"

namespace encoder {

inline void attend(const Problem &problem, const float *q, const float *k, const float *v, float *out) {
  attend<Float32>(problem, q, k, v, out);
}

inline void attend(const Problem &problem, const uint16_t *q, const uint16_t *k, const uint16_t *v, uint16_t *out) {
#if defined(HAS_TILES)
  attend_with_tiles(problem, q, k, v, out);
#elif defined(__AVX512BF16__)
  attend<Bfloat16>(problem, q, k, v, out);
#else
  attend<Float32>(problem, q, k, v, out);
#endif
}

} // namespace encoder

namespace {

// q, k, v, out, query_starts, key_starts, texts, heads, kv_heads, head_dim, the strides of q, k and v from token to
// token and from head to head, bias or 0, its width and middle, query_places or 0, scaling, window, is_bfloat16. `out`
// is [queries, heads, head_dim]; head_dim is a multiple of 16 and at most 256.
PyObject *encoder_attention(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(23, count, "encoder_attention")) return nullptr;
  const encoder::Texts texts = {address<int64_t>(args[4]), address<int64_t>(args[5]), address<int64_t>(args[19]),
                                integer(args[6])};
  const encoder::Problem problem = {
      texts,             integer(args[7]),  integer(args[8]),  integer(args[9]),         integer(args[10]),
      integer(args[11]), integer(args[12]), integer(args[13]), integer(args[14]),        integer(args[15]),
      address<float>(args[16]),             integer(args[17]), integer(args[18]),        real(args[20]),
      integer(args[21])};
  const auto *q = address<void>(args[0]), *k = address<void>(args[1]), *v = address<void>(args[2]);
  auto *out = address<void>(args[3]);
  const auto attend = [&](auto type) {
    using T = decltype(type);
    encoder::attend(problem, static_cast<const T *>(q), static_cast<const T *>(k), static_cast<const T *>(v),
                    static_cast<T *>(out));
  };
  const bool is_bfloat16 = integer(args[22]) != 0;
  return unlocked([&] { is_bfloat16 ? attend(uint16_t{}) : attend(float{}); });
}

} // namespace

#define ENCODER_METHODS METHOD(encoder_attention), METHOD(encoder_add_norm)
