// Selection: which KV pages (decode) or key ranges (prefill) a step attends to. SEAM.
//
// Everything attends through a Selection; "dense" is the selection of all pages (design, section
// 3). Plain pointers: the memory lives on the backend's device and outlives the call.
#pragma once

#include <cstdint>

namespace lacuna::kernels {

// Lists of KV pages, ascending by logical index, without repeats. List i is the entries
// [begins[i], ends[i]) of `pages` and `logical`: packed lists give ends = begins + 1, lists made on
// the device have a fixed stride.
struct PageLists final {
  const int32_t* pages = nullptr;    // index of the page in its pool
  const int32_t* logical = nullptr;  // position of the page in its sequence: it holds the tokens
                                     // [logical * page_tokens, (logical + 1) * page_tokens)
  const int64_t* begins = nullptr;   // [lists]
  const int64_t* ends = nullptr;     // [lists]
  int64_t lists = 0;
  // Bit i: token i of the page is listed; never 0. Null: all tokens of all pages.
  const uint64_t* masks = nullptr;
};

// Key ranges for prefill, in tokens of the sequence, [begin, end), ascending and disjoint, borders
// on multiples of 16. Row of lists: (chunk, query head, tile of kQueryTileTokens queries counted
// from the chunk's first token); list = chunk_offsets[chunk] + head * tiles + tile, tiles =
// ceil(rows / 64). Intersected with what the static shape (causal, window, sink) allows.
struct KeyRanges final {
  static constexpr int kQueryTileTokens = 64;
  const int32_t* begin = nullptr;
  const int32_t* end = nullptr;
  const int64_t* begins = nullptr;         // [lists], of a list's entries in `begin` and `end`
  const int64_t* ends = nullptr;           // [lists]
  const int64_t* chunk_offsets = nullptr;  // [chunks], first list of a chunk
};

// Which keys a query at position p (its own key included) may see, before any selection:
//   key <= p  and  (window_tokens == 0  or  key > p - window_tokens  or  key < sink_tokens)
struct StaticShape final {
  int32_t window_tokens = 0;  // 0: no window. Counts the query's own key, as Hugging Face does.
  int32_t sink_tokens = 0;
};

}  // namespace lacuna::kernels
