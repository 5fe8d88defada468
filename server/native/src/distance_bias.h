// What attention adds to a score by the key's place relative to the query's. Keys beyond either end of a table have what
// the end has, so that a table of any length serves all lengths.
#pragma once

#include <algorithm>
#include <cstdint>

// Places that repeat the value of an end, on both sides of a head's table: a whole vector may lie beyond it.
constexpr int64_t BIAS_MARGIN = 16;

// Of one head. Absent where `from` is null.
struct DistanceBias {
  const float *from = nullptr;
  int64_t middle = 0, last = 0; // the places of a key at its query, and of the last vector

  DistanceBias() = default;

  // `tables` is [heads][width].
  DistanceBias(const float *tables, int64_t width, int64_t middle, int64_t head)
      : from(tables ? tables + head * width : nullptr), middle(middle), last(width - BIAS_MARGIN) {}

  explicit operator bool() const { return from; }

  // For up to BIAS_MARGIN keys, the first of which lies `distance` behind the query.
  const float *at(int64_t distance) const { return from + std::clamp<int64_t>(middle + distance, 0, last); }
};
