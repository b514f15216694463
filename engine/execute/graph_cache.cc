#include "engine/execute/graph_cache.h"

#include <algorithm>

namespace lacuna::engine {

GraphKey KeyOf(const StepOrder& order, int64_t room) {
  GraphKey key{.room = room, .dense_rows = order.dense_rows};
  for (size_t c = 0; c < order.decode.size(); ++c) {
    key.classes.at(c) = {order.decode[c].plan->path_fingerprint, order.decode[c].rows};
  }
  return key;
}

GraphCache::Entry& GraphCache::Of(const GraphKey& key, int64_t step, int64_t waited) {
  std::erase_if(retired_, [waited](const auto& one) { return one.first <= waited; });
  auto found = entries_.find(key);
  if (found == entries_.end()) {
    if (entries_.size() >= kGraphsMax) {
      const auto oldest = std::ranges::min_element(
          entries_, {}, [](const auto& entry) { return entry.second.step; });
      Retire(oldest->second, step);
      entries_.erase(oldest);
    }
    found = entries_.emplace(key, Entry{}).first;
  }
  found->second.step = step;
  return found->second;
}

void GraphCache::DropPath(uint64_t path, int64_t step) {
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    if (std::ranges::find(entry->first.classes, path, &GraphKey::Class::path) ==
        entry->first.classes.end()) {
      ++entry;
      continue;
    }
    Retire(entry->second, step);
    entry = entries_.erase(entry);
  }
}

void GraphCache::Clear() {
  entries_.clear();
  retired_.clear();
}

void GraphCache::Retire(Entry& entry, int64_t step) {
  if (entry.graph != nullptr) retired_.emplace_back(step, std::move(entry.graph));
}

}  // namespace lacuna::engine
