// ServedModel: what the server needs of a model's folder beside its weights: the tokenizer, the
// chat template, the names of special tokens. Made once at start; immutable.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "engine/loader/mapped_file.h"
#include "engine/loader/model_config.h"
#include "kernels/core/status.h"
#include "kvcache/sparse/artefacts.h"
#include "server/sparse/profile_files.h"
#include "server/text/chat_template.h"
#include "server/text/tokenizer.h"

namespace lacuna::server {

struct ServedModel final {
  std::string name;  // the folder's
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat_template;  // null: the folder has none
  std::string bos_token, eos_token;             // for the template; may be empty
};

// The folder at `path`, or the embedded model when `path` is empty.
Result<std::unique_ptr<engine::Folder>> OpenModelFolder(const std::string& path);

// tokenizer.json, and of tokenizer_config.json and chat_template.jinja what is there. A chat
// template that lies in tokenizer_config.json as a list counts by its entry "default". Errors name
// the file.
Result<ServedModel> LoadServedModel(const engine::Folder& folder);

// config.json.
Result<engine::ModelConfig> FolderShape(const engine::Folder& folder);

// What the sparse runtime must know of the model.
kvcache::AttentionShape AttentionShapeOf(const engine::ModelConfig& config, int64_t page_tokens);

// What was measured of the model, if its folder has it.
Result<std::optional<ArtefactText>> FolderArtefacts(const engine::Folder& folder);

}  // namespace lacuna::server
