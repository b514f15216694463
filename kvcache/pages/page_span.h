// PageSpan: the pages of one sequence in one KvGroup, as a step reads them. SEAM.
#pragma once

#include <cstdint>
#include <span>

namespace lacuna::kvcache {

// Ascending by logical index; parallel arrays. Valid until the sequence's next page operation.
struct PageSpan final {
  std::span<const int32_t> pages;    // index of the page in the group's pool
  std::span<const int32_t> logical;  // the page holds tokens [logical * page_tokens, + page_tokens)
};

}  // namespace lacuna::kvcache
