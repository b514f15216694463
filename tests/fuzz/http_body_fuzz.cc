// The body of a request -> parsed struct, for every endpoint that reads one: no crash, no hang, and
// what is accepted keeps the bounds that the engine relies on.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "kernels/core/check.h"
#include "server/api/chat_request.h"
#include "server/api/completion_request.h"
#include "server/api/json_parse.h"

namespace {

using lacuna::TokenId;
using namespace lacuna::server;

constexpr ModelBounds kBounds{.vocab_size = 4096, .context_tokens_max = 65536};

void CheckFields(const GenerationFields& fields, const ApiLimits& limits) {
  const auto& sampling = fields.sampling;
  LACUNA_CHECK(sampling.temperature >= 0 && sampling.temperature <= 2);
  LACUNA_CHECK(sampling.top_p > 0 && sampling.top_p <= 1);
  LACUNA_CHECK(sampling.min_p >= 0 && sampling.min_p <= 1);
  LACUNA_CHECK(sampling.repetition_penalty > 0);
  LACUNA_CHECK(fields.n >= 1 && fields.n <= limits.n_max);
  LACUNA_CHECK(static_cast<int64_t>(fields.stop.size()) <= limits.stop_strings_max);
  for (const auto& [token, bias] : sampling.logit_bias) {
    LACUNA_CHECK(token >= 0 && token < kBounds.vocab_size && bias >= -100 && bias <= 100);
  }
  LACUNA_CHECK(!fields.max_tokens || *fields.max_tokens >= 0);
}

const SparseService& Sparse() {
  static const std::unique_ptr<SparseService> kService = [] {
    const auto set = lacuna::kvcache::ProfileSet::Load(lacuna::kvcache::ShippedProfiles()).set;
    SparseService::Model model;
    model.shape = {.layers = 6,
                   .q_heads = 8,
                   .kv_heads = 2,
                   .head_dim = 64,
                   .page_tokens = 64,
                   .layer_window_tokens = {}};
    model.has_sparse_ops = true;
    return std::move(*SparseService::Create({}, set, std::move(model)));
  }();
  return *kService;
}

// A plan for a named profile, none for dense, or a refusal in one line.
void CheckSparse(const GenerationFields& fields) {
  const auto grant = GrantSparse(&Sparse(), fields.sparse);
  if (!grant.ok()) {
    LACUNA_CHECK(grant.error().message.find('\n') == std::string::npos);
    return;
  }
  const auto& options = grant.value().options;
  LACUNA_CHECK((options.plan == nullptr) == (grant.value().profile == kDenseProfile));
  LACUNA_CHECK(options.audit_fraction >= 0 && options.audit_fraction <= 1);
  LACUNA_CHECK(options.mass_floor >= 0 && options.mass_floor <= 1);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  ApiLimits limits;
  auto body = ParseJsonObject(text, {limits.json_depth_max, limits.json_nodes_max});
  if (!body.ok()) {
    LACUNA_CHECK(!body.error().Json().empty());
    return 0;
  }
  auto chat = ParseChatRequest(*body, limits, kBounds);
  if (chat.ok()) {
    CheckFields(chat->fields, limits);
    CheckSparse(chat->fields);
  }
  auto completion = ParseCompletionRequest(*body, limits, kBounds);
  if (completion.ok()) {
    CheckFields(completion->fields, limits);
    LACUNA_CHECK(!completion->prompts.empty());
  }
  limits.strict_fields = true;
  auto strict = ParseChatRequest(*body, limits, kBounds);
  LACUNA_CHECK(!strict.ok() || chat.ok());
  return 0;
}
