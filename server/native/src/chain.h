// The kernels of many layers one after another, without the interpreter between them: where a step has few rows, it
// would take a fifth of the time, in which nothing is read from memory.
#pragma once

#include "attention.h"
#include "elementwise.h"
#include "encoder_attention.h"
#include "linear_adapted.h"

#include <chrono>

namespace chain {

enum class Kind : int64_t { rms_norm, layer_norm, linear, attention, cross_attention, encoder_attention };

// One kernel. Places count buffers of the step, -1 for none. The fields are those of abi.py.
struct Link {
  Kind kind;
  int64_t source, residual, to;
  // Of a norm its weight, bias and width.
  linear_kernels::Fixed product;
  int64_t number; // of the product, for adapters
  double eps;
  // Of attention; the call is complete but for the step's addresses.
  const attention::Layer *layer;
  const attention::Call *call;
};

// What the links share in one step.
struct Buffers {
  void *const *places;
  int64_t num_rows; // tokens
  const int64_t *positions;
  const attention::Step *step;
  const attention::Step *sources; // the step's tokens as rows that see keys of a source, absent without
  const encoder::Texts *texts; // the step's tokens as queries of texts, absent without
  const linear_kernels::Run *runs; // the step's tokens that have an adapter
  int64_t num_runs;
};

template <class T> const T *at(const Buffers &buffers, int64_t place) {
  return place < 0 ? nullptr : static_cast<const T *>(buffers.places[place]);
}

template <class T> void norm(const Link &link, const Buffers &buffers) {
  const T *x = at<T>(buffers, link.source), *residual = at<T>(buffers, link.residual);
  const float *weight = static_cast<const float *>(link.product.weight);
  T *out = static_cast<T *>(buffers.places[link.to]);
  const int64_t width = link.product.width;
  const float eps = static_cast<float>(link.eps);
  if (link.kind == Kind::rms_norm)
    elementwise::rms_norm_rows(x, weight, residual, out, buffers.num_rows, width, eps);
  else
    elementwise::layer_norm_rows(x, weight, link.product.bias, out, buffers.num_rows, width, eps);
}

template <class T> void product(const Link &link, const Buffers &buffers) {
  linear_kernels::Job job = link.product.job();
  job.x = at<uint32_t>(buffers, link.source);
  job.num_rows = buffers.num_rows;
  job.residual = at<void>(buffers, link.residual);
  job.out = buffers.places[link.to];
  job.out_is_float = sizeof(T) == sizeof(float);
  linear_kernels::run_adapted<T>(link.product, job, buffers.runs, buffers.num_runs, link.number);
}

template <class T> void attend(const Link &link, const Buffers &buffers) {
  const attention::Layer &layer = *link.layer;
  attention::Call call = *link.call;
  const T *query = at<T>(buffers, link.source), *key = query + layer.num_heads * layer.key_dim;
  call.query = query;
  call.key = key;
  call.value = key + layer.num_kv_heads * layer.key_dim;
  call.out = buffers.places[link.to];
  call.positions = buffers.positions;
  attention::attend_layer(layer, *buffers.step, call);
}

// The link's source has the tokens' queries alone.
inline void attend_source(const Link &link, const Buffers &buffers) {
  attention::Call call = *link.call;
  call.query = buffers.places[link.source];
  call.out = buffers.places[link.to];
  attention::attend_layer(*link.layer, *buffers.sources, call);
}

// The link's source has queries, keys and values of all tokens of the texts, those before the step's rows too.
template <class T> void attend_texts(const Link &link, const Buffers &buffers) {
  const attention::Layer &layer = *link.layer;
  const int64_t dim = layer.key_dim, row = (layer.num_heads + 2 * layer.num_kv_heads) * dim;
  const encoder::Problem problem = {*buffers.texts, layer.num_heads, layer.num_kv_heads, dim, row, dim, row, dim,
                                    row, dim, layer.bias, layer.bias_width, layer.bias_middle,
                                    static_cast<float>(layer.scaling), /*window=*/0};
  const T *query = at<T>(buffers, link.source), *key = query + layer.num_heads * dim;
  encoder::attend(problem, query, key, key + layer.num_kv_heads * dim, static_cast<T *>(buffers.places[link.to]));
}

template <class T> void run(const Link *links, int64_t count, const Buffers &buffers, double *seconds) {
  using Clock = std::chrono::steady_clock;
  auto before = Clock::now();
  for (const Link *link = links; link < links + count; ++link) {
    switch (link->kind) {
    case Kind::rms_norm:
    case Kind::layer_norm: norm<T>(*link, buffers); break;
    case Kind::linear: product<T>(*link, buffers); break;
    case Kind::attention: attend<T>(*link, buffers); break;
    case Kind::cross_attention: attend_source(*link, buffers); break;
    case Kind::encoder_attention: attend_texts<T>(*link, buffers); break;
    }
    const auto now = Clock::now();
    seconds[static_cast<int64_t>(link->kind)] += std::chrono::duration<double>(now - before).count();
    before = now;
  }
}

// chain(links, count, places, rows, positions, step, sources, texts, is_float, seconds, runs, num_runs): seconds by kind
// are added up
inline PyObject *chain(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(12, count, "chain")) return nullptr;
  const Link *links = address<Link>(args[0]);
  const int64_t num_links = integer(args[1]);
  const Buffers buffers{address<void *>(args[2]), integer(args[3]), address<int64_t>(args[4]),
                        address<attention::Step>(args[5]), address<attention::Step>(args[6]),
                        address<encoder::Texts>(args[7]), address<linear_kernels::Run>(args[10]), integer(args[11])};
  const bool is_float = integer(args[8]);
  double *seconds = address<double>(args[9]);
  return unlocked([=] {
    is_float ? run<float>(links, num_links, buffers, seconds) : run<uint16_t>(links, num_links, buffers, seconds);
  });
}

} // namespace chain

#define CHAIN_METHODS METHOD_AS(chain, chain::chain),
