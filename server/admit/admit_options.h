// AdmitOptions: who may call, and how often (section "admit" of the config).
// A plain struct with its field table; server/config fills it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/field_table.h"

namespace lacuna::server {

struct AdmitOptions final {
  std::string api_keys_file;
  bool allow_public_without_key = false;
  bool metrics_public = false;
  double rate_per_s = 0.0;
  int64_t rate_burst = 10;
};

inline const std::vector<Field<AdmitOptions>>& AdmitFields() {
  using O = AdmitOptions;
  static const std::vector<Field<O>> kFields = {
      {"api_keys_file",
       "One key per line, plain (at least 16 characters) or as sha256:<64 hex digits>; empty: no "
       "key is asked for.",
       &O::api_keys_file, 0, 4096},
      {"allow_public_without_key", "Allow an address other than loopback without keys.",
       &O::allow_public_without_key},
      {"metrics_public", "Serve /metrics without a key although keys are set.", &O::metrics_public},
      {"rate_per_s", "Requests per second and key; 0: no limit.", &O::rate_per_s, 0, 1e6},
      {"rate_burst", "Requests that a key may send at once above its rate.", &O::rate_burst, 1,
       1 << 20},
  };
  return kFields;
}

}  // namespace lacuna::server
