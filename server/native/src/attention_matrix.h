// The products of attention on matrix units, in tiles of 16 rows of 16 words. A block of the cache has two tiles of keys
// side by side, and a tile of values for every sixteen columns. Every sum runs over dims or keys in one order, whatever
// the number of rows.
#pragma once

#include "attention_byte_products.h"
#include "tile.h"

namespace attention {

#ifdef HAS_TILES

// Up to 32 rows: registers 0 and 1 have the sums of the first sixteen, 2 and 3 those of the others. Registers 4 and 5
// are the rows, 6 and 7 what they are multiplied with.
class MatrixProducts {
public:
  static constexpr int ROWS = 32;
  static constexpr int64_t STEP = 16; // words of a query that are multiplied at once

  bool is_near = false; // the cache's blocks were used a moment ago and need not come from memory

  // Products of queries with the keys of `count` blocks, of `words` each. Queries are zero from there up to a whole
  // step. What lies behind the keys is finite: the block's values. Meanwhile the keys of those AHEAD of them come.
  void score(int rows, const uint32_t *queries, const Place<Bfloat16> *places, int64_t count, int64_t words,
             float *scores) {
    shape(rows);
    const auto each_block = [&](auto is_tall) {
      for (int64_t block = 0; block < count; ++block)
        score_block<is_tall>(queries, places[block].keys, places[block + AHEAD].keys, words, scores + block * BLOCK);
    };
    rows > TALL ? each_block(std::true_type{}) : each_block(std::false_type{});
  }

  // Weighted sums of `width` columns of values. Meanwhile the values AHEAD of them come.
  void combine(int rows, const float *scores, const Place<Bfloat16> *places, int64_t count, int64_t width,
               float *sums) {
    shape(rows);
    const uint32_t *weights = reinterpret_cast<const uint32_t *>(scores);
    const auto each_column = [&](auto is_tall) {
      int64_t column = 0;
      for (; column + 2 * TALL <= width; column += 2 * TALL)
        combine_columns<is_tall, true>(weights, places, count, width, column, sums + column);
      if (column < width) combine_columns<is_tall, false>(weights, places, count, width, column, sums + column);
    };
    rows > TALL ? each_column(std::true_type{}) : each_column(std::false_type{});
  }

private:
  static constexpr int TALL = tile::ROWS;
  static constexpr int64_t WORD = sizeof(uint32_t);

  void shape(int rows) {
    const int first = std::min(rows, TALL), second = rows - first;
    tile::Shapes shapes;
    for (const int t : {0, 1, 4}) shapes.set(t, first);
    for (const int t : {2, 3, 5})
      if (second > 0) shapes.set(t, second);
    for (const int t : {6, 7}) shapes.set(t, tile::ROWS);
    tiles.shape(shapes);
  }

  template <bool IS_TALL, bool IS_WIDE> static void clear() {
    tile::zero<0>();
    if constexpr (IS_WIDE) tile::zero<1>();
    if constexpr (IS_TALL) tile::zero<2>();
    if constexpr (IS_TALL && IS_WIDE) tile::zero<3>();
  }

  template <bool IS_TALL, bool IS_WIDE>
  static void add_products(const uint32_t *rows, int64_t row_words, const uint32_t *columns, int64_t column_words) {
    tile::load<4>(rows, row_words * WORD);
    tile::load<6>(columns, column_words * WORD);
    tile::add_bfloat16<0, 4, 6>();
    if constexpr (IS_WIDE) tile::load<7>(columns + TALL, column_words * WORD);
    if constexpr (IS_WIDE) tile::add_bfloat16<1, 4, 7>();
    if constexpr (IS_TALL) tile::load<5>(rows + TALL * row_words, row_words * WORD);
    if constexpr (IS_TALL) tile::add_bfloat16<2, 5, 6>();
    if constexpr (IS_TALL && IS_WIDE) tile::add_bfloat16<3, 5, 7>();
  }

  template <bool IS_TALL, bool IS_WIDE> static void store(float *to, int64_t row_words) {
    tile::store<0>(to, row_words * WORD);
    if constexpr (IS_WIDE) tile::store<1>(to + TALL, row_words * WORD);
    if constexpr (IS_TALL) tile::store<2>(to + TALL * row_words, row_words * WORD);
    if constexpr (IS_TALL && IS_WIDE) tile::store<3>(to + TALL * row_words + TALL, row_words * WORD);
  }

  template <bool IS_TALL>
  void score_block(const uint32_t *queries, const uint32_t *keys, const uint32_t *ahead, int64_t words,
                   float *scores) {
    clear<IS_TALL, true>();
    for (int64_t word = 0; word < words; word += STEP) {
      for (int64_t next = word; !is_near && next < std::min(word + STEP, words); ++next) {
        fetch(ahead + next * BLOCK);
        fetch(ahead + next * BLOCK + LANES);
      }
      add_products<IS_TALL, true>(queries + word, QUERY_STRIDE, keys + word * BLOCK, BLOCK);
    }
    store<IS_TALL, true>(scores, SCORE_STRIDE);
  }

  template <bool IS_TALL, bool IS_WIDE>
  void combine_columns(const uint32_t *weights, const Place<Bfloat16> *places, int64_t count, int64_t width,
                       int64_t column, float *sums) {
    clear<IS_TALL, IS_WIDE>();
    for (int64_t block = 0; block < count; ++block) {
      const uint32_t *ahead = places[block + AHEAD].values + column;
      for (int64_t word = 0; !is_near && word < BLOCK / 2; ++word) {
        fetch(ahead + word * width);
        if constexpr (IS_WIDE) fetch(ahead + word * width + LANES);
      }
      add_products<IS_TALL, IS_WIDE>(weights + block * BLOCK / 2, SCORE_STRIDE, places[block].values + column, width);
    }
    store<IS_TALL, IS_WIDE>(sums, width);
  }

  tile::Tiles tiles;
};

// What multiplies with a cache of this type.
template <class T>
using Products = std::conditional_t<std::is_same_v<T, Bfloat16>, MatrixProducts, LanesProducts<T>>;

#else

template <class T> using Products = LanesProducts<T>;

#endif

} // namespace attention
