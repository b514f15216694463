#include "kvcache/sparse/artefacts.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <numeric>

#include "kernels/core/field_reader.h"
#include "kvcache/sparse/artefact_tables.h"
#include "kvcache/sparse/kinds.h"

namespace lacuna::kvcache {
namespace {

constexpr std::string_view kFormat = "lacuna-sparse-artefacts";
constexpr int kVersion = 1;
constexpr double kScoreMax = 1e6;

bool IsContainer(const ConfigJson& root) {
  const auto found = root.is_object() ? root.find("format") : root.end();
  return found != root.end() && *found == kFormat;
}

// `json` holds one kind, in the container's or in the method's own JSON.
void Take(ArtefactKind kind, const ConfigJson& json, std::string_view key, TableReader& reader,
          SparseArtefacts& out) {
  const AttentionShape& shape = reader.shape();
  switch (kind) {
    case ArtefactKind::kHeadScores:
      out.head_scores = reader.Numbers(json, key, shape.kv_heads, 0, 1);
      break;
    case ArtefactKind::kPatterns:
      out.patterns = reader.Patterns(json, key);
      break;
    case ArtefactKind::kSpans:
      out.spans = reader.Spans(json, key);
      break;
    case ArtefactKind::kChannels:
      out.channels = reader.Channels(json, key);
      break;
    case ArtefactKind::kPlannerLayers:
      out.planner_layers = reader.Layers(json, key);
      break;
    case ArtefactKind::kPrefillP:
      out.prefill_p = reader.Numbers(json, key, shape.q_heads, 0, 1);
      break;
    case ArtefactKind::kThresholds:
      out.thresholds = reader.Numbers(json, key, shape.q_heads, -kScoreMax, kScoreMax);
      break;
  }
}

void CheckHeader(const ConfigJson& root, TableReader& reader) {
  const AttentionShape& shape = reader.shape();
  const std::pair<const char*, int32_t> numbers[] = {{"version", kVersion},
                                                     {"layers", shape.layers},
                                                     {"q_heads", shape.q_heads},
                                                     {"kv_heads", shape.kv_heads},
                                                     {"head_dim", shape.head_dim}};
  for (const auto& [key, need] : numbers) {
    const ConfigJson got = root.contains(key) ? root[key] : ConfigJson();
    if (got != need) reader.Fail(key, ShownJson(got), std::to_string(need));
  }
}

// Rows of tab-separated numbers, as numpy writes them, into the container's lists.
ConfigJson ParseTsv(std::string_view bytes, TableReader& reader) {
  ConfigJson rows = ConfigJson::array();
  for (size_t at = 0; at < bytes.size();) {
    const size_t end = std::min(bytes.find('\n', at), bytes.size());
    std::string_view line = bytes.substr(at, end - at);
    at = end + 1;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty()) continue;
    ConfigJson row = ConfigJson::array();
    for (size_t cell = 0; cell <= line.size();) {
      const size_t cell_end = std::min(line.find('\t', cell), line.size());
      const std::string text(line.substr(cell, cell_end - cell));
      char* parsed_end = nullptr;
      const double value = std::strtod(text.c_str(), &parsed_end);
      if (text.empty() || *parsed_end != '\0') {
        reader.Fail("row " + std::to_string(rows.size()), ShownJson(text), "a number");
        return rows;
      }
      row.push_back(value);
      cell = cell_end + 1;
    }
    rows.push_back(std::move(row));
    if (rows.size() > static_cast<size_t>(reader.shape().layers)) break;
  }
  return rows;
}

// The channels of a kv head from those of its query heads: smallest sum of ranks first.
ConfigJson MergeRanks(const ConfigJson& heads, int32_t kv_head, TableReader& reader,
                      std::string_view key) {
  const AttentionShape& shape = reader.shape();
  std::vector<int64_t> ranks(static_cast<size_t>(shape.head_dim));
  for (int32_t i = 0; i < shape.group(); ++i) {
    const ConfigJson& head = heads[static_cast<size_t>(int64_t{kv_head} * shape.group() + i)];
    const std::vector<int16_t> list = reader.ChannelList(head, key);
    for (size_t rank = 0; rank < list.size(); ++rank) {
      ranks[static_cast<size_t>(list[rank])] += static_cast<int64_t>(rank);
    }
  }
  std::vector<int16_t> order(ranks.size());
  std::iota(order.begin(), order.end(), int16_t{0});
  std::ranges::stable_sort(order, std::less<>(),
                           [&](int16_t channel) { return ranks[static_cast<size_t>(channel)]; });
  return order;
}

// Double Sparsity's keys by module into the container's lists.
ConfigJson ParseModuleChannels(const ConfigJson& root, TableReader& reader) {
  const AttentionShape& shape = reader.shape();
  ConfigJson layers = ConfigJson::array();
  for (int32_t layer = 0; layer < shape.layers && reader.ok(); ++layer) {
    const std::string base = "model.layers." + std::to_string(layer) + ".self_attn.";
    const ConfigJson* per_query_head = nullptr;
    const ConfigJson* per_kv_head = nullptr;
    for (const char* module : {"q_proj", "k_proj", "qk_proj"}) {
      const auto found = root.is_object() ? root.find(base + module) : root.end();
      if (found == root.end() || !found->is_array()) continue;
      const size_t rows = found->size();
      if (rows == static_cast<size_t>(shape.kv_heads)) per_kv_head = &*found;
      if (rows == static_cast<size_t>(shape.q_heads)) per_query_head = &*found;
    }
    if (per_kv_head != nullptr) {
      layers.push_back(*per_kv_head);
    } else if (per_query_head != nullptr) {
      ConfigJson heads = ConfigJson::array();
      for (int32_t h = 0; h < shape.kv_heads && reader.ok(); ++h) {
        heads.push_back(MergeRanks(*per_query_head, h, reader, base + "qk_proj"));
      }
      layers.push_back(std::move(heads));
    } else {
      reader.Fail(base + "qk_proj", "no list", "a list of channels per kv head or per query head");
    }
  }
  return layers;
}

// A list of rows, one row per line.
std::string Rows(const ConfigJson& rows) {
  std::string text = "[";
  for (size_t i = 0; i < rows.size(); ++i) {
    text.append(i == 0 ? "\n  " : ",\n  ").append(rows[i].dump());
  }
  return text + "]";
}

template <typename Value, typename ToJson>
ConfigJson Table(const std::vector<Value>& values, int32_t rows, ToJson to_json) {
  ConfigJson table = ConfigJson::array();
  const size_t columns = values.size() / static_cast<size_t>(rows);
  for (size_t i = 0; i < values.size(); ++i) {
    if (i % columns == 0) table.push_back(ConfigJson::array());
    table.back().push_back(to_json(values[i]));
  }
  return table;
}

ConfigJson PatternJson(const HeadPattern& pattern) {
  static constexpr const char* kNames[] = {"", "vertical_slash", "a_shape", "blocks"};
  return ConfigJson::array({kNames[static_cast<int>(pattern.kind)], pattern.a, pattern.b});
}

// By head: one that does as the profile says needs no entry.
ConfigJson PatternRows(const SparseArtefacts& artefacts, const AttentionShape& shape) {
  ConfigJson rows = ConfigJson::array();
  for (size_t i = 0; i < artefacts.patterns.size(); ++i) {
    const size_t head = i % static_cast<size_t>(shape.q_heads);
    if (head == 0) rows.push_back(ConfigJson::object());
    if (artefacts.patterns[i].kind == PatternKind::kProfile) continue;
    rows.back()[std::to_string(head)] = PatternJson(artefacts.patterns[i]);
  }
  return rows;
}

ConfigJson ChannelRows(const SparseArtefacts& artefacts, const AttentionShape& shape) {
  const ConfigJson flat = Table(artefacts.channels, shape.layers * shape.kv_heads,
                                [](int16_t channel) { return ConfigJson(channel); });
  ConfigJson rows = ConfigJson::array();
  for (size_t i = 0; i < flat.size(); ++i) {
    if (i % static_cast<size_t>(shape.kv_heads) == 0) rows.push_back(ConfigJson::array());
    rows.back().push_back(flat[i]);
  }
  return rows;
}

}  // namespace

bool SparseArtefacts::Has(ArtefactKind kind) const {
  switch (kind) {
    case ArtefactKind::kHeadScores:
      return !head_scores.empty();
    case ArtefactKind::kPatterns:
      return !patterns.empty();
    case ArtefactKind::kSpans:
      return !spans.empty();
    case ArtefactKind::kChannels:
      return !channels.empty();
    case ArtefactKind::kPlannerLayers:
      return !planner_layers.empty();
    case ArtefactKind::kPrefillP:
      return !prefill_p.empty();
    case ArtefactKind::kThresholds:
      return !thresholds.empty();
  }
  return false;
}

Result<SparseArtefacts> ReadArtefacts(std::string_view bytes, std::string_view file,
                                      const AttentionShape& shape) {
  TableReader reader(file, shape);
  const ConfigJson root = reader.Parse(bytes);
  if (reader.ok() && !IsContainer(root)) {
    reader.Fail("format", "something else", "\"" + std::string(kFormat) + "\"");
  }
  if (!reader.ok()) return reader.status();
  CheckHeader(root, reader);
  SparseArtefacts artefacts;
  for (const auto& [key, value] : root.items()) {
    if (key == "model" && value.is_string()) {
      artefacts.model = value.get<std::string>();
      continue;
    }
    const uint8_t index = WordIndex(kArtefactNames, key);
    if (WordAt(kArtefactNames, ArtefactKind{index}) == key) {
      Take(ArtefactKind{index}, value, key, reader, artefacts);
    }
  }
  if (!reader.ok()) return reader.status();
  return artefacts;
}

Status ReadArtefact(ArtefactKind kind, std::string_view bytes, std::string_view file,
                    const AttentionShape& shape, SparseArtefacts& artefacts) {
  TableReader reader(file, shape);
  const std::string key(WordAt(kArtefactNames, kind));
  const size_t start = bytes.find_first_not_of(" \t\r\n");
  const bool json = start != bytes.npos && (bytes[start] == '{' || bytes[start] == '[');
  if (kind == ArtefactKind::kHeadScores && !json) {
    Take(kind, ParseTsv(bytes, reader), key, reader, artefacts);
    return reader.status();
  }
  const ConfigJson root = reader.Parse(bytes);
  if (!reader.ok()) return reader.status();
  if (IsContainer(root)) {
    CheckHeader(root, reader);
    if (!root.contains(key)) reader.Fail(key, "nothing", "the table of that name");
    if (reader.ok()) Take(kind, root[key], key, reader, artefacts);
  } else if (kind == ArtefactKind::kChannels) {
    const ConfigJson layers = ParseModuleChannels(root, reader);
    if (reader.ok()) Take(kind, layers, key, reader, artefacts);
  } else {
    Take(kind, root, key, reader, artefacts);
  }
  return reader.status();
}

std::string WriteArtefacts(const SparseArtefacts& artefacts, const AttentionShape& shape) {
  const auto number = [](float value) { return ConfigJson(value); };
  std::string text = "{\n\"format\": \"" + std::string(kFormat) +
                     "\", \"version\": " + std::to_string(kVersion) +
                     ",\n\"model\": " + ConfigJson(artefacts.model).dump() +
                     ", \"layers\": " + std::to_string(shape.layers) +
                     ", \"q_heads\": " + std::to_string(shape.q_heads) +
                     ", \"kv_heads\": " + std::to_string(shape.kv_heads) +
                     ", \"head_dim\": " + std::to_string(shape.head_dim);
  const auto add = [&](ArtefactKind kind, const std::string& json) {
    if (artefacts.Has(kind)) {
      text += ",\n\"" + std::string(WordAt(kArtefactNames, kind)) + "\": " + json;
    }
  };
  add(ArtefactKind::kHeadScores, Rows(Table(artefacts.head_scores, shape.layers, number)));
  add(ArtefactKind::kPatterns, Rows(PatternRows(artefacts, shape)));
  const auto alpha = [](const HeadSpan& span) { return ConfigJson(span.alpha); };
  const auto beta = [](const HeadSpan& span) { return ConfigJson(span.beta); };
  std::string spans = "{\"alphas\": ";
  spans.append(Rows(Table(artefacts.spans, shape.layers, alpha))).append(",\n \"betas\": ");
  spans.append(Rows(Table(artefacts.spans, shape.layers, beta))).append("}");
  add(ArtefactKind::kSpans, spans);
  add(ArtefactKind::kChannels, Rows(ChannelRows(artefacts, shape)));
  add(ArtefactKind::kPlannerLayers, ConfigJson(artefacts.planner_layers).dump());
  add(ArtefactKind::kPrefillP, Rows(Table(artefacts.prefill_p, shape.layers, number)));
  add(ArtefactKind::kThresholds, Rows(Table(artefacts.thresholds, shape.layers, number)));
  return text + "\n}\n";
}

}  // namespace lacuna::kvcache
