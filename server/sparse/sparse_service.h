// SparseService: what a request says of sparse attention -> a plan for the engine. Knows which
// profiles this server has for its model, their dials, and why it lacks the others.
//
// Made once at start, before the engine, which it outlives; any thread. Equal requests share plans.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/request.h"
#include "kernels/core/status.h"
#include "kvcache/sparse/artefacts.h"
#include "kvcache/sparse/plan.h"
#include "kvcache/sparse/profile_set.h"
#include "kvcache/sparse/resolve.h"
#include "server/sparse/profile_files.h"
#include "server/sparse/sparse_config.h"

namespace lacuna::server {

// What a request says. Numbers are those of the request, in any range.
struct SparseAsk final {
  bool dense = false;   // "mode": "dense"
  std::string profile;  // empty: the server's default; "dense" too
  std::vector<kvcache::DialValue> dials;
  std::optional<double> audit_fraction, mass_floor;  // nothing: the server's
};

// What it gets, or why not.
struct SparseGrant final {
  struct Refusal final {
    std::string key;  // "budget_tokens", as the request spells it; empty: the whole
    std::string message;
    bool unsupported = false;  // this server can never do it, whatever the values are
  };
  engine::SparseOptions options;
  std::string profile;  // its name, or "dense"
  std::optional<Refusal> refusal;
};

// A profile as a client sees it.
struct ProfileInfo final {
  struct Dial final {
    std::string_view name, meaning;
    double value = 0, min = 0, max = 0;  // bounds may be infinite
    bool whole = false;                  // whole numbers only
  };
  std::string name, summary, paper;
  bool is_default = false;
  std::vector<Dial> dials{};
};

class SparseService final {
 public:
  struct Model final {
    kvcache::AttentionShape shape;
    std::optional<ArtefactText> artefacts;  // of sparse.artefacts or the model's folder
    bool has_sparse_ops = false;            // of the backend
    std::string backend;                    // its name, for messages
    int64_t kv_element_bytes = 2;
    int64_t step_tokens_max = 2048;  // of the engine: cells are no longer
  };
  struct LeftOut final {
    std::string name, reason;
  };

  // kInvalidArgument: "sparse.KEY: got X, need Y".
  static Result<std::unique_ptr<SparseService>> Create(const SparseConfig& config,
                                                       const kvcache::ProfileSet& profiles,
                                                       Model model);

  SparseGrant Grant(const SparseAsk& ask) const;

  // For AssemblyOptions: of every profile that requests may use, with its own dials.
  std::vector<std::shared_ptr<const kvcache::SparsePlan>> plans() const;
  std::shared_ptr<const kvcache::SparsePlan> residency() const { return residency_; }

  // Ascending by name.
  const std::vector<ProfileInfo>& profiles() const { return infos_; }
  std::span<const LeftOut> left_out() const { return left_out_; }
  std::string_view default_profile() const { return default_; }
  bool dense_allowed() const { return residency_ == nullptr; }
  // Bytes that metadata of all profiles adds to those of keys and values, as a share of them.
  double metadata_share() const;
  int plans_cached() const;

 private:
  struct Served final {
    kvcache::SparseProfile profile;
    kvcache::SparseArtefacts artefacts;
    std::shared_ptr<const kvcache::SparsePlan> plan;
  };
  // One plan of changed dials; the newest first.
  struct Cached final {
    std::string key;
    std::shared_ptr<const kvcache::SparsePlan> plan;
  };

  SparseService(const SparseConfig& config, Model model)
      : config_(config), model_(std::move(model)) {}
  void Add(const kvcache::SparseProfile& shipped);
  Status SetDefault();
  Status SetResidency();
  const Served* Find(std::string_view name) const;
  std::string Names() const;
  SparseGrant::Refusal UnknownProfile(const std::string& name) const;
  std::optional<SparseGrant::Refusal> CheckTogether(const SparseAsk& ask, bool dense) const;
  void GrantPlan(const SparseAsk& ask, const Served& served, SparseGrant& grant) const;
  std::shared_ptr<const kvcache::SparsePlan> Recall(const std::string& key) const;
  void Remember(std::string key, std::shared_ptr<const kvcache::SparsePlan> plan) const;

  const SparseConfig config_;
  const Model model_;
  std::vector<Served> served_;  // ascending by name
  std::vector<ProfileInfo> infos_;
  std::vector<LeftOut> left_out_;
  std::string default_ = kDenseProfile;
  std::shared_ptr<const kvcache::SparsePlan> residency_;
  mutable std::mutex mutex_;
  mutable std::vector<Cached> cached_;  // under mutex_
};

}  // namespace lacuna::server
