#include "kvcache/sparse/profile_pages.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "kvcache/sparse/decode_counts.h"
#include "kvcache/sparse/plan_storage.h"
#include "kvcache/sparse/resolve.h"

namespace lacuna::kvcache {
namespace {

template <typename... Args>
std::string Format(const char* format, Args... args) {
  char text[256];
  const int length = std::snprintf(text, sizeof text, format, args...);
  return {text, std::min(static_cast<size_t>(std::max(length, 0)), sizeof text - 1)};
}

ConfigJson ChoicesJson(std::string_view choices) {
  ConfigJson list = ConfigJson::array();
  for (; !choices.empty();) {
    const size_t bar = choices.find('|');
    list.push_back(std::string(choices.substr(0, bar)));
    choices = bar == choices.npos ? "" : choices.substr(bar + 1);
  }
  return list;
}

// Whole bounds without a fraction.
ConfigJson BoundJson(double bound) {
  return bound == std::floor(bound) ? ConfigJson(static_cast<int64_t>(bound)) : ConfigJson(bound);
}

void AddBounds(ConfigJson& schema, const BoundField& field, const char* least, const char* most) {
  if (std::isfinite(field.min)) schema[least] = BoundJson(field.min);
  if (std::isfinite(field.max)) schema[most] = BoundJson(field.max);
}

ConfigJson FieldSchema(const BoundField& field) {
  ConfigJson schema;
  schema["description"] = field.meaning;
  if (std::holds_alternative<bool*>(field.value)) {
    schema["type"] = "boolean";
  } else if (std::holds_alternative<int64_t*>(field.value)) {
    schema["type"] = "integer";
    AddBounds(schema, field, "minimum", "maximum");
  } else if (std::holds_alternative<double*>(field.value)) {
    schema["type"] = "number";
    AddBounds(schema, field, "minimum", "maximum");
  } else if (!field.choices.empty()) {
    schema["enum"] = ChoicesJson(field.choices);
  } else if (std::holds_alternative<std::string*>(field.value)) {
    schema["type"] = "string";
    AddBounds(schema, field, "minLength", "maxLength");
  } else {
    const bool numbers = std::holds_alternative<std::vector<int64_t>*>(field.value);
    schema["type"] = "array";
    schema["items"] = {{"type", numbers ? "integer" : "string"}};
    if (numbers) {
      AddBounds(schema["items"], field, "minimum", "maximum");
    } else {
      AddBounds(schema, field, "minItems", "maxItems");
    }
  }
  schema["default"] = FieldJson(field);
  return schema;
}

void MakeObject(ConfigJson& schema) {
  if (!schema.contains("type")) {
    schema["type"] = "object";
    schema["additionalProperties"] = false;
    schema["properties"] = ConfigJson::object();
  }
}

void AppendKeys(const BoundSection& section, std::string& out) {
  out.append("### ").append(section.name.empty() ? "The top" : section.name).append("\n");
  out.append(section.meaning)
      .append("\n\n| key | meaning | accepts | default |\n|---|---|---|---|\n");
  for (const BoundField& field : section.fields) {
    out.append("| `").append(field.name).append("` | ").append(field.meaning).append(" | ");
    out.append(NeedText(field)).append(" | `").append(FieldJson(field).dump()).append("` |\n");
  }
  out += "\n";
}

void AppendDials(std::string& out) {
  out +=
      "## Dials\nA request names a profile and may override its numbers: `\"sparse\": "
      "{\"profile\": \"quest\", \"budget_tokens\": 2048}`. A profile has the dials of the "
      "primitives that it uses; `lacuna profiles show NAME` lists them. `budget_tokens` and "
      "`budget_fraction` replace each other.\n\n| dial | meaning | key |\n|---|---|---|\n";
  for (const DialInfo& dial : AllDials()) {
    out.append("| `").append(dial.name).append("` | ").append(dial.meaning);
    out.append(" | `").append(dial.key).append("` |\n");
  }
  out += "\n";
}

void AppendRules(std::string& out) {
  out +=
      "## What is chosen, exactly\n"
      "Decode. A row of N tokens, its own included, has ceil(N / unit_tokens) units. Scores are "
      "normalised, then reduced over the query heads of an owner, then pooled over the entries of "
      "a unit (union and round_robin choose per query head, so they pool first). Sink and newest "
      "units are read in any case; the best of the others follow, as many as the budget in units, "
      "rounded up, leaves. top_p walks down the scores of all units, forced ones first, until "
      "their mass reaches p. Equal scores: the older unit first. A budget that covers the sequence "
      "is dense attention, bit for bit. `refresh.steps` counts the decode steps of each request, "
      "never those of the batch; between two choices sink and newest units still move on, and what "
      "was newest when the choice was made stays.\n\n"
      "Prefill. Blocks and distances are counted from the sequence's start in block_tokens, "
      "whatever the chunk. A query at position t sees in any case the keys before sink_tokens and "
      "its newest max(local_tokens, local_fraction * t); of blocks, those that hold any of them. "
      "Forced columns, diagonals and blocks come first in every order and count: against sizes, "
      "budgets and mass. Equal scores: the older column or block, the nearer diagonal first. A "
      "probe, a map and the energies of bands belong to a cell of rows (cell_tokens), counted from "
      "the start too, so that cuts into chunks change nothing. cover counts whole blocks of "
      "columns and of distances. No query sees a key after its own.\n\n";
}

// What a profile makes sparse, in a word.
std::string PhaseOf(const SparseProfile& p) {
  if (p.who.heads != "all" && !p.sparse_decode() && !p.sparse_prefill()) return "heads";
  std::string phase = p.sparse_prefill() ? "prefill" : "";
  if (p.sparse_decode()) phase += phase.empty() ? "decode" : ", decode";
  return p.who.heads == "all" ? phase : phase + ", heads";
}

std::string NeedsOf(const SparseProfile& p) {
  std::string needs;
  for (const ArtefactKind kind : NeededArtefacts(p)) {
    needs.append(needs.empty() ? "" : ", ").append(WordAt(kArtefactNames, kind));
  }
  return needs;
}

// What one layer does, without its number.
std::string LayerText(const SparsePlan& plan, int32_t layer) {
  static constexpr std::array<const char*, 4> kRoles = {"dense", "planner", "select", "reuse"};
  const LayerPlan& one = plan.layers[static_cast<size_t>(layer)];
  std::string role = kRoles[static_cast<size_t>(one.decode)];
  if (one.decode == LayerRole::kReuse) role += Format(" %d", one.source);
  int32_t streaming = 0, spans = 0;
  for (int32_t head = 0; head < plan.shape.kv_heads; ++head) {
    streaming += plan.head(layer, head).role == HeadRole::kStreaming;
    spans += plan.head(layer, head).role == HeadRole::kSpan;
  }
  std::string heads = std::to_string(plan.shape.kv_heads - streaming - spans) + " full";
  if (streaming > 0) heads += Format(", %d streaming", streaming);
  if (spans > 0) heads += Format(", %d of a span", spans);
  const bool stores = one.stores_metadata || one.stores_refine_metadata;
  return Format("%-8s %-11s %-9s %s\n", one.prefill_sparse ? "sparse" : "dense", role.c_str(),
                stores ? "yes" : "-", heads.c_str());
}

// One row for each run of layers that do the same.
void AppendLayers(const SparsePlan& plan, std::string& out) {
  out += "layers   prefill  decode      metadata  kv heads\n";
  for (int32_t first = 0, next = 0; first < plan.shape.layers; first = next) {
    const std::string text = LayerText(plan, first);
    for (next = first + 1; next < plan.shape.layers && LayerText(plan, next) == text;) ++next;
    const std::string range =
        next == first + 1 ? Format("%d", first) : Format("%d-%d", first, next - 1);
    out += Format("%6s   ", range.c_str()) + text;
  }
}

// "512 keys (6.2 %)": keys that one selecting kv head reads, as far as it is known beforehand.
std::string ReadsAt(const SparsePlan& plan, int64_t tokens) {
  const DecodeCounts counts = CountUnits(plan, tokens);
  const int64_t unit = plan.decode.unit_tokens;
  const int64_t forced = (counts.sink_units + counts.local_units) * unit;
  const int64_t most = std::min(forced + counts.ranked_units_max * unit, tokens);
  const bool bounded =
      plan.decode.select == SelectKind::kTopK || plan.decode.select == SelectKind::kNone;
  const int64_t read = counts.dense ? tokens : most;
  const char* how = counts.dense                                          ? "all"
                    : !bounded || plan.decode.refine != RefineKind::kNone ? "at most"
                                                                          : "";
  return Format("  %7lld tokens: %s %lld keys (%.1f %%)\n", static_cast<long long>(tokens), how,
                static_cast<long long>(read),
                100.0 * static_cast<double>(read) / static_cast<double>(tokens));
}

}  // namespace

std::string ProfileSchema() {
  SparseProfile defaults;
  ConfigJson root;
  root["$schema"] = "https://json-schema.org/draft/2020-12/schema";
  root["title"] = "A sparse-attention profile of Lacuna";
  root["description"] = "Generated from the field tables: `lacuna profiles --schema`.";
  MakeObject(root);
  root["required"] = {"name", "summary"};
  for (const BoundSection& section : BindProfile(defaults)) {
    ConfigJson* object = &root;
    for (std::string_view path = section.name; !path.empty();) {
      const size_t dot = path.find('.');
      object = &(*object)["properties"][std::string(path.substr(0, dot))];
      path = dot == path.npos ? "" : path.substr(dot + 1);
      if (path.empty()) (*object)["description"] = section.meaning;
      MakeObject(*object);
    }
    for (const BoundField& field : section.fields) {
      (*object)["properties"][std::string(field.name)] = FieldSchema(field);
    }
  }
  return root.dump(1) + "\n";
}

std::string ProfileReference(std::span<const SparseProfile> profiles) {
  std::string out =
      "# Sparse profiles\n\nGenerated by `lacuna profiles --reference`; a test keeps it up to "
      "date. A profile is one JSON file in `configs/sparse`, with comments; "
      "`configs/sparse/schema.json` is its JSON Schema. How a server or a request names one: "
      "[api.md](api.md).\n\n## The shipped profiles\n\n"
      "| profile | sparse | what it does | needs | paper |\n|---|---|---|---|---|\n";
  for (const SparseProfile& p : profiles) {
    out.append("| `").append(p.name).append("` | ").append(PhaseOf(p)).append(" | ");
    out.append(p.summary).append(" | ").append(NeedsOf(p)).append(" | ");
    out.append(p.paper).append(" |\n");
  }
  out +=
      "\nNeeds are tables per model that `lacuna calibrate` makes, or that the authors of a method "
      "publish.\n\n## Departures\nWhere a profile differs from its paper or the released code.\n";
  for (const SparseProfile& p : profiles) {
    if (p.departures.empty()) continue;
    out.append("\n`").append(p.name).append("`\n");
    for (const std::string& one : p.departures) out.append("- ").append(one).append("\n");
  }
  out += "\n";
  AppendDials(out);
  AppendRules(out);
  out += "## Keys\n\n";
  SparseProfile defaults;
  for (const BoundSection& section : BindProfile(defaults)) AppendKeys(section, out);
  return out;
}

std::string ListProfiles(std::span<const SparseProfile> profiles) {
  std::string out;
  for (const SparseProfile& p : profiles) {
    out += Format("%-26s %-16s ", p.name.c_str(), PhaseOf(p).c_str()) + p.summary + "\n";
  }
  return out;
}

std::string DescribeProfile(const SparseProfile& p) {
  std::string out = p.name + ": " + p.summary + "\n";
  if (!p.paper.empty()) out.append("paper:   ").append(p.paper).append("\n");
  for (const std::string& one : p.departures) out.append("departs: ").append(one).append("\n");
  const std::string needs = NeedsOf(p);
  if (!needs.empty()) out.append("needs:   ").append(needs).append("\n");
  out += "dials:  ";
  for (const DialInfo& dial : DialsOf(p)) out.append(" ").append(dial.name);
  SparseProfile keys = p;
  keys.paper.clear();
  keys.departures.clear();
  return out + "\n" + PrintProfile(keys);
}

std::string DescribePlan(const SparsePlan& plan) {
  const AttentionShape& s = plan.shape;
  std::string out = Format("plan for %d layers, %d query and %d kv heads of %d, pages of %d\n",
                           s.layers, s.q_heads, s.kv_heads, s.head_dim, s.page_tokens);
  AppendLayers(plan, out);
  out += Format("metadata: %.1f bytes per token, K and V in bf16: %lld\n",
                MetadataBytesPerToken(plan), 4LL * s.layers * s.kv_heads * s.head_dim);
  for (const Residency& group : ResidencyOf(plan)) {
    if (group.window_tokens == 0 || group.heads.empty()) continue;
    out += Format(
        "resident: %zu of %d (layer, kv head) keep %d sink and %d newest tokens (%d "
        "in prefill)\n",
        group.heads.size(), s.layers * s.kv_heads, group.sink_tokens, group.window_tokens,
        group.prefill_window_tokens);
  }
  if (plan.sparse_decode) {
    out += Format("decode: units of %d; a selecting kv head reads\n", plan.decode.unit_tokens);
    for (const int64_t tokens : {1024, 8192, 32768, 131072}) out += ReadsAt(plan, tokens);
  }
  out += Format("prefix cache key: %016llx, plan: %016llx\n",
                static_cast<unsigned long long>(plan.kv_fingerprint),
                static_cast<unsigned long long>(plan.fingerprint));
  if (plan.prefill_depends_on_end) {
    out += "prefill: keys and values depend on the tokens that follow in their chunk\n";
  }
  return out;
}

}  // namespace lacuna::kvcache
