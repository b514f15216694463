#include "engine/loader/checkpoint.h"

#include <algorithm>
#include <set>

#include "engine/loader/bounded_json.h"

namespace lacuna::engine {
namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr int64_t kWeightFileBytesMax = int64_t{1} << 44;
constexpr size_t kShardsMax = 4096;

TensorView MakeView(const SafetensorsEntry& entry) {
  void* data = const_cast<std::byte*>(entry.bytes.data());
  const std::vector<int64_t>& shape = entry.shape;
  if (shape.size() == 1) return TensorView(data, *entry.dtype, {shape[0]});
  return TensorView(data, *entry.dtype, {shape[0], shape[1]});
}

}  // namespace

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape[i]);
  }
  return text + "]";
}

Result<std::unique_ptr<Checkpoint>> Checkpoint::Open(const Folder& folder) {
  auto checkpoint = std::make_unique<Checkpoint>();
  Result<std::unique_ptr<MappedFile>> index = folder.Map(kIndexFile, kJsonFileBytesMax);
  if (index.ok()) {
    LACUNA_RETURN_IF_ERROR(checkpoint->AddIndex(folder, (*index)->text()));
  } else if (index.status().code() == StatusCode::kNotFound) {
    LACUNA_RETURN_IF_ERROR(checkpoint->AddFile(folder, std::string(kSingleFile)));
  } else {
    return index.status();
  }
  return checkpoint;
}

Status Checkpoint::AddFile(const Folder& folder, const std::string& file) {
  LACUNA_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> mapped,
                          folder.Map(file, kWeightFileBytesMax));
  LACUNA_ASSIGN_OR_RETURN(std::vector<SafetensorsEntry> entries,
                          ParseSafetensors(mapped->bytes(), file));
  if (first_file_.empty()) first_file_ = file;
  for (SafetensorsEntry& entry : entries) {
    bytes_ += static_cast<int64_t>(entry.bytes.size());
    const std::string name = entry.name;
    const auto [it, inserted] = tensors_.try_emplace(name, Tensor{std::move(entry), file});
    if (!inserted) {
      return InvalidArgument(file + ": tensor " + name + ": expected once, found in " +
                             it->second.file + " too");
    }
  }
  files_.push_back(std::move(mapped));
  return OkStatus();
}

Status Checkpoint::AddIndex(const Folder& folder, std::string_view text) {
  const std::string index(kIndexFile);
  LACUNA_ASSIGN_OR_RETURN(const nlohmann::json object, ParseJsonObject(text, index));
  FieldReader reader(object, index + ": ");
  const nlohmann::json* map = reader.Object("weight_map");
  LACUNA_RETURN_IF_ERROR(reader.status());
  if (map == nullptr) {
    return InvalidArgument(index + ": weight_map: expected an object, found nothing");
  }
  std::set<std::string> files;
  for (const auto& [name, file] : map->items()) {
    if (!file.is_string()) {
      return InvalidArgument(index + ": " + name + ": expected a file name, found " +
                             Describe(file));
    }
    files.insert(file.get<std::string>());
  }
  if (files.size() > kShardsMax) {
    return InvalidArgument(index + ": expected at most 4096 files, found " +
                           std::to_string(files.size()));
  }
  for (const std::string& file : files) LACUNA_RETURN_IF_ERROR(AddFile(folder, file));
  for (const auto& [name, file] : map->items()) {
    const auto it = tensors_.find(name);
    if (it == tensors_.end() || it->second.file != file.get<std::string>()) {
      return InvalidArgument(index + ": tensor " + name + ": expected in " +
                             file.get<std::string>() + ", found " +
                             (it == tensors_.end() ? "nowhere" : "in " + it->second.file));
    }
  }
  first_file_ = index;
  return OkStatus();
}

Result<TensorView> Checkpoint::Get(const std::string& name, std::initializer_list<int64_t> shape) {
  const std::vector<int64_t> expected(shape);
  const auto it = tensors_.find(name);
  if (it == tensors_.end()) {
    return InvalidArgument(first_file_ + ": tensor " + name + ": expected " + ShapeText(expected) +
                           ", found none");
  }
  Tensor& tensor = it->second;
  const std::string prefix = tensor.file + ": tensor " + name + ": expected ";
  if (tensor.entry.shape != expected) {
    return InvalidArgument(prefix + ShapeText(expected) + ", found " +
                           ShapeText(tensor.entry.shape));
  }
  if (!tensor.entry.dtype || *tensor.entry.dtype == DType::kI32) {
    return InvalidArgument(prefix + "F32, BF16 or F16, found " + tensor.entry.dtype_name);
  }
  tensor.used = true;
  return MakeView(tensor.entry);
}

Status Checkpoint::CheckAllUsed(std::string_view architecture) const {
  const Tensor* extra = nullptr;
  for (const auto& [name, tensor] : tensors_) {
    // A tied head may be stored once more; an untied one was asked for.
    if (tensor.used || name == "lm_head.weight" || name.ends_with("rotary_emb.inv_freq")) continue;
    if (extra == nullptr || name < extra->entry.name) extra = &tensor;
  }
  if (extra == nullptr) return OkStatus();
  return InvalidArgument(extra->file + ": tensor " + extra->entry.name +
                         ": expected none of that name in " + std::string(architecture) +
                         ", found " + ShapeText(extra->entry.shape));
}

Result<TensorView> FindTensor(const std::vector<SafetensorsEntry>& entries, std::string_view file,
                              std::string_view name, DType dtype, int rank) {
  const std::string prefix = std::string(file) + ": tensor " + std::string(name) + ": expected ";
  const auto it = std::ranges::find(entries, name, &SafetensorsEntry::name);
  if (it == entries.end()) return InvalidArgument(prefix + "one, found none");
  if (it->dtype != dtype || it->shape.size() != static_cast<size_t>(rank)) {
    return InvalidArgument(prefix + std::string(DTypeName(dtype)) + " of rank " +
                           std::to_string(rank) + ", found " + it->dtype_name + " " +
                           ShapeText(it->shape));
  }
  return MakeView(*it);
}

}  // namespace lacuna::engine
