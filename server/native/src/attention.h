// Paged attention on the CPU: writes a step's new keys and values and attends over all that the cache holds.
//
// Work is cut into tiles, queries of one sequence and one key/value head that are multiplied together, and each tile goes
// over fixed partitions of the keys. Where there are few tiles, their partitions are dealt out one by one, and their
// results wait in a buffer for the same merge in the same order. While a thread is at one block, those that it needs soon
// come from memory.
#pragma once

#include "attention_matrix.h"
#include "python.h"
#include "shares.h"

#include <vector>

namespace attention {

// Queries `first` to `first + count - 1` of a row and a head: query i is head i % group of token i / group.
struct Tile {
  const Row *row;
  int64_t head, first, count;
  int64_t first_key, last_key; // any of its queries sees: absolute, both included
  float *results;              // a place for each partition, absent where one thread goes over all of them

  int64_t first_part() const { return first_key / PARTITION; }
  int64_t num_parts() const { return last_key / PARTITION - first_part() + 1; }
};

struct Work {
  const Tile *tile;
  int64_t first_part, num_parts;

  int64_t last_part() const { return first_part + num_parts - 1; }
};

// Waking the other threads costs as much as writing about so many heads of tokens.
constexpr int64_t FEW_HEADS = 32;

struct Plan {
  std::vector<Piece> pieces;
  std::vector<Tile> tiles;
  std::vector<Work> works;
  std::vector<const Tile *> split; // tiles that several works are of
  std::vector<float> results;
  Shares shares;
};

inline void cut_pieces(const Step &step, Plan &plan) {
  plan.pieces.clear();
  for (const Row *row = step.rows; row < step.rows + step.num_rows; ++row) {
    for (int64_t first = 0; first < row->count && !row->visible;) {
      const int64_t count = std::min(row->count - first, BLOCK - (row->computed + first) % BLOCK);
      plan.pieces.push_back({row, first, count});
      first += count;
    }
  }
}

// Tiles have up to `most` queries.
inline void cut_tiles(const Layer &layer, const Step &step, int64_t most, Plan &plan) {
  const int64_t group = layer.num_heads / layer.num_kv_heads;
  for (const Row *row = step.rows; row < step.rows + step.num_rows; ++row) {
    const int64_t queries = row->count * group, cuts = (queries + most - 1) / most, size = (queries + cuts - 1) / cuts;
    for (int64_t head = 0; head < layer.num_kv_heads; ++head) {
      for (int64_t first = 0; first < queries; first += size) {
        const int64_t count = std::min(size, queries - first);
        const int64_t lowest = row->last_key(first / group), highest = row->last_key((first + count - 1) / group);
        const int64_t first_key = layer.window ? std::max<int64_t>(0, lowest - layer.window + 1) : 0;
        plan.tiles.push_back({row, head, first, count, first_key, highest, nullptr});
      }
    }
  }
}

inline void deal_out(const Layer &layer, Plan &plan) {
  int64_t parts = 0, floats = 0;
  for (const Tile &tile : plan.tiles) parts += tile.num_parts();
  const int64_t share = std::max<int64_t>(1, parts / (8 * num_threads));
  const auto is_split = [&](const Tile &tile) { return num_threads > 1 && tile.num_parts() > share; };
  const auto size = [&](const Tile &tile) { return tile.num_parts() * tile.count * (layer.value_dim + 2); };
  for (const Tile &tile : plan.tiles)
    if (is_split(tile)) floats += size(tile);
  if (static_cast<int64_t>(plan.results.size()) < floats) plan.results.resize(floats);
  plan.works.clear();
  plan.split.clear();
  float *results = plan.results.data();
  for (Tile &tile : plan.tiles) {
    const int64_t first = tile.first_part(), count = tile.num_parts(), step = is_split(tile) ? share : count;
    if (is_split(tile)) {
      tile.results = results;
      results += size(tile);
      plan.split.push_back(&tile);
    }
    for (int64_t part = 0; part < count; part += step)
      plan.works.push_back({&tile, first + part, std::min(step, count - part)});
  }
}

// One thread's tile: packed queries, scores, and results.
template <class T> class Worker {
public:
  Worker(const Layer &layer, const Step &step, const Call &call)
      : layer(layer), step(step), call(call), group(layer.num_heads / layer.num_kv_heads),
        num_words(layer.key_dim / T::PACK) {}

  // The works after it, up to `end`, are likely to be next.
  void run(const Work *work, const Work *end) {
    const Tile &tile = *work->tile;
    if (step.failed[tile.row - step.rows]) return spoil(tile);
    load_queries(tile);
    if (!tile.results) start(tile);
    // A prompt's other tiles use the same blocks.
    if constexpr (requires { products.is_near; }) products.is_near = tile.row->count * group > 2 * ROWS;
    for (int64_t index = work->first_part; index <= work->last_part(); ++index) {
      const int64_t num_blocks = look_ahead(work, end, index);
      attend(tile, index, num_blocks, tile.results ? split_results(tile, index) : part);
      if (!tile.results) add(tile, part);
    }
    if (!tile.results) finish(tile);
  }

  // Adds up what the threads left of a tile.
  void complete(const Tile &tile) {
    if (step.failed[tile.row - step.rows]) return;
    start(tile);
    for (int64_t i = 0; i < tile.num_parts(); ++i) add(tile, split_results(tile, tile.first_part() + i));
    finish(tile);
  }

private:
  using Value = typename T::Value;
  static constexpr int ROWS = Products<T>::ROWS;
  static constexpr int64_t STEP = Products<T>::STEP;

  int64_t token_of(const Tile &tile, int r) const { return (tile.first + r) / group; }
  int64_t head_of(const Tile &tile, int r) const { return tile.head * group + (tile.first + r) % group; }

  Results split_results(const Tile &tile, int64_t part) const {
    const int64_t size = tile.count * (layer.value_dim + 2);
    return results_at(tile.results + (part - tile.first_part()) * size, tile.count, layer.value_dim);
  }

  void load_queries(const Tile &tile) {
    alignas(64) float wide[MOST_DIM];
    for (int r = 0; r < tile.count; ++r) {
      const int64_t token = tile.row->start + token_of(tile, r);
      const Value *from =
          static_cast<const Value *>(call.query) + token * call.query_token + head_of(tile, r) * call.query_head;
      prepare<T>(call, from, layer.key_dim, call.query_norm, token, wide);
      uint32_t *words = queries + r * QUERY_STRIDE;
      if constexpr (T::HAS_SCALES) fix_query(wide, layer.key_dim, words);
      else round_all<T>(wide, layer.key_dim, reinterpret_cast<Value *>(words));
      if constexpr (STEP > 1) std::fill(words + num_words, words + (num_words + STEP - 1) / STEP * STEP, 0);
    }
  }

  // A sink is one more place to look at, without a value.
  void start(const Tile &tile) const {
    std::fill_n(total.sums, tile.count * layer.value_dim, 0.0f);
    for (int r = 0; r < tile.count; ++r) {
      total.tops[r] = call.sinks ? call.sinks[head_of(tile, r)] : -INFINITE;
      total.totals[r] = call.sinks ? 1.0f : 0.0f;
    }
  }

  void add(const Tile &tile, const Results &results) const {
    merge(total, results, static_cast<int>(tile.count), layer.value_dim);
  }

  // Sets `places` to the blocks of a partition and those asked for AHEAD of their use; returns how many are its own.
  int64_t look_ahead(const Work *work, const Work *end, int64_t part) {
    int64_t own = 0, count = 0;
    for (int64_t done = part - work->first_part; work < end; ++work, done = 0) {
      const Tile &tile = *work->tile;
      for (int64_t next = work->first_part + done; next <= work->last_part(); ++next) {
        const int64_t first = std::max(tile.first_key / BLOCK, next * PARTITION_BLOCKS);
        const int64_t last = std::min(tile.last_key / BLOCK, (next + 1) * PARTITION_BLOCKS - 1);
        for (int64_t block = first; block <= last; ++block) {
          places[count++] = Place<T>(layer, step.block_tables[tile.row->table + block], tile.head);
          if (own && count == own + AHEAD) return own;
        }
        if (!own) own = count;
      }
    }
    std::fill(places + count, places + own + AHEAD, places[count - 1]);
    return own;
  }

  void attend(const Tile &tile, int64_t part, int64_t num_blocks, const Results &results) {
    const int rows = static_cast<int>(tile.count);
    products.score(rows, queries, places, num_blocks, num_words, scores);
    const int64_t start = std::max(tile.first_key / BLOCK * BLOCK, part * PARTITION);
    for (int r = 0; r < rows; ++r) {
      const int64_t position = tile.row->last_key(token_of(tile, r)) - start;
      const DistanceBias bias(layer.bias, layer.bias_width, layer.bias_middle, head_of(tile, r));
      const int64_t first = layer.window ? position - layer.window + 1 : 0;
      weigh<T>(layer, scores + r * SCORE_STRIDE, num_blocks * BLOCK, first, position + 1, results.tops + r,
               results.totals + r, bias, position);
    }
    products.combine(rows, scores, places, num_blocks, layer.value_dim, results.sums);
  }

  Value *out_of(const Tile &tile, int r) const {
    const int64_t token = tile.row->start + token_of(tile, r);
    return static_cast<Value *>(call.out) + (token * layer.num_heads + head_of(tile, r)) * layer.value_dim;
  }

  void finish(const Tile &tile) const {
    for (int r = 0; r < tile.count; ++r) {
      const float factor = 1.0f / total.totals[r];
      Value *out = out_of(tile, r);
      for (int64_t i = 0; i < layer.value_dim; ++i) out[i] = T::rounded(total.sums[r * layer.value_dim + i] * factor);
    }
  }

  void spoil(const Tile &tile) const {
    const Value nothing = T::rounded(std::numeric_limits<float>::quiet_NaN());
    for (int r = 0; r < tile.count; ++r) std::fill_n(out_of(tile, r), layer.value_dim, nothing);
  }

  const Layer &layer;
  const Step &step;
  const Call &call;
  const int64_t group, num_words; // of a query
  Products<T> products;
  alignas(64) uint32_t queries[ROWS * QUERY_STRIDE];
  alignas(64) float scores[ROWS * SCORE_STRIDE];
  Place<T> places[PARTITION_BLOCKS + AHEAD];
  alignas(64) float memory[2][ROWS * (MOST_DIM + 2)];
  const Results total = results_at(memory[0], ROWS, MOST_DIM), part = results_at(memory[1], ROWS, MOST_DIM);
};

template <class T> void write_piece(const Layer &layer, const Step &step, const Call &call, const Piece &piece) {
  if (!write<T>(layer, step, call, piece))
    __atomic_store_n(step.failed + (piece.row - step.rows), uint8_t{1}, __ATOMIC_RELAXED);
}

template <class T> void attend_layer(const Layer &layer, const Step &step, const Call &call) {
  static thread_local Plan own;
  Plan &plan = own; // the other threads are to see this one
  cut_pieces(step, plan);
  plan.tiles.clear();
  if (call.query) cut_tiles(layer, step, Products<T>::ROWS, plan);
  deal_out(layer, plan);
  int64_t num_tokens = 0;
  for (const Piece &piece : plan.pieces) num_tokens += piece.count;
  const int64_t num_pieces = plan.pieces.size(), num_works = plan.works.size(), num_split = plan.split.size();
  const bool writes_alone = num_tokens * layer.num_kv_heads <= FEW_HEADS;
  if (writes_alone)
    for (const Piece &piece : plan.pieces) write_piece<T>(layer, step, call, piece);
  plan.shares.reset(num_works, num_threads);
#pragma omp parallel num_threads(num_threads)
  {
    if (!writes_alone) {
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < num_pieces; ++i) write_piece<T>(layer, step, call, plan.pieces[i]);
    }
    Worker<T> worker(layer, step, call);
    const Work *works = plan.works.data();
    plan.shares.each([&](int64_t i) { worker.run(works + i, works + num_works); });
    if (num_split) {
#pragma omp barrier
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t i = 0; i < num_split; ++i) worker.complete(*plan.split[i]);
    }
  }
}

// T is what the model computes in.
template <class T> void attend_cache(const Layer &layer, const Step &step, const Call &call) {
  switch (layer.cache_kind) {
  case CacheKind::own: return attend_layer<T>(layer, step, call);
  case CacheKind::int8: return attend_layer<Int8<T>>(layer, step, call);
  }
}

inline void attend_layer(const Layer &layer, const Step &step, const Call &call) {
  layer.is_bfloat16 ? attend_cache<Bfloat16>(layer, step, call) : attend_cache<Float32>(layer, step, call);
}

// attend(layer, step, call): addresses of the three structs
inline PyObject *attend(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(3, count, "attend")) return nullptr;
  const Layer *layer = address<Layer>(args[0]);
  const Step *step = address<Step>(args[1]);
  const Call *call = address<Call>(args[2]);
  return unlocked([=] { attend_layer(*layer, *step, *call); });
}

} // namespace attention

using attention::attend;

#define ATTENTION_METHODS METHOD(attend)
