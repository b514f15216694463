#include "server/commands/served_model.h"

#include <filesystem>
#include <utility>
#include <vector>

#include "models/embedded.h"

#include "engine/loader/bounded_json.h"

namespace lacuna::server {
namespace {

using Json = nlohmann::json;

// The file, or null when there is none.
Result<std::unique_ptr<engine::MappedFile>> MapIfThere(const engine::Folder& folder,
                                                       std::string_view name) {
  Result<std::unique_ptr<engine::MappedFile>> file = folder.Map(name, engine::kJsonFileBytesMax);
  if (!file.ok() && file.status().code() == StatusCode::kNotFound) {
    return std::unique_ptr<engine::MappedFile>();
  }
  return file;
}

// A special token is written as a string or as an object with its content.
std::string TokenText(const Json& config, const char* key) {
  const auto value = config.find(key);
  if (value == config.end()) return "";
  if (value->is_string()) return value->get<std::string>();
  if (value->is_object()) {
    const auto content = value->find("content");
    if (content != value->end() && content->is_string()) return content->get<std::string>();
  }
  return "";
}

std::string TemplateText(const Json& config) {
  const auto value = config.find("chat_template");
  if (value == config.end()) return "";
  if (value->is_string()) return value->get<std::string>();
  if (!value->is_array()) return "";
  for (const Json& entry : *value) {
    if (!entry.is_object() || TokenText(entry, "name") != "default") continue;
    return TokenText(entry, "template");
  }
  return "";
}

}  // namespace

Result<std::unique_ptr<engine::Folder>> OpenModelFolder(const std::string& path) {
  if (!path.empty()) return engine::Folder::Open(path);
  std::vector<engine::MemoryFile> files;
  for (const models::EmbeddedFile& file : models::EmbeddedModel()) {
    files.push_back({file.name, file.bytes});
  }
  return engine::Folder::InMemory(std::string(models::kEmbeddedName), std::move(files));
}

Result<engine::ModelConfig> FolderShape(const engine::Folder& folder) {
  LACUNA_ASSIGN_OR_RETURN(const auto file, folder.Map("config.json", engine::kJsonFileBytesMax));
  return engine::ParseModelConfig(file->text(), "");
}

kvcache::AttentionShape AttentionShapeOf(const engine::ModelConfig& config, int64_t page_tokens) {
  return {.layers = static_cast<int32_t>(config.layers),
          .q_heads = static_cast<int32_t>(config.q_heads),
          .kv_heads = static_cast<int32_t>(config.kv_heads),
          .head_dim = static_cast<int32_t>(config.head_dim),
          .page_tokens = static_cast<int32_t>(page_tokens),
          .layer_window_tokens = config.layer_window};
}

Result<std::optional<ArtefactText>> FolderArtefacts(const engine::Folder& folder) {
  LACUNA_ASSIGN_OR_RETURN(const auto file, MapIfThere(folder, kArtefactsFile));
  if (file == nullptr) return std::optional<ArtefactText>();
  return std::optional<ArtefactText>({kArtefactsFile, std::string(file->text())});
}

Result<ServedModel> LoadServedModel(const engine::Folder& folder) {
  ServedModel served;
  std::filesystem::path path(folder.path());
  if (!path.has_filename()) path = path.parent_path();  // "models/x/"
  served.name = path.filename().string();

  LACUNA_ASSIGN_OR_RETURN(const auto tokenizer,
                          folder.Map("tokenizer.json", engine::kJsonFileBytesMax));
  LACUNA_ASSIGN_OR_RETURN(served.tokenizer, Tokenizer::FromJson(tokenizer->text()));

  std::string source;
  LACUNA_ASSIGN_OR_RETURN(const auto config_file, MapIfThere(folder, "tokenizer_config.json"));
  if (config_file != nullptr) {
    LACUNA_ASSIGN_OR_RETURN(const Json config,
                            engine::ParseJsonObject(config_file->text(), "tokenizer_config.json"));
    served.bos_token = TokenText(config, "bos_token");
    served.eos_token = TokenText(config, "eos_token");
    source = TemplateText(config);
  }
  // Newer folders keep the template in a file of its own, which then counts.
  LACUNA_ASSIGN_OR_RETURN(const auto template_file, MapIfThere(folder, "chat_template.jinja"));
  if (template_file != nullptr) source = std::string(template_file->text());
  if (!source.empty()) {
    LACUNA_ASSIGN_OR_RETURN(served.chat_template, ChatTemplate::Parse(std::move(source)));
  }
  return served;
}

}  // namespace lacuna::server
