// GraphCache: recorded decode steps, by what is fixed in a recording: how many rows stand where,
// and whose plans they follow. Whatever else varies from step to step lies in the step's image.
//
// Bounded: the graph that ran longest ago makes room. A graph that is dropped lives on until the
// steps launched so far are done. Engine thread only.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "engine/execute/step_order.h"
#include "kernels/device/device.h"

namespace lacuna::engine {

struct GraphKey final {
  static constexpr size_t kClassesMax = 4;
  int64_t room = 0;        // entries of each page list
  int64_t dense_rows = 0;  // padding included, as those of the classes
  struct Class {
    uint64_t path = 0;
    int64_t rows = 0;
    auto operator<=>(const Class&) const = default;
  };
  std::array<Class, kClassesMax> classes = {};
  auto operator<=>(const GraphKey&) const = default;
};
// Of a padded order, whose classes are kClassesMax at most.
GraphKey KeyOf(const StepOrder& order, int64_t room);

class GraphCache final {
 public:
  static constexpr size_t kGraphsMax = 128;

  struct Entry {
    std::unique_ptr<kernels::Graph> graph;  // null: not recorded yet
    bool met = false;                       // a step of this kind has run
    int64_t step = 0;                       // that asked for it last
  };
  // Of step number `step`, `waited` of which are done. Valid until the next call.
  Entry& Of(const GraphKey& key, int64_t step, int64_t waited);
  // Drops what has rows of this path.
  void DropPath(uint64_t path, int64_t step);
  // Nothing may be under way.
  void Clear();

 private:
  void Retire(Entry& entry, int64_t step);

  std::map<GraphKey, Entry> entries_;
  // Steps launched when it was dropped.
  std::vector<std::pair<int64_t, std::unique_ptr<kernels::Graph>>> retired_;
};

}  // namespace lacuna::engine
