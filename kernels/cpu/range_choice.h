// The selectors of SelectRanges: which units (columns, distances, blocks) of one row of scores are
// kept. Pure functions; any thread.
//
// Forced units come first in every order and count; of the others the larger score, then the
// smaller id. A NaN ranks below everything.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace lacuna::kernels::cpu {

struct ChoiceRule final {
  int64_t forced_head = 0;  // units [0, forced_head) and [forced_tail, ...) are forced
  int64_t forced_tail = std::numeric_limits<int64_t>::max();
  int64_t count_min = 0;
  int64_t count_max = std::numeric_limits<int64_t>::max();  // of all units; forced ones stay
  // Of the scores' sum. With `inclusive` the unit that reaches it is kept, else dropped; the best
  // unit is always kept.
  double mass = 0;
  bool inclusive = true;
};

// Marks of `units` bits.
class UnitSet final {
 public:
  UnitSet() = default;
  explicit UnitSet(std::span<uint64_t> words) : words_(words) {}

  void Clear() {
    for (uint64_t& word : words_) word = 0;
  }
  void Add(int64_t unit) { words_[Word(unit)] |= uint64_t{1} << (unit % 64); }
  bool Has(int64_t unit) const { return ((words_[Word(unit)] >> (unit % 64)) & 1u) != 0; }
  void AddRun(int64_t begin, int64_t end);
  void AddAll(const UnitSet& other);
  // The first unit >= from that is marked (or is not, with `marked` false), at most `end`.
  int64_t Next(int64_t from, int64_t end, bool marked) const;

 private:
  static size_t Word(int64_t unit) { return static_cast<size_t>(unit / 64); }
  std::span<uint64_t> words_;
};

// Keeps the best `rule.count_max` units.
void KeepCount(std::span<const float> scores, const ChoiceRule& rule, std::vector<uint64_t>* order,
               UnitSet* kept);

// Keeps the fewest units that hold the mass, within the counts.
void KeepMass(std::span<const float> scores, const ChoiceRule& rule, std::vector<uint64_t>* order,
              UnitSet* kept);

// The same over all rows of a map at once, by one rule but for the forced units, of which `rules`
// has each row's; mass, counts and inclusive are those of rules[0]. Equal scores: the smaller unit,
// then the smaller row.
void KeepMapMass(std::span<const std::span<const float>> scores, std::span<const ChoiceRule> rules,
                 std::vector<uint64_t>* order, std::span<UnitSet> kept);

}  // namespace lacuna::kernels::cpu
