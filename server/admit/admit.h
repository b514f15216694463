// Admit: who is calling, at what rate, and in which cache scope. HTTP and gRPC both ask it.
//
// Owned by the server; safe on any thread. Keys live as digests; a scope is a keyed hash of the
// digest under a random secret of this process, so that no client can guess another's.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>

#include "kernels/core/clock.h"
#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "server/admit/admit_options.h"
#include "server/admit/key_table.h"

namespace lacuna::server {

struct Caller final {
  CacheScope scope;  // one per key; without keys everybody shares one
};

class Admit final {
 public:
  // Reads the key file. Errors name the file and the line.
  static Result<std::unique_ptr<Admit>> Create(const AdmitOptions& options, const Clock& clock);

  bool needs_key() const { return !options_.api_keys_file.empty(); }
  bool metrics_public() const { return options_.metrics_public; }
  // Whether an address that others can reach may be listened on.
  bool allows_public() const { return needs_key() || options_.allow_public_without_key; }

  // `authorization`: the header's value ("Bearer <key>"), or empty. Anything is fine when no keys
  // are set. kUnauthenticated has one text for a missing, an unknown and a malformed key.
  Result<Caller> Authenticate(std::string_view authorization) const;

  // Takes one request from the caller's bucket. 0: go on; otherwise the seconds to wait, at
  // least 1.
  int TakeRate(const Caller& caller);

  // The scope of one caller's requests under a salt of its choosing; the same for an empty salt.
  CacheScope Salted(CacheScope scope, std::string_view salt) const;

  // Reads the key file again; the old keys stay when it cannot be read.
  Status Reload();

 private:
  struct Bucket final {
    double tokens = 0.0;
    TimePoint updated;
  };

  Admit(AdmitOptions options, const Clock& clock);
  uint64_t KeyedHash(std::string_view text) const;

  const AdmitOptions options_;
  const Clock& clock_;
  Digest secret_{};
  mutable std::mutex mutex_;  // guards what follows
  std::shared_ptr<const KeyTable> keys_;
  std::unordered_map<CacheScope, Bucket> buckets_;  // at most one per key
};

}  // namespace lacuna::server
