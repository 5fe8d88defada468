// One token a row: transformers' rules in its order, then the inverse of the cumulative distribution in the order of
// token ids. What each part is, is told in sampler.py, cutoffs.py and draw_rules.py, whose torch it stands for.
#pragma once

#include "elementwise.h"
#include "scores.h"

#include <numbers>

namespace sampling {

using scores::power_of_2;
using scores::NONE;

// The columns of a row's controls, as native_draw.py writes them.
enum Control : int {
  DO_SAMPLE,
  TEMPERATURE,
  TOP_N_SIGMA,
  TOP_K,
  TOP_P,
  MIN_P,
  TYPICAL_P,
  EPSILON_CUTOFF,
  ETA_CUTOFF,
  XTC_THRESHOLD,
  EXCLUDES_TOP,
  UNIFORM,
  NUM_CONTROLS
};

constexpr float LEAST_TEMPERATURE = 1e-20f;

// Its thread's memory for one row at a time. It grows to what the widest row needs and stays.
struct Memory : scores::Memory {
  std::vector<float> scores, keys, maxima, left, sorted;
  std::vector<int32_t> ids;

  float *room_for_maxima(int64_t width) {
    maxima.resize(scores::num_blocks(width) * scores::LANES);
    return maxima.data();
  }
};

inline Memory &memory_of_thread() {
  thread_local Memory memory;
  return memory;
}

// What is left of a row, in the order of token ids: the whole vocabulary's logits, or those of some ids.
struct Candidates {
  const float *logits;
  const int32_t *ids;
  int64_t count;
  float top;         // the greatest logit
  float rate;        // binary logarithms of the weight for one logit
  float temperature;
  bool has_maxima;   // whether the memory's are of these logits

  float score(int64_t i) const { return logits[i] / temperature; }

  // Proportional to the probability, 1 for the most likely token.
  float weight(int64_t i) const { return power_of_2((logits[i] - top) * rate); }

  int64_t id(int64_t i) const { return ids ? ids[i] : i; }
};

class Draw {
public:
  Draw(float *logits, int64_t width, const double *controls, Memory &memory)
      : logits(logits), width(width), controls(controls), memory(memory) {}

  // The token; -1 where the logits hold what is not finite, or forbid all.
  int64_t token() {
    top_logit = scores::survey(logits, width, memory.room_for_maxima(width));
    if (top_logit == NONE) return -1;
    left = {logits, nullptr, width, top_logit, scores::LOG2_E, 1.0f, true};
    if (controls[DO_SAMPLE] == 0.0) return first_of_greatest();
    if (controls[TOP_N_SIGMA] > 0.0) keep_top_n_sigma();
    heat();
    if (controls[TOP_K] > 0.0) keep_top_k(static_cast<int64_t>(controls[TOP_K]));
    if (controls[TOP_P] < 1.0) keep_nucleus(static_cast<double>(asked(TOP_P)));
    if (controls[MIN_P] > 0.0) keep_min_p(asked(MIN_P));
    if (controls[TYPICAL_P] < 1.0) keep_typical(static_cast<double>(asked(TYPICAL_P)));
    if (controls[EPSILON_CUTOFF] > 0.0) keep_likely(asked(EPSILON_CUTOFF));
    if (controls[ETA_CUTOFF] > 0.0) keep_eta(asked(ETA_CUTOFF));
    if (controls[EXCLUDES_TOP] != 0.0) exclude_top_choices(asked(XTC_THRESHOLD));
    return left.id(invert());
  }

  // The scores that the token was drawn from, minus infinity for what was left out.
  void tell(float *told) const {
    if (left.ids) std::fill_n(told, width, NONE);
    for (int64_t i = 0; i < left.count; ++i) told[left.id(i)] = left.score(i);
  }

private:
  float *logits;
  int64_t width;
  const double *controls;
  Memory &memory;
  float top_logit = NONE;
  Candidates left = {};

  float asked(Control control) const { return static_cast<float>(controls[control]); }

  int64_t first_of_greatest() const {
    int64_t first = 0;
    const float *maxima = memory.maxima.data();
    for (; *std::max_element(maxima, maxima + scores::LANES) < top_logit; first += scores::BLOCK) maxima += scores::LANES;
    while (logits[first] < top_logit) ++first;
    return first;
  }

  // Counted over the logits that are not forbidden: these are below the greatest by less than infinity.
  void keep_top_n_sigma() {
    float *const from = logits;
    const float top = top_logit;
    const double count = scores::sum(width, [=](int64_t i) { return from[i] > NONE ? 1.0f : 0.0f; });
    const double below = scores::sum(width, [=](int64_t i) {
      const float value = from[i] - top;
      return from[i] > NONE ? value : 0.0f;
    });
    const float mean = static_cast<float>(below / count);
    const double squares = scores::sum(width, [=](int64_t i) {
      const float spread = from[i] - top - mean;
      return from[i] > NONE ? spread * spread : 0.0f;
    });
    const float least = static_cast<float>(-(controls[TOP_N_SIGMA] * std::sqrt(squares / count)));
    for (int64_t i = 0; i < width; ++i) from[i] = from[i] - top < least ? NONE : from[i];
    left.has_maxima = false;
  }

  // Scores are logits over the temperature. At an extreme one they are computed at once, below the greatest where they
  // might be infinite.
  void heat() {
    const float temperature = asked(TEMPERATURE);
    const bool is_cold = temperature < LEAST_TEMPERATURE || !std::isfinite(top_logit / temperature);
    left.temperature = temperature;
    left.rate = scores::LOG2_E / temperature;
    if (!is_cold && temperature > 1e-6f && temperature < 1e6f) return;
    memory.scores.resize(width);
    const float shift = is_cold ? top_logit : 0.0f;
    const float *from = logits;
    const float top = scores::survey(width, memory.scores.data(), memory.room_for_maxima(width),
                                     [=](int64_t i) { return (from[i] - shift) / temperature; });
    left = {memory.scores.data(), nullptr, width, top, scores::LOG2_E, 1.0f, true};
  }

  double mass() const {
    const Candidates from = left;
    return scores::sum(from.count, [=](int64_t i) { return from.weight(i); });
  }

  // In nats.
  double entropy(double mass) const {
    const Candidates from = left;
    const double surprise = scores::sum(from.count, [=](int64_t i) {
      const float power = (from.logits[i] - from.top) * from.rate;
      return power_of_2(power) * (power > -scores::HUGE ? power : -scores::HUGE);
    });
    return std::log(mass) - surprise / mass * std::numbers::ln2;
  }

  // Keeps the places whose key is at least the bound and for which is_kept(i) holds.
  template <class Kept> void keep(const float *keys, float bound, Kept is_kept) {
    memory.left.resize(left.count);
    memory.ids.resize(left.count);
    int64_t count = 0;
    float top = NONE;
    scores::for_each_above(keys, left.count, std::max(bound, scores::LEAST), [&](int64_t i) {
      const float logit = left.logits[i];
      if (!is_kept(i)) return;
      memory.ids[count] = static_cast<int32_t>(left.id(i));
      memory.left[count++] = logit;
      top = logit > top ? logit : top;
    });
    left.logits = memory.left.data(), left.ids = memory.ids.data();
    left.count = count, left.top = top, left.has_maxima = false;
  }

  template <class Kept> void keep(float bound, Kept is_kept) { keep(left.logits, bound, is_kept); }

  // A logit that is a little below those with so many times the weight of the greatest.
  float logit_below(float weight) const {
    const float bound = left.top + std::min(std::log2(weight), 0.0f) / left.rate;
    return bound - std::abs(bound) * 1e-5f - 1e-5f / left.rate;
  }

  const float *maxima_of_logits() {
    float *maxima = memory.room_for_maxima(left.count);
    if (!left.has_maxima) scores::survey(left.logits, left.count, maxima);
    return maxima;
  }

  int64_t num_groups() const { return scores::num_blocks(left.count) * scores::LANES; }

  // And all whose score equals that of the last: logits that differ may have one score.
  void keep_top_k(int64_t k) {
    const float bound = scores::lower_bound(maxima_of_logits(), num_groups(), k);
    keep(bound - std::abs(bound) * 1e-6f, [](int64_t) { return true; });
    if (left.count <= k) return;
    memory.sorted.assign(left.logits, left.logits + left.count);
    const float least = scores::kth_largest(memory.sorted, k) / left.temperature;
    keep(NONE, [=, this](int64_t i) { return left.score(i) >= least; });
  }

  void keep_nucleus(double share) {
    const Candidates from = left;
    const double wanted = share * mass();
    const auto weight = [=](int64_t i) { return from.weight(i); };
    const scores::Edge edge =
        scores::edge_of(from.logits, from.count, maxima_of_logits(), from.top, wanted, weight, memory);
    keep(edge.key, [=](int64_t i) { return edge.keeps(from.logits[i], i); });
  }

  void keep_min_p(float least) {
    const Candidates from = left;
    keep(logit_below(least), [=](int64_t i) { return from.weight(i) >= least; });
  }

  void keep_typical(double share) {
    const double whole = mass();
    const float offset = static_cast<float>(std::log(whole) - entropy(whole));
    const Candidates from = left;
    memory.keys.resize(from.count);
    float *nearness = memory.keys.data(), *maxima = memory.room_for_maxima(from.count);
    const float rate = 1.0f / from.temperature;
    const float nearest = scores::survey(from.count, nearness, maxima, [=](int64_t i) {
      return -std::abs(offset - (from.logits[i] - from.top) * rate);
    });
    const auto weight = [=](int64_t i) { return from.weight(i); };
    const scores::Edge edge = scores::edge_of(nearness, from.count, maxima, nearest, share * whole, weight, memory);
    keep(nearness, edge.key, [](int64_t) { return true; });
  }

  // Keeps what is at least so likely, and always the most likely token.
  void keep_likely(float least) {
    const Candidates from = left;
    const float whole = static_cast<float>(mass());
    keep(logit_below(least * whole),
         [=](int64_t i) { return from.weight(i) / whole >= least || from.logits[i] >= from.top; });
  }

  void keep_eta(float eta) {
    keep_likely(std::min(eta, std::sqrt(eta) * static_cast<float>(std::exp(-entropy(mass())))));
  }

  // XTC: leaves out the tokens of at least the threshold's probability, but for the least likely of them.
  void exclude_top_choices(float threshold) {
    const Candidates from = left;
    const float whole = static_cast<float>(mass()), bound = std::max(logit_below(threshold * whole), scores::LEAST);
    const auto is_above = [=](int64_t i) { return from.logits[i] >= bound && from.weight(i) / whole >= threshold; };
    int64_t least = -1;
    scores::for_each_above(from.logits, from.count, bound, [&](int64_t i) {
      if (is_above(i) && (least < 0 || from.logits[i] < from.logits[least])) least = i;
    });
    if (least >= 0) keep(NONE, [=](int64_t i) { return i == least || !is_above(i); });
  }

  // The first column whose cumulated weight is above the row's uniform number of the whole: blocks are cumulated, then
  // the weights of one block, in float64. Rounding may leave none: then the last of positive weight.
  int64_t invert() {
    const Candidates from = left;
    memory.sums.clear();
    double whole = 0.0;
    for (int64_t first = 0; first < left.count; first += scores::BLOCK) {
      const int64_t stop = std::min<int64_t>(first + scores::BLOCK, left.count);
      memory.sums.push_back(scores::block_sum(first, stop, [=](int64_t i) { return from.weight(i); }));
      whole += memory.sums.back();
    }
    const double target = controls[UNIFORM] * whole;
    double before = 0.0;
    int64_t last = 0;
    for (size_t block = 0; block < memory.sums.size(); ++block) {
      if (memory.sums[block] > 0.0) last = static_cast<int64_t>(block);
      if (before + memory.sums[block] > target) break;
      before += memory.sums[block];
    }
    return place_in(last * scores::BLOCK, target - before);
  }

  int64_t place_in(int64_t first, double target) const {
    const int64_t stop = std::min<int64_t>(first + scores::BLOCK, left.count);
    int64_t last = first;
    double sum = 0.0;
    for (int64_t i = first; i < stop; ++i) {
      const float weight = left.weight(i);
      if (weight > 0.0f) last = i;
      sum += static_cast<double>(weight);
      if (sum > target) break;
    }
    return last;
  }
};

// draw(logits, rows, width, controls, tokens, told): controls are float64 [rows, NUM_CONTROLS]; tokens int64 [rows], -1
// where there is none; told int64 [rows], where to write what the token was drawn from, or 0. The logits may be changed.
inline PyObject *draw(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(6, count, "draw")) return nullptr;
  float *logits = address<float>(args[0]);
  const int64_t rows = integer(args[1]), width = integer(args[2]);
  const double *controls = address<double>(args[3]);
  int64_t *tokens = address<int64_t>(args[4]);
  const int64_t *told = address<int64_t>(args[5]);
  return elementwise::for_each_row(rows, width, [=](int64_t row) {
    Draw draw(logits + row * width, width, controls + row * NUM_CONTROLS, memory_of_thread());
    tokens[row] = draw.token();
    if (told[row]) draw.tell(reinterpret_cast<float *>(told[row]));
  });
}

// log_masses(logits, rows, width, tops, log_masses): of each row its greatest value and the log of its sum of
// exponentials, where the greatest counts 1. Not finite where a value is not.
inline PyObject *log_masses(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(5, count, "log_masses")) return nullptr;
  const float *logits = address<float>(args[0]);
  const int64_t rows = integer(args[1]), width = integer(args[2]);
  float *tops = address<float>(args[3]), *masses = address<float>(args[4]);
  return elementwise::for_each_row(rows, width, [=](int64_t row) {
    const float *values = logits + row * width;
    const float top = scores::survey(values, width, memory_of_thread().room_for_maxima(width));
    const double mass = scores::sum(width, [=](int64_t i) { return power_of_2((values[i] - top) * scores::LOG2_E); });
    tops[row] = top;
    masses[row] = top > NONE ? static_cast<float>(std::log(mass)) : std::numeric_limits<float>::quiet_NaN();
  });
}

// largest(values, rows, width, num_candidates, found, columns): the greatest values of each row and their columns, in
// the order of columns; of equal ones at the edge the lowest columns.
inline PyObject *largest(PyObject *, Args args, Py_ssize_t count) {
  if (!takes(6, count, "largest")) return nullptr;
  const float *values = address<float>(args[0]);
  const int64_t rows = integer(args[1]), width = integer(args[2]), wanted = integer(args[3]);
  float *found = address<float>(args[4]);
  int64_t *columns = address<int64_t>(args[5]);
  return elementwise::for_each_row(rows, width, [=](int64_t row) {
    Memory &memory = memory_of_thread();
    const float *from = values + row * width;
    float *maxima = memory.room_for_maxima(width);
    scores::survey(from, width, maxima);
    const float bound = scores::lower_bound(maxima, scores::num_blocks(width) * scores::LANES, wanted);
    memory.ids.clear();
    memory.left.clear();
    scores::for_each_above(from, width, bound, [&](int64_t i) {
      memory.ids.push_back(static_cast<int32_t>(i));
      memory.left.push_back(from[i]);
    });
    // Where what is no number leaves too few, the row means nothing.
    for (int32_t i = 0; static_cast<int64_t>(memory.left.size()) < wanted; ++i) {
      memory.ids.push_back(i);
      memory.left.push_back(NONE);
    }
    memory.sorted = memory.left;
    const float least = scores::kth_largest(memory.sorted, wanted);
    int64_t num_equal = wanted;
    for (const float value : memory.left) num_equal -= value > least;
    int64_t place = row * wanted;
    for (size_t i = 0; i < memory.left.size(); ++i) {
      const bool is_equal = memory.left[i] == least;
      if (memory.left[i] < least || (is_equal && num_equal-- <= 0)) continue;
      found[place] = memory.left[i];
      columns[place++] = memory.ids[i];
    }
  });
}

} // namespace sampling

using sampling::draw;
using sampling::largest;
using sampling::log_masses;

#define SAMPLING_METHODS METHOD(draw), METHOD(log_masses), METHOD(largest)
