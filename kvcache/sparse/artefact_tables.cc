#include "kvcache/sparse/artefact_tables.h"

#include <cmath>

#include "kernels/core/field_reader.h"

namespace lacuna::kvcache {
namespace {

constexpr int64_t kSizeMax = 1 << 24;  // tokens or blocks of a pattern

std::string At(std::string_view key, size_t index) {
  return std::string(key) + "[" + std::to_string(index) + "]";
}

// A whole number in [0, max], or -1.
int64_t IntOf(const ConfigJson& json, int64_t max) {
  if (!json.is_number_integer()) return -1;
  if (json.is_number_unsigned() && json.get<uint64_t>() > static_cast<uint64_t>(max)) return -1;
  const int64_t value = json.get<int64_t>();
  return value >= 0 && value <= max ? value : -1;
}

// The names of the container, and those of MInference.
PatternKind PatternOf(const ConfigJson& json) {
  if (!json.is_string()) return PatternKind::kProfile;
  const std::string& name = json.get_ref<const std::string&>();
  if (name == "vertical_slash" || name == "vertical_and_slash") return PatternKind::kVerticalSlash;
  if (name == "a_shape" || name == "stream_llm") return PatternKind::kAShape;
  return name == "blocks" || name == "block_sparse" ? PatternKind::kBlocks : PatternKind::kProfile;
}

}  // namespace

void TableReader::Fail(std::string_view key, std::string_view got, std::string_view need) {
  if (!ok()) return;
  status_ = InvalidArgument(file_ + ": " + std::string(key) + ": got " + std::string(got) +
                            ", need " + std::string(need));
}

ConfigJson TableReader::Parse(std::string_view bytes) {
  Result<ConfigJson> json = ParseJsonText(bytes, kArtefactLimits);
  if (json.ok()) return std::move(json).value();
  if (ok()) status_ = InvalidArgument(file_ + ": " + json.status().message());
  return {};
}

bool TableReader::IsArray(const ConfigJson& json, std::string_view key, int32_t size,
                          std::string_view of) {
  if (!ok()) return false;
  if (!json.is_array()) {
    Fail(key, ShownJson(json), "a list of " + std::to_string(size) + " " + std::string(of));
    return false;
  }
  if (json.size() != static_cast<size_t>(size)) {
    Fail(key, std::to_string(json.size()) + " " + std::string(of), std::to_string(size));
    return false;
  }
  return true;
}

std::vector<float> TableReader::Numbers(const ConfigJson& json, std::string_view key,
                                        int32_t columns, double min, double max) {
  std::vector<float> values;
  if (!IsArray(json, key, shape_.layers, "layers")) return {};
  for (size_t layer = 0; layer < json.size(); ++layer) {
    if (!IsArray(json[layer], At(key, layer), columns, "heads")) return {};
    for (const ConfigJson& item : json[layer]) {
      const double value = item.is_number() ? item.get<double>() : std::nan("");
      if (!(value >= min && value <= max)) {
        Fail(At(key, layer), ShownJson(item), NeedRange(min, max));
        return {};
      }
      values.push_back(static_cast<float>(value));
    }
  }
  return values;
}

std::vector<HeadPattern> TableReader::Patterns(const ConfigJson& json, std::string_view key) {
  std::vector<HeadPattern> patterns;
  if (!IsArray(json, key, shape_.layers, "layers")) return {};
  for (size_t layer = 0; layer < json.size(); ++layer) {
    const ConfigJson& heads = json[layer];
    const std::string at = At(key, layer);
    if (!heads.is_object() && !IsArray(heads, at, shape_.q_heads, "heads")) return {};
    const size_t first = patterns.size();
    patterns.resize(first + static_cast<size_t>(shape_.q_heads));
    for (const auto& [name, item] : heads.items()) {  // of a list: "0", "1", ...
      const int64_t head = IntOf(ConfigJson::parse(name, nullptr, false), shape_.q_heads - 1);
      if (head < 0) {
        Fail(at, "head " + ShownJson(name), "0 to " + std::to_string(shape_.q_heads - 1));
        return {};
      }
      const bool sized = item.is_array() && item.size() >= 3;
      const HeadPattern pattern = {sized ? PatternOf(item[0]) : PatternKind::kProfile,
                                   static_cast<int32_t>(sized ? IntOf(item[1], kSizeMax) : -1),
                                   static_cast<int32_t>(sized ? IntOf(item[2], kSizeMax) : -1)};
      if (pattern.kind == PatternKind::kProfile || pattern.a < 0 || pattern.b < 0) {
        Fail(at, ShownJson(item), "[vertical_slash, a_shape or blocks, size, size]");
        return {};
      }
      patterns[first + static_cast<size_t>(head)] = pattern;
    }
  }
  return patterns;
}

std::vector<HeadSpan> TableReader::Spans(const ConfigJson& object, std::string_view key) {
  if (!object.is_object() || !object.contains("alphas") || !object.contains("betas")) {
    Fail(key, ShownJson(object), R"({"alphas": [...], "betas": [...]})");
    return {};
  }
  const std::string path = std::string(key) + ".";
  const auto alphas =
      Numbers(object["alphas"], path + "alphas", shape_.q_heads, -kSizeMax, kSizeMax);
  const auto betas = Numbers(object["betas"], path + "betas", shape_.q_heads, 0, 1);
  if (!ok()) return {};
  std::vector<HeadSpan> spans(alphas.size());
  for (size_t i = 0; i < spans.size(); ++i) spans[i] = {alphas[i], betas[i]};
  return spans;
}

std::vector<int16_t> TableReader::ChannelList(const ConfigJson& json, std::string_view key) {
  if (ok() && !json.is_array()) Fail(key, ShownJson(json), "a list of channels");
  if (!ok()) return {};
  std::vector<int16_t> list;
  std::vector<bool> seen(static_cast<size_t>(shape_.head_dim));
  for (const ConfigJson& item : json) {
    const int64_t channel = IntOf(item, shape_.head_dim - 1);
    if (channel < 0 || seen[static_cast<size_t>(channel)]) {
      Fail(key, ShownJson(item),
           "each channel from 0 to " + std::to_string(shape_.head_dim - 1) + " at most once");
      return {};
    }
    seen[static_cast<size_t>(channel)] = true;
    list.push_back(static_cast<int16_t>(channel));
  }
  for (size_t channel = 0; channel < seen.size(); ++channel) {
    if (!seen[channel]) list.push_back(static_cast<int16_t>(channel));
  }
  return list;
}

std::vector<int16_t> TableReader::Channels(const ConfigJson& json, std::string_view key) {
  std::vector<int16_t> channels;
  if (!IsArray(json, key, shape_.layers, "layers")) return {};
  for (size_t layer = 0; layer < json.size(); ++layer) {
    if (!IsArray(json[layer], At(key, layer), shape_.kv_heads, "kv heads")) return {};
    for (const ConfigJson& head : json[layer]) {
      const std::vector<int16_t> list = ChannelList(head, At(key, layer));
      channels.insert(channels.end(), list.begin(), list.end());
    }
  }
  return ok() ? channels : std::vector<int16_t>{};
}

std::vector<int32_t> TableReader::Layers(const ConfigJson& json, std::string_view key) {
  std::vector<int32_t> layers;
  if (ok() && !json.is_array()) Fail(key, ShownJson(json), "a list of layers");
  if (!ok()) return layers;
  for (const ConfigJson& item : json) {
    const int64_t layer = IntOf(item, shape_.layers - 1);
    if (layer < 0 || (!layers.empty() && layer <= layers.back())) {
      Fail(key, ShownJson(item), "ascending layers from 0 to " + std::to_string(shape_.layers - 1));
      return {};
    }
    layers.push_back(static_cast<int32_t>(layer));
  }
  if (layers.empty()) Fail(key, "no layer", "at least one");
  return layers;
}

}  // namespace lacuna::kvcache
