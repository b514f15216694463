// SparseConfig: which sparse profiles a server has, and which of them a request gets that asks for
// none (section "sparse" of the config). A plain struct with its field table.
#pragma once

#include <string>
#include <vector>

#include "kernels/core/field_table.h"

namespace lacuna::server {

struct SparseConfig final {
  std::string profile;                          // empty or "dense": dense
  std::vector<std::string> profiles = {"all"};  // that requests may name, beside `profile`
  std::string profile_dir;                      // adds to the shipped ones
  std::string artefacts;                        // empty: the model folder's, if there is one
  double audit_fraction = 0;
  double mass_floor = 0;
  bool store_streaming_heads = true;
};

inline const std::vector<Field<SparseConfig>>& SparseConfigFields() {
  using C = SparseConfig;
  static const std::vector<Field<C>> kFields = {
      {"profile",
       "Profile of requests that name none (docs/profiles.md); empty or dense: dense attention.",
       &C::profile, 0, 64},
      {"profiles",
       "Profiles that requests may name beside that one; all: each that this model can run. What "
       "they store beside keys costs memory, which the log tells.",
       &C::profiles, 0, 512},
      {"profile_dir", "Folder of further profiles; those of equal name replace the shipped ones.",
       &C::profile_dir, 0, 4096},
      {"artefacts",
       "What `lacuna calibrate` measured of the model; empty: lacuna-sparse.json of its folder, if "
       "it is there.",
       &C::artefacts, 0, 4096},
      {"audit_fraction",
       "Share of sparse decode steps that are also computed densely, to compare, unless a request "
       "says otherwise.",
       &C::audit_fraction, 0, 1},
      {"mass_floor",
       "An audited step that captures a smaller share of the attention makes the request's budget "
       "grow by half; 0: never. Needs audits.",
       &C::mass_floor, 0, 1},
      {"store_streaming_heads",
       "Keep all tokens of the heads that see only sink and newest ones; false: their other pages "
       "are not stored, and requests can only use profiles with the same such heads.",
       &C::store_streaming_heads},
  };
  return kFields;
}

// What `profile` and requests call dense attention.
inline constexpr const char* kDenseProfile = "dense";

}  // namespace lacuna::server
