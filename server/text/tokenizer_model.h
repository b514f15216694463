// TokenModel: pieces of text -> token ids by the vocabulary; and the word cache models share.
//
// Immutable after load; any thread.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "server/text/pre_tokenizer.h"
#include "server/text/tokenizer_json.h"
#include "server/text/tokenizer_tables.h"

namespace lacuna::server {

class TokenModel {
 public:
  // The section "model". Names an unknown type in its error.
  static Result<std::unique_ptr<TokenModel>> FromJson(const Json& json);
  virtual ~TokenModel() = default;

  // Appends the ids of every piece. `byte_level`: the vocabulary writes each byte of a piece as its
  // ByteLevelChar.
  virtual Status Encode(std::span<const Piece> pieces, bool byte_level,
                        std::vector<TokenId>& ids) const = 0;
  const Vocab& vocab() const { return vocab_; }

 protected:
  Vocab vocab_;
};

Result<std::unique_ptr<TokenModel>> MakeBpe(const Json& json);      // bpe.cc
Result<std::unique_ptr<TokenModel>> MakeUnigram(const Json& json);  // unigram.cc
// Reads "<0x00>".."<0xFF>" from the vocabulary; kNoToken where one is missing.
std::vector<TokenId> ByteFallbackIds(const Vocab& vocab);

// Direct-mapped cache of short words; one entry is one cache line. Its size is fixed, so no text
// can make it grow, and a collision only evicts.
class WordCache final {
 public:
  static constexpr size_t kWordBytesMax = 22;
  static constexpr size_t kIdsMax = 10;

  struct alignas(64) Entry {
    uint8_t word_bytes = 0;  // 0: empty
    uint8_t ids_count = 0;
    char word[kWordBytesMax] = {};
    TokenId ids[kIdsMax] = {};

    bool Holds(std::string_view text) const {
      return word_bytes == text.size() && std::memcmp(word, text.data(), text.size()) == 0;
    }
    void Store(std::string_view text, std::span<const TokenId> tokens) {
      if (tokens.size() > kIdsMax) return;
      word_bytes = static_cast<uint8_t>(text.size());
      ids_count = static_cast<uint8_t>(tokens.size());
      std::memcpy(word, text.data(), text.size());
      std::copy(tokens.begin(), tokens.end(), ids);
    }
  };
  // The place of `word`; null if it is too long to be cached.
  Entry* Slot(std::string_view word) {
    if (word.size() > kWordBytesMax) return nullptr;
    return &entries_[HashBytes(word) % kEntries];
  }

 private:
  static constexpr size_t kEntries = 1 << 15;  // 2 MiB
  std::vector<Entry> entries_ = std::vector<Entry>(kEntries);
};

// Lends one T per running call, so that calls share warm state without locking inside.
template <typename T>
class LendingPool final {
 public:
  std::unique_ptr<T> Borrow() {
    const std::lock_guard lock(mutex_);
    if (free_.empty()) return nullptr;
    std::unique_ptr<T> item = std::move(free_.back());
    free_.pop_back();
    return item;
  }
  void Return(std::unique_ptr<T> item) {
    const std::lock_guard lock(mutex_);
    if (free_.size() < kKeepMax) free_.push_back(std::move(item));
  }

 private:
  static constexpr size_t kKeepMax = 16;
  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> free_;
};

}  // namespace lacuna::server
