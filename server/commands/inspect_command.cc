#include "server/commands/inspect_command.h"

#include <iomanip>

#include "engine/model/load_model.h"
#include "kvcache/pages/kv_storage.h"

namespace lacuna::server {
namespace {

constexpr int64_t kPageTokens = 64;

std::string RopeName(const engine::RopeConfig& rope) {
  switch (rope.type) {
    case engine::RopeType::kDefault:
      return "default";
    case engine::RopeType::kLinear:
      return "linear";
    case engine::RopeType::kLlama3:
      return "llama3";
    case engine::RopeType::kYarn:
      return "yarn";
    case engine::RopeType::kLongRope:
      return "longrope";
  }
  return "unknown";
}

void PrintGroups(const std::vector<kvcache::KvGroup>& groups, std::ostream& out) {
  int64_t per_token = 0;
  for (size_t i = 0; i < groups.size(); ++i) {
    const kvcache::KvGroup& group = groups[i];
    const int64_t bytes =
        kvcache::KvStorage::PageBytes(group, kPageTokens, DType::kBF16) / kPageTokens;
    per_token += bytes;
    out << "kv group " << i << ":        " << group.layers.size() << " layers, "
        << (group.full() ? "full" : "window of " + std::to_string(group.window_tokens) + " tokens")
        << ", " << bytes << " bytes per token\n";
  }
  out << "kv bytes per token: " << per_token << " (bf16, all groups)\n";
}

}  // namespace

int RunInspect(const InspectOptions& options, std::ostream& out, std::ostream& err) {
  const auto folder = engine::Folder::Open(options.model);
  const Result<engine::ModelSummary> summary =
      folder.ok() ? engine::SummarizeModel(**folder) : folder.status();
  if (!summary.ok()) {
    err << "lacuna inspect: " << summary.status().message() << "\n";
    return 2;
  }
  const engine::ModelInfo& info = summary->info;
  const engine::ModelConfig& config = summary->config;
  out << "architecture:       " << info.architecture << "\n"
      << "stored dtype:       " << info.stored_dtype << "\n"
      << "parameters:         " << info.parameters << "\n"
      << "weight bytes:       " << info.weight_bytes << "\n"
      << "vocabulary:         " << info.vocab_size << "\n"
      << "hidden:             " << info.hidden << "\n"
      << "layers:             " << info.layers << "\n"
      << "heads:              " << info.q_heads << " query, " << info.kv_heads << " kv, of "
      << info.head_dim << "\n"
      << "ffn:                " << info.ffn << "\n"
      << "context tokens:     " << info.context_tokens_max << "\n"
      << "lm head:            " << (config.tied_head ? "tied" : "its own") << "\n";
  for (const engine::RopeConfig& rope : config.ropes) {
    out << "rope:               " << RopeName(rope) << ", theta " << rope.theta << ", "
        << rope.rotary_dim << " of " << config.head_dim << " channels\n";
  }
  out << "eos:               ";
  for (const TokenId id : info.eos) out << " " << id;
  out << "\n";
  PrintGroups(summary->groups, out);
  return 0;
}

}  // namespace lacuna::server
