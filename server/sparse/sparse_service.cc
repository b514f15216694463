#include "server/sparse/sparse_service.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "kernels/core/field_reader.h"
#include "kvcache/sparse/plan_storage.h"

namespace lacuna::server {
namespace {

using Refusal = SparseGrant::Refusal;

constexpr size_t kCachedMax = 256;

bool IsDense(std::string_view name) { return name.empty() || name == kDenseProfile; }

// "quest: top_p: got ..." -> "top_p: got ..."
std::string WithoutName(const std::string& line, const std::string& name) {
  const std::string prefix = name + ": ";
  return line.starts_with(prefix) ? line.substr(prefix.size()) : line;
}

bool InList(const SparseConfig& config, const std::string& name) {
  if (name == config.profile) return true;
  return std::ranges::any_of(config.profiles, [&name](const std::string& listed) {
    return listed == "all" || listed == name;
  });
}

ProfileInfo InfoOf(kvcache::SparseProfile profile) {
  ProfileInfo info{.name = profile.name, .summary = profile.summary, .paper = profile.paper};
  const std::vector<BoundSection> sections = kvcache::BindProfile(profile);
  for (const kvcache::DialInfo& dial : kvcache::DialsOf(profile)) {
    for (const BoundSection& section : sections) {
      for (const BoundField& field : section.fields) {
        if (dial.key != std::string(section.name) + "." + std::string(field.name)) continue;
        info.dials.push_back({dial.name, dial.meaning, FieldJson(field).get<double>(), field.min,
                              field.max, std::holds_alternative<int64_t*>(field.value)});
      }
    }
  }
  return info;
}

// The dial that an error line speaks of, by its name or by the profile's key; empty: none.
std::string DialOf(const std::string& line, std::span<const kvcache::DialValue> dials) {
  for (const kvcache::DialValue& dial : dials) {
    if (line.starts_with(dial.name + ": ")) return dial.name;
    for (const kvcache::DialInfo& info : kvcache::AllDials()) {
      if (info.name == dial.name && line.starts_with(std::string(info.key) + ": ")) {
        return dial.name;
      }
    }
  }
  return "";
}

std::optional<Refusal> CheckShare(const char* key, std::optional<double> value) {
  if (!value || (*value >= 0 && *value <= 1)) return std::nullopt;
  return Refusal{key, "need " + NeedRange(0, 1) + "."};
}

void AppendNumber(double value, std::string& out) {
  std::array<char, 32> text{};
  const auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  out.append(text.data(), end);
}

// Equal for asks of the same profile and dials, in whatever order.
std::string KeyOf(const std::string& profile, std::vector<kvcache::DialValue> dials) {
  std::ranges::sort(dials, {}, &kvcache::DialValue::name);
  std::string key = profile;
  for (const kvcache::DialValue& dial : dials) {
    key.append(1, '\n').append(dial.name).append(1, '=');
    AppendNumber(dial.value, key);
  }
  return key;
}

}  // namespace

Result<std::unique_ptr<SparseService>> SparseService::Create(const SparseConfig& config,
                                                             const kvcache::ProfileSet& profiles,
                                                             Model model) {
  auto service = std::unique_ptr<SparseService>(new SparseService(config, std::move(model)));
  if (service->model_.has_sparse_ops) {
    for (const kvcache::SparseProfile& profile : profiles.all()) {
      if (InList(config, profile.name)) service->Add(profile);
    }
  }
  LACUNA_RETURN_IF_ERROR(service->SetDefault());
  LACUNA_RETURN_IF_ERROR(service->SetResidency());
  for (const Served& served : service->served_) {
    service->infos_.push_back(InfoOf(served.profile));
    service->infos_.back().is_default = served.profile.name == service->default_;
  }
  return service;
}

void SparseService::Add(const kvcache::SparseProfile& shipped) {
  const kvcache::SparseProfile profile = kvcache::FitStep(shipped, model_.step_tokens_max);
  const auto leave_out = [&](const std::string& reason) {
    left_out_.push_back({profile.name, WithoutName(reason, profile.name)});
  };
  auto artefacts = ReadNeededArtefacts(profile, model_.shape, model_.artefacts);
  if (!artefacts.ok()) return leave_out(artefacts.status().message());
  kvcache::ResolvedPlan resolved = kvcache::ResolvePlan(profile, model_.shape, *artefacts);
  if (!resolved.errors.empty()) return leave_out(resolved.errors.front());
  served_.push_back({profile, std::move(*artefacts), std::move(resolved.plan)});
}

Status SparseService::SetDefault() {
  if (IsDense(config_.profile)) return OkStatus();
  const std::string got = "sparse.profile: got " + ShownJson(config_.profile) + ", need ";
  if (!model_.has_sparse_ops) {
    return InvalidArgument(got + "dense: the backend " + model_.backend +
                           " has no sparse attention");
  }
  if (Find(config_.profile) == nullptr) {
    const auto found = std::ranges::find(left_out_, config_.profile, &LeftOut::name);
    const std::string why = found == left_out_.end() ? "" : " (of this one: " + found->reason + ")";
    return InvalidArgument(got + "a profile that this model can run" + why);
  }
  default_ = config_.profile;
  return OkStatus();
}

// Where streaming heads are stored as such, all requests must have the same ones.
Status SparseService::SetResidency() {
  if (config_.store_streaming_heads) return OkStatus();
  const Served* chosen = Find(default_);
  if (chosen == nullptr || kvcache::ResidencyOf(*chosen->plan).size() < 2) {
    return InvalidArgument(
        "sparse.store_streaming_heads: got false, need true, or a sparse.profile with streaming "
        "heads");
  }
  residency_ = chosen->plan;
  std::erase_if(served_, [&](const Served& served) {
    if (served.plan->heads == residency_->heads) return false;
    left_out_.push_back({served.profile.name,
                         "its heads need tokens that sparse.store_streaming_heads false drops"});
    return true;
  });
  return OkStatus();
}

std::vector<std::shared_ptr<const kvcache::SparsePlan>> SparseService::plans() const {
  std::vector<std::shared_ptr<const kvcache::SparsePlan>> plans;
  for (const Served& served : served_) plans.push_back(served.plan);
  return plans;
}

double SparseService::metadata_share() const {
  std::vector<const kvcache::SparsePlan*> plans;
  for (const Served& served : served_) plans.push_back(served.plan.get());
  const kvcache::AttentionShape& shape = model_.shape;
  int64_t bytes = 0;  // of one kv head's page
  for (const kvcache::MetadataStore& store : kvcache::MetadataStores(plans)) {
    bytes += kernels::MetadataPool::SlabBytes(store.spec, shape.head_dim, shape.page_tokens) *
             std::ranges::count(store.layers, true);
  }
  const int64_t kv =
      int64_t{2} * shape.head_dim * shape.page_tokens * model_.kv_element_bytes * shape.layers;
  return kv == 0 ? 0.0 : static_cast<double>(bytes) / static_cast<double>(kv);
}

const SparseService::Served* SparseService::Find(std::string_view name) const {
  const auto found = std::ranges::find(
      served_, name, [](const Served& one) -> std::string_view { return one.profile.name; });
  return found == served_.end() ? nullptr : &*found;
}

std::string SparseService::Names() const {
  std::string names;
  if (dense_allowed()) names = kDenseProfile;
  for (const Served& served : served_) {
    names.append(names.empty() ? "" : ", ").append(served.profile.name);
  }
  return names;
}

Refusal SparseService::UnknownProfile(const std::string& name) const {
  std::string message = "got " + ShownJson(name) + ", need ";
  std::vector<std::string_view> words;
  for (const Served& served : served_) words.push_back(served.profile.name);
  const auto missing = std::ranges::find(left_out_, name, &LeftOut::name);
  const std::string_view nearest = NearestWord(name, words);
  if (missing == left_out_.end() && !nearest.empty()) {
    message.append(nearest).append(" (the nearest), or ");
  }
  message += "one of " + Names();
  if (missing != left_out_.end()) message += "; that one is left out: " + missing->reason;
  return {"profile", message + "."};
}

// What contradicts itself, or would be ignored.
std::optional<Refusal> SparseService::CheckTogether(const SparseAsk& ask, bool dense) const {
  if (auto refusal = CheckShare("audit_fraction", ask.audit_fraction)) return refusal;
  if (auto refusal = CheckShare("mass_floor", ask.mass_floor)) return refusal;
  if (dense) {
    const std::string why = ask.dense || !ask.profile.empty()
                                ? "has no meaning for dense attention."
                                : "needs a profile: this server's default is dense.";
    if (!ask.dials.empty()) return Refusal{ask.dials.front().name, why};
    if (ask.audit_fraction) return Refusal{"audit_fraction", why};
    if (ask.mass_floor) return Refusal{"mass_floor", why};
    return std::nullopt;
  }
  const double audits = ask.audit_fraction.value_or(config_.audit_fraction);
  if (ask.mass_floor && *ask.mass_floor > 0 && audits == 0) {
    return Refusal{"mass_floor", "needs an audit_fraction above 0."};
  }
  return std::nullopt;
}

SparseGrant SparseService::Grant(const SparseAsk& ask) const {
  SparseGrant grant{.options = {}, .profile = kDenseProfile, .refusal = {}};
  if (ask.dense && !IsDense(ask.profile)) {
    grant.refusal = Refusal{"mode", "got dense beside a profile, need one of the two."};
    return grant;
  }
  const std::string name = ask.dense ? kDenseProfile : ask.profile.empty() ? default_ : ask.profile;
  const bool dense = IsDense(name);
  if (!dense && !model_.has_sparse_ops) {
    grant.refusal =
        Refusal{"profile", "the backend " + model_.backend + " has no sparse attention.", true};
    return grant;
  }
  const Served* served = dense ? nullptr : Find(name);
  if (!dense && served == nullptr) {
    grant.refusal = UnknownProfile(name);
  } else if (dense && !dense_allowed()) {
    grant.refusal = Refusal{ask.dense ? "mode" : "profile",
                            "this server drops tokens of streaming heads, need one of " + Names() +
                                " (sparse.store_streaming_heads).",
                            true};
  } else {
    grant.refusal = CheckTogether(ask, dense);
  }
  if (grant.refusal || dense) return grant;
  grant.profile = name;
  grant.options.audit_fraction = ask.audit_fraction.value_or(config_.audit_fraction);
  // A server's floor means nothing to a request that wants no audits.
  grant.options.mass_floor =
      grant.options.audit_fraction == 0 ? 0.0 : ask.mass_floor.value_or(config_.mass_floor);
  GrantPlan(ask, *served, grant);
  return grant;
}

void SparseService::GrantPlan(const SparseAsk& ask, const Served& served,
                              SparseGrant& grant) const {
  if (ask.dials.empty()) {
    grant.options.plan = served.plan;
    return;
  }
  std::string key = KeyOf(served.profile.name, ask.dials);
  grant.options.plan = Recall(key);
  if (grant.options.plan != nullptr) return;
  std::vector<std::string> errors;
  const kvcache::DialedProfile dialed = kvcache::ApplyDials(served.profile, ask.dials);
  errors = dialed.errors;
  if (errors.empty()) {
    kvcache::ResolvedPlan resolved =
        kvcache::ResolvePlan(dialed.profile, model_.shape, served.artefacts);
    errors = std::move(resolved.errors);
    grant.options.plan = std::move(resolved.plan);
  }
  if (!errors.empty()) {
    const std::string line = WithoutName(errors.front(), served.profile.name);
    const std::string dial = DialOf(line, ask.dials);
    const std::string text = dial.empty() ? line : line.substr(line.find(": ") + 2);
    grant.refusal = Refusal{dial, text + " (profile " + served.profile.name + ")."};
    return;
  }
  Remember(std::move(key), grant.options.plan);
}

std::shared_ptr<const kvcache::SparsePlan> SparseService::Recall(const std::string& key) const {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(cached_, key, &Cached::key);
  if (found == cached_.end()) return nullptr;
  std::rotate(cached_.begin(), found, found + 1);
  return cached_.front().plan;
}

void SparseService::Remember(std::string key,
                             std::shared_ptr<const kvcache::SparsePlan> plan) const {
  const std::lock_guard lock(mutex_);
  const auto found = std::ranges::find(cached_, key, &Cached::key);  // of another thread
  if (found != cached_.end()) return;
  if (cached_.size() == kCachedMax) cached_.pop_back();
  cached_.insert(cached_.begin(), {std::move(key), std::move(plan)});
}

int SparseService::plans_cached() const {
  const std::lock_guard lock(mutex_);
  return static_cast<int>(cached_.size());
}

}  // namespace lacuna::server
