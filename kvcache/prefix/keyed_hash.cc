#include "kvcache/prefix/keyed_hash.h"

#include <bit>
#include <random>

namespace lacuna::kvcache {
namespace {

class Sip final {
 public:
  explicit Sip(const HashKey& key)
      : v0_(key.k0 ^ 0x736f6d6570736575),
        v1_(key.k1 ^ 0x646f72616e646f6d),
        v2_(key.k0 ^ 0x6c7967656e657261),
        v3_(key.k1 ^ 0x7465646279746573) {}

  void Add(uint64_t word) {
    v3_ ^= word;
    Round();
    v0_ ^= word;
  }
  uint64_t Finish() {
    v2_ ^= 0xff;
    for (int i = 0; i < 3; ++i) Round();
    return v0_ ^ v1_ ^ v2_ ^ v3_;
  }

 private:
  void Round() {
    v0_ += v1_;
    v1_ = std::rotl(v1_, 13) ^ v0_;
    v0_ = std::rotl(v0_, 32);
    v2_ += v3_;
    v3_ = std::rotl(v3_, 16) ^ v2_;
    v0_ += v3_;
    v3_ = std::rotl(v3_, 21) ^ v0_;
    v2_ += v1_;
    v1_ = std::rotl(v1_, 17) ^ v2_;
    v2_ = std::rotl(v2_, 32);
  }

  uint64_t v0_, v1_, v2_, v3_;
};

}  // namespace

HashKey RandomHashKey() {
  std::random_device device;
  const auto word = [&] { return (static_cast<uint64_t>(device()) << 32) | device(); };
  const uint64_t k0 = word();
  return {k0, word()};
}

uint64_t HashPage(const HashKey& key, CacheScope scope, uint64_t parent,
                  std::span<const TokenId> tokens) {
  Sip sip(key);
  sip.Add(scope.value);
  sip.Add(parent);
  sip.Add(tokens.size());
  const auto bits = [&](size_t i) {
    return static_cast<uint64_t>(static_cast<uint32_t>(tokens[i]));
  };
  for (size_t i = 0; i < tokens.size(); i += 2) {
    sip.Add(bits(i) | (i + 1 < tokens.size() ? bits(i + 1) << 32 : 0));
  }
  return sip.Finish();
}

}  // namespace lacuna::kvcache
