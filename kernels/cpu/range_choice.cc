#include "kernels/cpu/range_choice.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace lacuna::kernels::cpu {
namespace {

bool IsForced(const ChoiceRule& rule, int64_t unit) {
  return unit < rule.forced_head || unit >= rule.forced_tail;
}

// Ascending: the larger score, then the smaller id.
uint64_t RankOf(float score, uint32_t id) {
  auto bits = std::isnan(score) ? 0xff800000u : std::bit_cast<uint32_t>(score + 0.0f);  // no -0
  bits = (bits >> 31) != 0 ? bits : ~(bits | 0x80000000u);
  return uint64_t{bits} << 32 | id;
}

}  // namespace

void UnitSet::AddRun(int64_t begin, int64_t end) {
  if (begin >= end) return;
  const size_t first = Word(begin), last = Word(end - 1);
  const uint64_t head = ~uint64_t{0} << (begin % 64);
  const uint64_t tail = ~uint64_t{0} >> (63 - (end - 1) % 64);
  if (first == last) {
    words_[first] |= head & tail;
    return;
  }
  words_[first] |= head;
  for (size_t word = first + 1; word < last; ++word) words_[word] = ~uint64_t{0};
  words_[last] |= tail;
}

void UnitSet::AddAll(const UnitSet& other) {
  for (size_t word = 0; word < words_.size(); ++word) words_[word] |= other.words_[word];
}

int64_t UnitSet::Next(int64_t from, int64_t end, bool marked) const {
  while (from < end) {
    const uint64_t word = marked ? words_[Word(from)] : ~words_[Word(from)];
    const uint64_t rest = word >> (from % 64);
    if (rest != 0) return std::min(from + std::countr_zero(rest), end);
    from = (from / 64 + 1) * 64;
  }
  return end;
}

void KeepCount(std::span<const float> scores, const ChoiceRule& rule, std::vector<uint64_t>* order,
               UnitSet* kept) {
  order->clear();
  int64_t count = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    if (IsForced(rule, static_cast<int64_t>(i))) {
      kept->Add(static_cast<int64_t>(i));
      ++count;
    } else {
      order->push_back(RankOf(scores[i], static_cast<uint32_t>(i)));
    }
  }
  const auto left =
      std::clamp<int64_t>(rule.count_max - count, 0, static_cast<int64_t>(order->size()));
  if (left < static_cast<int64_t>(order->size())) {
    std::nth_element(order->begin(), order->begin() + left, order->end());
  }
  for (int64_t i = 0; i < left; ++i) {
    kept->Add(static_cast<uint32_t>((*order)[static_cast<size_t>(i)]));
  }
}

void KeepMass(std::span<const float> scores, const ChoiceRule& rule, std::vector<uint64_t>* order,
              UnitSet* kept) {
  KeepMapMass({&scores, 1}, {&rule, 1}, order, {kept, 1});
}

void KeepMapMass(std::span<const std::span<const float>> scores, std::span<const ChoiceRule> rules,
                 std::vector<uint64_t>* order, std::span<UnitSet> kept) {
  const auto rows = static_cast<uint32_t>(scores.size());
  double mass = 0;
  int64_t count = 0;
  order->clear();
  for (uint32_t row = 0; row < rows; ++row) {
    for (size_t unit = 0; unit < scores[row].size(); ++unit) {
      const float score = scores[row][unit];
      if (IsForced(rules[row], static_cast<int64_t>(unit))) {
        mass += static_cast<double>(score);
        ++count;
        kept[row].Add(static_cast<int64_t>(unit));
      } else {
        order->push_back(RankOf(score, static_cast<uint32_t>(unit) * rows + row));
      }
    }
  }
  std::ranges::sort(*order);
  const ChoiceRule& rule = rules[0];
  for (const uint64_t rank : *order) {
    const auto id = static_cast<uint32_t>(rank);
    const double score = static_cast<double>(scores[id % rows][id / rows]);
    const bool fits = rule.inclusive ? mass < rule.mass : mass + score <= rule.mass;
    if (count >= rule.count_max || (!fits && count >= rule.count_min && count > 0)) break;
    mass += score;
    ++count;
    kept[id % rows].Add(id / rows);
  }
}

}  // namespace lacuna::kernels::cpu
