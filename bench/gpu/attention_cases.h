// The cases of attention_check.cc: shapes, masks and precisions that its kernels must get right.
#pragma once

#include <iterator>
#include <string>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/ops/selection.h"

namespace lacuna::bench {

struct Span final {
  int first = 0;  // position of the first query
  int end = 0;    // tokens of the sequence
};

inline constexpr Span kSpans[] = {{0, 1},    {0, 63},    {0, 64},   {0, 65},
                                  {30, 101}, {200, 215}, {100, 330}};

struct Case final {
  std::string name;
  DType dtype = DType::kBF16;
  int q_heads = 4;
  int kv_heads = 2;
  int head_dim = 128;
  int page_tokens = 64;
  std::vector<Span> spans{std::begin(kSpans), std::end(kSpans)};
  kernels::StaticShape shape;
  float softcap = 0.0f;
  bool sink_logits = false;
  float scale = 0.0f;  // 0: 1 / sqrt(head_dim)
  bool ranges = false;
  bool holes = false;   // some pages are not in the list
  bool shapes = false;  // per chunk and kv head, instead of `shape`
  bool masks = false;   // some tokens of pages are not in the list; for the plain kernel alone
};

inline std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const int page_tokens : {16, 64}) {
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      const auto add = [&](const char* name, auto&& change) {
        Case c;
        c.name = name;
        c.dtype = dtype;
        c.page_tokens = page_tokens;
        change(c);
        cases.push_back(c);
      };
      for (const int dim : {16, 32, 48, 64, 80, 96, 128, 256}) {
        add("plain", [&](Case& c) { c.head_dim = dim; });
      }
      if (dtype != DType::kBF16 && page_tokens == 16) continue;
      for (const int dim : {64, 96, 128, 256}) {
        add("ranges", [&](Case& c) { c.head_dim = dim, c.ranges = true; });
        add("window 70 + 20", [&](Case& c) { c.head_dim = dim, c.shape = {70, 20}; });
      }
      add("window 1", [](Case& c) { c.shape = {1, 0}; });
      add("window 128, far", [](Case& c) { c.shape = {128, 70}, c.spans = {{900, 1200}}; });
      add("softcap, sink logits", [](Case& c) { c.softcap = 2.5f, c.sink_logits = true; });
      add("sink logits", [](Case& c) { c.sink_logits = true; });
      add("negative scale", [](Case& c) { c.scale = -0.25f; });
      add("large scale", [](Case& c) { c.scale = 2.0f; });
      add("heads 15/3", [](Case& c) { c.q_heads = 15, c.kv_heads = 3, c.spans = {{30, 101}}; });
      add("holes", [](Case& c) { c.holes = true; });
      add("all of it", [](Case& c) {
        c.ranges = c.holes = c.sink_logits = true;
        c.softcap = 5.0f, c.shape = {90, 20}, c.head_dim = 64;
      });
      add("long", [](Case& c) { c.spans = {{8000, 8260}}, c.q_heads = 2, c.kv_heads = 1; });
      add("shapes", [](Case& c) { c.shapes = true, c.q_heads = 6, c.kv_heads = 3; });
      add("shapes, ranges", [](Case& c) { c.shapes = c.ranges = true, c.head_dim = 64; });
      add("masks", [](Case& c) { c.masks = c.holes = true; });
      add("66 chunks", [](Case& c) {
        c.spans.assign(66, {3, 20}), c.q_heads = 2, c.kv_heads = 1, c.head_dim = 64;
      });
    }
  }
  return cases;
}

}  // namespace lacuna::bench
