// Flat hash tables of the tokenizer: 64-bit keys (merges, trie edges) and token texts.
//
// Built at load by one thread, then only read. Open addressing with linear probing at a load of at
// most one half; sizes come from the file, never from a request.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/ids.h"

namespace lacuna::server {

// Ids at or above this are refused at load: tables are indexed by id.
inline constexpr int64_t kTokenIdMax = int64_t{1} << 22;
inline constexpr TokenId kNoToken = -1;

inline uint64_t MixHash(uint64_t x) {
  x ^= x >> 32;
  x *= 0x9E3779B97F4A7C15;
  return x ^ x >> 29;
}

inline uint64_t HashBytes(std::string_view text) {
  uint64_t hash = text.size() * 0x9E3779B97F4A7C15;
  const char* p = text.data();
  size_t left = text.size();
  for (; left >= 8; left -= 8, p += 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    hash = MixHash(hash ^ word) * 0xBF58476D1CE4E5B9;
  }
  uint64_t tail = 0;
  for (size_t i = 0; i < left; ++i) tail |= uint64_t{static_cast<uint8_t>(p[i])} << (8 * i);
  return MixHash(MixHash(hash ^ tail));
}

template <typename V>
class FlatMap64 final {
 public:
  const V* Find(uint64_t key) const {
    if (slots_.empty()) return nullptr;
    for (size_t i = MixHash(key) & mask();; i = (i + 1) & mask()) {
      if (slots_[i].key == key) return &slots_[i].value;
      if (slots_[i].key == kEmpty) return nullptr;
    }
  }
  // `key` must not be all ones. The pointer holds until the next Insert.
  V* Insert(uint64_t key, V value) {
    if (2 * (size_ + 1) > slots_.size()) Grow();
    size_t i = MixHash(key) & mask();
    while (slots_[i].key != kEmpty && slots_[i].key != key) i = (i + 1) & mask();
    size_ += slots_[i].key == kEmpty;
    slots_[i] = {key, value};
    return &slots_[i].value;
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  struct Slot {
    uint64_t key = kEmpty;
    V value{};
  };
  size_t mask() const { return slots_.size() - 1; }
  void Grow() {
    std::vector<Slot> old(slots_.empty() ? 16 : 2 * slots_.size());
    old.swap(slots_);
    size_ = 0;
    for (const Slot& slot : old) {
      if (slot.key != kEmpty) Insert(slot.key, slot.value);
    }
  }

  std::vector<Slot> slots_;
  size_t size_ = 0;
};

// Token text <-> id. Two texts may not share an id; the last id of a text wins.
class Vocab final {
 public:
  TokenId Find(std::string_view text) const {
    if (slots_.empty()) return kNoToken;
    const uint64_t hash = HashBytes(text);
    for (size_t i = hash & mask(); slots_[i] != kNoToken; i = (i + 1) & mask()) {
      if (tags_[i] == Tag(hash) && Text(slots_[i]) == text) return slots_[i];
    }
    return kNoToken;
  }
  bool Has(TokenId id) const {
    return id >= 0 && id < id_end() && spans_[static_cast<size_t>(id)].used;
  }
  // Empty for an unknown id.
  std::string_view Text(TokenId id) const {
    if (!Has(id)) return {};
    const Span& span = spans_[static_cast<size_t>(id)];
    return std::string_view(arena_).substr(span.offset, span.bytes);
  }
  TokenId id_end() const { return static_cast<TokenId>(spans_.size()); }

  // `id` must be in [0, kTokenIdMax).
  void Add(std::string_view text, TokenId id) {
    if (2 * (size_ + 1) > slots_.size()) Grow();
    if (id >= id_end()) spans_.resize(static_cast<size_t>(id) + 1);
    spans_[static_cast<size_t>(id)] = {arena_.size(), static_cast<uint32_t>(text.size()), true};
    arena_.append(text);
    Place(id);
  }

 private:
  struct Span {
    size_t offset = 0;
    uint32_t bytes = 0;
    bool used = false;
  };
  static uint32_t Tag(uint64_t hash) { return static_cast<uint32_t>(hash >> 32); }
  size_t mask() const { return slots_.size() - 1; }
  void Place(TokenId id) {
    const uint64_t hash = HashBytes(Text(id));
    size_t i = hash & mask();
    while (slots_[i] != kNoToken && Text(slots_[i]) != Text(id)) i = (i + 1) & mask();
    size_ += slots_[i] == kNoToken;
    slots_[i] = id;
    tags_[i] = Tag(hash);
  }
  void Grow() {
    const size_t slots = slots_.empty() ? 1024 : 2 * slots_.size();
    std::vector<TokenId> old(slots, kNoToken);
    old.swap(slots_);
    tags_.assign(slots, 0);
    size_ = 0;
    for (const TokenId id : old) {
      if (id != kNoToken) Place(id);
    }
  }

  std::string arena_;
  std::vector<Span> spans_;     // by id
  std::vector<TokenId> slots_;  // by hash of the text
  std::vector<uint32_t> tags_;  // upper hash bits, to skip most text comparisons
  size_t size_ = 0;
};

// Longest-match and prefix search over byte strings.
class ByteTrie final {
 public:
  // Empty keys are ignored; the first value of a key stays.
  void Add(std::string_view key, int32_t value) {
    if (key.empty()) return;
    uint32_t node = 0;
    for (const char byte : key) {
      const uint64_t edge = Edge(node, byte);
      const uint32_t* next = edges_.Find(edge);
      if (!next) {
        values_.push_back(kNoToken);
        next = edges_.Insert(edge, static_cast<uint32_t>(values_.size() - 1));
      }
      node = *next;
    }
    first_bytes_[static_cast<uint8_t>(key[0])] = true;
    if (values_[node] == kNoToken) values_[node] = value;
  }
  bool MayBegin(char byte) const { return first_bytes_[static_cast<uint8_t>(byte)]; }
  bool empty() const { return values_.size() == 1; }
  // Calls found(bytes, value) for each key that begins `text`, shortest first.
  template <typename F>
  void Prefixes(std::string_view text, F found) const {
    if (text.empty() || !MayBegin(text[0])) return;
    uint32_t node = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      const uint32_t* next = edges_.Find(Edge(node, text[i]));
      if (!next) return;
      node = *next;
      if (values_[node] != kNoToken) found(i + 1, values_[node]);
    }
  }

 private:
  static uint64_t Edge(uint32_t node, char byte) {
    return uint64_t{node} << 8 | static_cast<uint8_t>(byte);
  }
  FlatMap64<uint32_t> edges_;
  std::vector<int32_t> values_{kNoToken};  // by node; node 0 is the root
  bool first_bytes_[256] = {};
};

}  // namespace lacuna::server
