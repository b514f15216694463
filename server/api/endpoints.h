// The endpoints, one function each; routes.cc says which path leads to which. Each reads one
// request and answers, or starts a generation and hands over its Responder. Any thread.
#pragma once

#include "server/api/api_context.h"
#include "server/api/http_message.h"
#include "server/api/responder.h"

namespace lacuna::server {

HandlerResult PostChatCompletions(ApiContext& context, const HttpRequest& request);
HandlerResult PostCompletions(ApiContext& context, const HttpRequest& request);
HandlerResult PostTokenize(ApiContext& context, const HttpRequest& request);
HandlerResult PostDetokenize(ApiContext& context, const HttpRequest& request);
HandlerResult GetModels(ApiContext& context, const HttpRequest& request);
HandlerResult GetModel(ApiContext& context, const HttpRequest& request);
HandlerResult GetSparseProfiles(ApiContext& context, const HttpRequest& request);
HandlerResult GetLive(ApiContext& context, const HttpRequest& request);
HandlerResult GetHealth(ApiContext& context, const HttpRequest& request);
HandlerResult GetReady(ApiContext& context, const HttpRequest& request);
HandlerResult GetVersion(ApiContext& context, const HttpRequest& request);
HandlerResult GetLoads(ApiContext& context, const HttpRequest& request);
HandlerResult GetMetrics(ApiContext& context, const HttpRequest& request);

}  // namespace lacuna::server
