// The field `sparse` of a request, its two headers, and `usage.sparse` of a response. Parsing is
// pure; what the words mean for this server's model is server/sparse's. Any thread.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "engine/event.h"
#include "server/api/api_error.h"
#include "server/api/field_reader.h"
#include "server/api/http_message.h"
#include "server/sparse/sparse_service.h"

namespace lacuna::server {

struct SparseFields final {
  SparseAsk ask;
  bool usage = false;  // report it in usage.sparse
};

// {"profile", "mode", "audit_fraction", "mass_floor", "usage"} and dials; errors stay in `reader`.
SparseFields ReadSparseFields(FieldReader& reader);

// Members of `sparse` that are no dials.
bool IsSparseKey(std::string_view name);

// The headers as the body's field would say it; a body that has the field is left as it is.
std::optional<ApiError> AddSparseHeaders(const HttpRequest& request, nlohmann::json& body);

// `service` may be null: then only dense attention is granted. Errors have the param
// "sparse.KEY" and list what exists.
ApiResult<SparseGrant> GrantSparse(const SparseService* service, const SparseFields& fields);

// An error of StartGeneration: of what the engine says about the plan the param is "sparse".
ApiError FromSubmit(const Status& status, std::optional<std::string> param = {});

// `usage` may be a sum over several choices, see AddSparseUsage.
nlohmann::ordered_json SparseUsageJson(const std::string& profile,
                                       const engine::SparseUsage& usage);
// Counts add up; means are weighted by the steps that they are of.
void AddSparseUsage(const engine::SparseUsage& one, engine::SparseUsage& sum);

}  // namespace lacuna::server
