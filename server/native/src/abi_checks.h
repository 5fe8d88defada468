// Written by `python -m server.native.abi`: what Python fills lies where the kernels read it. Do not edit.
#pragma once

#include "attention.h"
#include "chain.h"
#include "linear.h"

#include <cstddef>
#include <type_traits>

namespace abi {

template <class T> constexpr bool is_address = std::is_pointer_v<T> && sizeof(T) == 8;
template <class T> constexpr bool is_real = std::is_same_v<T, double>;
template <class T> constexpr bool is_integer = (std::is_integral_v<T> || std::is_enum_v<T>) && sizeof(T) == 8;

} // namespace abi

static_assert(sizeof(attention::Layer) == 104);
static_assert(offsetof(attention::Layer, pool) == 0);
static_assert(abi::is_address<decltype(attention::Layer::pool)>);
static_assert(offsetof(attention::Layer, num_heads) == 8);
static_assert(abi::is_integer<decltype(attention::Layer::num_heads)>);
static_assert(offsetof(attention::Layer, num_kv_heads) == 16);
static_assert(abi::is_integer<decltype(attention::Layer::num_kv_heads)>);
static_assert(offsetof(attention::Layer, key_dim) == 24);
static_assert(abi::is_integer<decltype(attention::Layer::key_dim)>);
static_assert(offsetof(attention::Layer, value_dim) == 32);
static_assert(abi::is_integer<decltype(attention::Layer::value_dim)>);
static_assert(offsetof(attention::Layer, window) == 40);
static_assert(abi::is_integer<decltype(attention::Layer::window)>);
static_assert(offsetof(attention::Layer, scaling) == 48);
static_assert(abi::is_real<decltype(attention::Layer::scaling)>);
static_assert(offsetof(attention::Layer, softcap) == 56);
static_assert(abi::is_real<decltype(attention::Layer::softcap)>);
static_assert(offsetof(attention::Layer, is_bfloat16) == 64);
static_assert(abi::is_integer<decltype(attention::Layer::is_bfloat16)>);
static_assert(offsetof(attention::Layer, cache_kind) == 72);
static_assert(abi::is_integer<decltype(attention::Layer::cache_kind)>);
static_assert(offsetof(attention::Layer, bias) == 80);
static_assert(abi::is_address<decltype(attention::Layer::bias)>);
static_assert(offsetof(attention::Layer, bias_width) == 88);
static_assert(abi::is_integer<decltype(attention::Layer::bias_width)>);
static_assert(offsetof(attention::Layer, bias_middle) == 96);
static_assert(abi::is_integer<decltype(attention::Layer::bias_middle)>);
static_assert(sizeof(attention::Row) == 40);
static_assert(offsetof(attention::Row, start) == 0);
static_assert(abi::is_integer<decltype(attention::Row::start)>);
static_assert(offsetof(attention::Row, count) == 8);
static_assert(abi::is_integer<decltype(attention::Row::count)>);
static_assert(offsetof(attention::Row, computed) == 16);
static_assert(abi::is_integer<decltype(attention::Row::computed)>);
static_assert(offsetof(attention::Row, table) == 24);
static_assert(abi::is_integer<decltype(attention::Row::table)>);
static_assert(offsetof(attention::Row, visible) == 32);
static_assert(abi::is_integer<decltype(attention::Row::visible)>);
static_assert(sizeof(attention::Step) == 32);
static_assert(offsetof(attention::Step, rows) == 0);
static_assert(abi::is_address<decltype(attention::Step::rows)>);
static_assert(offsetof(attention::Step, num_rows) == 8);
static_assert(abi::is_integer<decltype(attention::Step::num_rows)>);
static_assert(offsetof(attention::Step, block_tables) == 16);
static_assert(abi::is_address<decltype(attention::Step::block_tables)>);
static_assert(offsetof(attention::Step, failed) == 24);
static_assert(abi::is_address<decltype(attention::Step::failed)>);
static_assert(sizeof(attention::Call) == 144);
static_assert(offsetof(attention::Call, query) == 0);
static_assert(abi::is_address<decltype(attention::Call::query)>);
static_assert(offsetof(attention::Call, key) == 8);
static_assert(abi::is_address<decltype(attention::Call::key)>);
static_assert(offsetof(attention::Call, value) == 16);
static_assert(abi::is_address<decltype(attention::Call::value)>);
static_assert(offsetof(attention::Call, out) == 24);
static_assert(abi::is_address<decltype(attention::Call::out)>);
static_assert(offsetof(attention::Call, query_head) == 32);
static_assert(abi::is_integer<decltype(attention::Call::query_head)>);
static_assert(offsetof(attention::Call, query_token) == 40);
static_assert(abi::is_integer<decltype(attention::Call::query_token)>);
static_assert(offsetof(attention::Call, key_head) == 48);
static_assert(abi::is_integer<decltype(attention::Call::key_head)>);
static_assert(offsetof(attention::Call, key_token) == 56);
static_assert(abi::is_integer<decltype(attention::Call::key_token)>);
static_assert(offsetof(attention::Call, value_head) == 64);
static_assert(abi::is_integer<decltype(attention::Call::value_head)>);
static_assert(offsetof(attention::Call, value_token) == 72);
static_assert(abi::is_integer<decltype(attention::Call::value_token)>);
static_assert(offsetof(attention::Call, positions) == 80);
static_assert(abi::is_address<decltype(attention::Call::positions)>);
static_assert(offsetof(attention::Call, cos) == 88);
static_assert(abi::is_address<decltype(attention::Call::cos)>);
static_assert(offsetof(attention::Call, sin) == 96);
static_assert(abi::is_address<decltype(attention::Call::sin)>);
static_assert(offsetof(attention::Call, num_rotated) == 104);
static_assert(abi::is_integer<decltype(attention::Call::num_rotated)>);
static_assert(offsetof(attention::Call, query_norm) == 112);
static_assert(abi::is_address<decltype(attention::Call::query_norm)>);
static_assert(offsetof(attention::Call, key_norm) == 120);
static_assert(abi::is_address<decltype(attention::Call::key_norm)>);
static_assert(offsetof(attention::Call, eps) == 128);
static_assert(abi::is_real<decltype(attention::Call::eps)>);
static_assert(offsetof(attention::Call, sinks) == 136);
static_assert(abi::is_address<decltype(attention::Call::sinks)>);
static_assert(sizeof(chain::Link) == 136);
static_assert(offsetof(chain::Link, kind) == 0);
static_assert(abi::is_integer<decltype(chain::Link::kind)>);
static_assert(offsetof(chain::Link, source) == 8);
static_assert(abi::is_integer<decltype(chain::Link::source)>);
static_assert(offsetof(chain::Link, residual) == 16);
static_assert(abi::is_integer<decltype(chain::Link::residual)>);
static_assert(offsetof(chain::Link, to) == 24);
static_assert(abi::is_integer<decltype(chain::Link::to)>);
static_assert(offsetof(chain::Link, weight_kind) == 32);
static_assert(abi::is_integer<decltype(chain::Link::weight_kind)>);
static_assert(offsetof(chain::Link, width) == 40);
static_assert(abi::is_integer<decltype(chain::Link::width)>);
static_assert(offsetof(chain::Link, words) == 48);
static_assert(abi::is_integer<decltype(chain::Link::words)>);
static_assert(offsetof(chain::Link, weight) == 56);
static_assert(abi::is_address<decltype(chain::Link::weight)>);
static_assert(offsetof(chain::Link, scale) == 64);
static_assert(abi::is_address<decltype(chain::Link::scale)>);
static_assert(offsetof(chain::Link, offset) == 72);
static_assert(abi::is_address<decltype(chain::Link::offset)>);
static_assert(offsetof(chain::Link, bias) == 80);
static_assert(abi::is_address<decltype(chain::Link::bias)>);
static_assert(offsetof(chain::Link, num_outputs) == 88);
static_assert(abi::is_integer<decltype(chain::Link::num_outputs)>);
static_assert(offsetof(chain::Link, activation) == 96);
static_assert(abi::is_integer<decltype(chain::Link::activation)>);
static_assert(offsetof(chain::Link, is_gated) == 104);
static_assert(abi::is_integer<decltype(chain::Link::is_gated)>);
static_assert(offsetof(chain::Link, eps) == 112);
static_assert(abi::is_real<decltype(chain::Link::eps)>);
static_assert(offsetof(chain::Link, layer) == 120);
static_assert(abi::is_address<decltype(chain::Link::layer)>);
static_assert(offsetof(chain::Link, call) == 128);
static_assert(abi::is_address<decltype(chain::Link::call)>);
static_assert(static_cast<int64_t>(chain::Kind::rms_norm) == 0);
static_assert(static_cast<int64_t>(chain::Kind::layer_norm) == 1);
static_assert(static_cast<int64_t>(chain::Kind::linear) == 2);
static_assert(static_cast<int64_t>(chain::Kind::attention) == 3);
static_assert(static_cast<int64_t>(chain::Kind::cross_attention) == 4);
static_assert(static_cast<int64_t>(linear_kernels::WeightKind::float32) == 0);
static_assert(static_cast<int64_t>(linear_kernels::WeightKind::bfloat16) == 1);
static_assert(static_cast<int64_t>(linear_kernels::WeightKind::int8) == 2);
static_assert(static_cast<int64_t>(linear_kernels::WeightKind::int4) == 3);
static_assert(static_cast<int64_t>(attention::CacheKind::own) == 0);
static_assert(static_cast<int64_t>(attention::CacheKind::int8) == 1);
static_assert(static_cast<int64_t>(lanes::Activation::none) == 0);
static_assert(static_cast<int64_t>(lanes::Activation::silu) == 1);
static_assert(static_cast<int64_t>(lanes::Activation::gelu) == 2);
static_assert(static_cast<int64_t>(lanes::Activation::gelu_tanh) == 3);
static_assert(static_cast<int64_t>(lanes::Activation::relu) == 4);
static_assert(static_cast<int64_t>(linear_kernels::PANEL) == 48);
static_assert(static_cast<int64_t>(int4::GROUP) == 32);
static_assert(static_cast<int64_t>(attention::BLOCK) == 32);
static_assert(static_cast<int64_t>(attention::MOST_DIM) == 256);
static_assert(static_cast<int64_t>(BIAS_MARGIN) == 16);

#define ABI_DIGEST "07e2ef3968146edc"
