#include "server/text/tokenizer_post_processor.h"

#include <string>
#include <utility>

#include "server/text/tokenizer_tables.h"

namespace lacuna::server {

Result<PostProcessor> PostProcessor::FromJson(const Json& json) {
  PostProcessor processor;
  if (!json.is_null()) LACUNA_RETURN_IF_ERROR(processor.Parse(json, kComponentDepthMax));
  return processor;
}

Status PostProcessor::Parse(const Json& json, int depth) {
  LACUNA_ASSIGN_OR_RETURN(const std::string type, JsonType(json));
  if (type == "ByteLevel") return OkStatus();
  if (type == "TemplateProcessing") return ParseTemplate(json);
  if (type != "Sequence") return InvalidArgument("unknown type \"" + type + "\"");
  if (depth == 0) return InvalidArgument("Sequence: nested too deeply");
  LACUNA_ASSIGN_OR_RETURN(const Json* list, JsonArray(json, "processors"));
  for (const Json& step : *list) LACUNA_RETURN_IF_ERROR(Parse(step, depth - 1));
  return OkStatus();
}

// Reads "single" alone: a server encodes no pairs of texts.
Status PostProcessor::ParseTemplate(const Json& json) {
  LACUNA_ASSIGN_OR_RETURN(const Json* single, JsonArray(json, "single"));
  const Json& special = JsonMember(json, "special_tokens");
  Template parsed;
  bool seen_text = false;
  for (const Json& part : *single) {
    if (JsonMember(part, "Sequence").is_object()) {
      LACUNA_ASSIGN_OR_RETURN(const std::string id, JsonString(part["Sequence"], "id"));
      if (id != "A" || seen_text) return InvalidArgument("single: need the sequence A once");
      seen_text = true;
      continue;
    }
    LACUNA_ASSIGN_OR_RETURN(const std::string name,
                            JsonString(JsonMember(part, "SpecialToken"), "id"));
    LACUNA_ASSIGN_OR_RETURN(const Json* ids, JsonArray(JsonMember(special, name.c_str()), "ids"));
    for (const Json& id : *ids) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= uint64_t{kTokenIdMax}) {
        return InvalidArgument("special_tokens: wrong id for \"" + name + "\"");
      }
      (seen_text ? parsed.after : parsed.before).push_back(id.get<TokenId>());
    }
  }
  if (!seen_text) return InvalidArgument("single: need the sequence A once");
  templates_.push_back(std::move(parsed));
  return OkStatus();
}

std::vector<TokenId> PostProcessor::Apply(std::vector<TokenId> ids) const {
  for (const Template& around : templates_) {
    ids.insert(ids.begin(), around.before.begin(), around.before.end());
    ids.insert(ids.end(), around.after.begin(), around.after.end());
  }
  return ids;
}

}  // namespace lacuna::server
