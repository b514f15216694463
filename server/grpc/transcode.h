// lacuna.v1 messages <-> what server/api works with. Requests become the JSON body that the same
// request would have over HTTP, so that one parser holds every bound and default.
//
// Pure functions, any thread; the ones that tokenize are slow for long input and run on a text
// worker.
#pragma once

#include <vector>

#include "kernels/core/ids.h"
#include "proto/lacuna/v1/lacuna.pb.h"
#include "server/api/api_context.h"
#include "server/api/api_error.h"
#include "server/api/generation.h"

namespace lacuna::server {

// Errors name the field as the .proto spells it.
ApiResult<GenerationInput> ReadGenerate(const ApiContext& context,
                                        const v1::GenerateRequest& request, CacheScope scope);
ApiResult<std::vector<TokenId>> ReadTokenize(const ApiContext& context,
                                             const v1::TokenizeRequest& request);
ApiResult<std::vector<TokenId>> ReadDetokenize(const ApiContext& context,
                                               const v1::DetokenizeRequest& request);
ApiResult<v1::GetModelResponse> ReadGetModel(const ApiContext& context,
                                             const v1::GetModelRequest& request);

// Adds a delta of choice `index`; a chunk may hold several.
void AppendDelta(const Tokenizer& tokenizer, const Choice::Delta& delta, v1::Chunk& chunk);
v1::Finished MakeFinished(int32_t index, const Outcome& outcome);

}  // namespace lacuna::server
