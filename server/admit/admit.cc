#include "server/admit/admit.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

namespace lacuna::server {
namespace {

constexpr CacheScope kSharedScope{1};
constexpr std::string_view kScheme = "bearer ";

Result<KeyTable> ReadKeys(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file) return InvalidArgument(path + ": cannot be read");
  auto table = KeyTable::Parse(text.str());
  if (!table.ok()) return InvalidArgument(path + ": " + table.status().message());
  return table;
}

// The key of "Bearer <key>", scheme in any case; empty when there is none.
std::string_view BearerKey(std::string_view authorization) {
  if (authorization.size() < kScheme.size()) return {};
  for (size_t i = 0; i < kScheme.size(); ++i) {
    const char c = authorization[i];
    const char lower = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    if (lower != kScheme[i]) return {};
  }
  return authorization.substr(kScheme.size());
}

}  // namespace

Admit::Admit(AdmitOptions options, const Clock& clock)
    : options_(std::move(options)), clock_(clock) {}

Result<std::unique_ptr<Admit>> Admit::Create(const AdmitOptions& options, const Clock& clock) {
  std::unique_ptr<Admit> admit(new Admit(options, clock));
  if (RAND_bytes(admit->secret_.data(), static_cast<int>(admit->secret_.size())) != 1) {
    return InternalError("no random numbers from the system");
  }
  LACUNA_RETURN_IF_ERROR(admit->Reload());
  return admit;
}

Status Admit::Reload() {
  if (!needs_key()) return OkStatus();
  LACUNA_ASSIGN_OR_RETURN(KeyTable table, ReadKeys(options_.api_keys_file));
  auto shared = std::make_shared<const KeyTable>(std::move(table));
  const std::lock_guard lock(mutex_);
  keys_ = std::move(shared);
  buckets_.clear();
  return OkStatus();
}

Result<Caller> Admit::Authenticate(std::string_view authorization) const {
  if (!needs_key()) return Caller{kSharedScope};
  std::shared_ptr<const KeyTable> keys;
  {
    const std::lock_guard lock(mutex_);
    keys = keys_;
  }
  const std::optional<Digest> digest = keys->Find(BearerKey(authorization));
  if (!digest) {
    return Status(StatusCode::kUnauthenticated,
                  "Missing or wrong API key. Send it as 'Authorization: Bearer <key>'.");
  }
  return Caller{CacheScope{
      KeyedHash(std::string_view(reinterpret_cast<const char*>(digest->data()), digest->size()))}};
}

int Admit::TakeRate(const Caller& caller) {
  if (options_.rate_per_s <= 0.0) return 0;
  const TimePoint now = clock_.Now();
  const auto burst = static_cast<double>(options_.rate_burst);
  const std::lock_guard lock(mutex_);
  const auto [it, fresh] = buckets_.try_emplace(caller.scope, Bucket{burst, now});
  Bucket& bucket = it->second;
  bucket.tokens =
      std::min(burst, bucket.tokens + Seconds(now - bucket.updated) * options_.rate_per_s);
  bucket.updated = now;
  if (bucket.tokens >= 1.0) {
    bucket.tokens -= 1.0;
    return 0;
  }
  const double wait_s = (1.0 - bucket.tokens) / options_.rate_per_s;
  return static_cast<int>(std::clamp(std::ceil(wait_s), 1.0, 120.0));
}

CacheScope Admit::Salted(CacheScope scope, std::string_view salt) const {
  if (salt.empty()) return scope;
  std::string text(sizeof scope.value, '\0');
  std::memcpy(text.data(), &scope.value, sizeof scope.value);
  return CacheScope{KeyedHash(text.append(salt))};
}

uint64_t Admit::KeyedHash(std::string_view text) const {
  Digest out{};
  unsigned int length = 0;
  HMAC(EVP_sha256(), secret_.data(), static_cast<int>(secret_.size()),
       reinterpret_cast<const unsigned char*>(text.data()), text.size(), out.data(), &length);
  uint64_t value = 0;
  std::memcpy(&value, out.data(), sizeof value);
  return value;
}

}  // namespace lacuna::server
