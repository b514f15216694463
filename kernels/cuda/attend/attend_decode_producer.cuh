// The producer warp of a decode block: which tokens of a segment's list its row sees, and the
// copies that bring them into the ring.
//
// Pages of 64 tokens that a list's masks take few tokens of are not read whole: a stage is put
// together from groups of 16 tokens or, where a mask takes few of a group, from single tokens.
// Pages that lose little stay stages of their own, so that full masks give the stages, and the
// bits, of no masks.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend/attend_decode_ring.cuh"
#include "kernels/cuda/kv_layout.cuh"

namespace lacuna::kernels::cuda {

// What a stage is filled with. Lane i < 4 holds the visible tokens of the i-th 16 tokens of the
// stage and, unless they are kTokens, the i-th source.
enum class PieceKind { kPages, kGroups, kTokens };
struct StagePieces final {
  PieceKind kind = PieceKind::kPages;
  int count = 0;   // of the sources
  int source = 0;  // a page, or page * 4 + group of 16 tokens
  uint32_t visible = 0;
};

// Tokens that wait for a full stage: page * 64 + token of the page. In shared memory; the
// producer's.
struct PendingTokens final {
  int sources[kStageTokens];
};

// Fills stages; used by the producer warp, all lanes together. kGathers: DecodeGathers of the
// launch. It is a constant because what gathers is far more code than the rest: a launch pays for
// each line of instructions that it meets first, and steps of few short rows consist of that.
template <int kHeadDim, bool kGathers>
class Producer final {
 public:
  __device__ Producer(const DecodeParams& p, const char* stages, RingBarriers* barriers,
                      StageHeader* headers, PendingTokens* pending_tokens)
      : p_(p),
        stages_(SharedAddress(stages)),
        barriers_(barriers),
        headers_(headers),
        pending_tokens_(pending_tokens->sources),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  // What the row sees of a segment; at least one stage, so that its result gets written.
  __device__ void Send(const Segment& segment) {
    shape_ =
        p_.shapes == nullptr ? p_.shape : p_.shapes[segment.row * p_.kv_heads + segment.kv_head];
    first_ = true;
    if constexpr (kGathers) {
      SendGathered(segment);
    } else {
      SendPages(segment);
    }
  }

  __device__ void Stop() {
    const RingBarriers& barriers = barriers_[cursor_.stage];
    WaitFor(barriers.empty, cursor_.parity ^ 1);
    if (lane_ == 0) {
      headers_[cursor_.stage].stop = true;
      Announce(barriers.k_full, 0);
    }
    CopiesIssued(p_, barriers.k_full);
  }

 private:
  static constexpr int kStripes = kHeadDim / kStripeColumns;
  static constexpr int kRest = kHeadDim % kStripeColumns;
  static constexpr int kGroupTokens = 16;
  // A group of which the row reads more tokens is copied whole: a token alone comes in pieces of
  // 128 bytes, a group in 2048.
  static constexpr int kTokensAloneMax = 8;

  __device__ void SendPages(const Segment& segment) {
    const bool whole = p_.page_tokens == kStageTokens;  // else pages are groups
    const int per_stage = whole ? 1 : kStageTokens / kGroupTokens;
    const int page_of_lane = whole ? lane_ / 4 : lane_;  // among those of a stage
    const int group_of_lane = whole ? lane_ % 4 : 0;     // of that page
    const int end = min(segment.end * per_stage, segment.list_pages);
    int base = segment.begin * per_stage;
    // Of each lane, one of 32.
    int page = 0;
    int key = 0;
    uint32_t mask = ~0u;
    unsigned left = 0;  // that are visible and not sent
    bool last = false;
    while (!last) {
#pragma unroll 1
      for (; left == 0 && base < end; base += 32) {
        const int mine = base + lane_;
        bool visible = false;
        if (mine < end) {
          page = p_.pages[segment.list_begin + mine];
          key = p_.logical[segment.list_begin + mine] * p_.page_tokens;
          visible = SomeVisible(shape_, segment.position, key, p_.page_tokens);
          if (p_.masks != nullptr) {  // then pages have 16 tokens
            mask = static_cast<uint32_t>(p_.masks[segment.list_begin + mine]);
            visible = (VisibleTokens(shape_, segment.position, key) & mask) != 0;
          }
        }
        left = __ballot_sync(~0u, visible);
      }
      StagePieces pieces;
#pragma unroll 1
      for (; pieces.count < per_stage && left != 0; ++pieces.count) {
        const int from = __ffs(static_cast<int>(left)) - 1;
        left &= left - 1;
        const int from_page = __shfl_sync(~0u, page, from);
        const int from_key = __shfl_sync(~0u, key, from);
        const uint32_t from_mask = __shfl_sync(~0u, mask, from);
        if (lane_ == pieces.count) pieces.source = from_page;
        if (page_of_lane == pieces.count) {
          const int group_key = from_key + group_of_lane * kGroupTokens;
          pieces.visible = VisibleTokens(shape_, segment.position, group_key) & from_mask;
        }
      }
      last = left == 0 && base >= end;
      Push(segment, last, pieces);
    }
  }

  // What the row reads of a page of 64 tokens.
  struct PageTokens final {
    uint32_t words[2] = {0, 0};  // bit i of both together: token i
    bool whole = true;           // of every group of 16: all or many of the tokens that it may see
    bool alone = true;           // of every group few
  };
  __device__ PageTokens TokensOf(uint64_t mask, int position, int key) const {
    PageTokens tokens;
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      const uint32_t visible = VisibleTokens(shape_, position, key + group * kGroupTokens);
      const uint32_t read = visible & static_cast<uint32_t>(mask >> (group * kGroupTokens));
      const bool many = __popc(read) > kTokensAloneMax;
      tokens.words[group / 2] |= read << (group % 2 * kGroupTokens);
      tokens.whole = tokens.whole && (read == visible || many);
      tokens.alone = tokens.alone && !many;
    }
    tokens.alone = tokens.alone && !tokens.whole;
    return tokens;
  }
  // An entry of the list; page -1 behind its end.
  struct Entry final {
    int page = -1;
    int logical = 0;
    uint64_t mask = 0;
  };
  __device__ Entry EntryAt(const Segment& segment, int at) const {
    if (at >= segment.end) return {};
    const int64_t i = segment.list_begin + at;
    return {p_.pages[i], p_.logical[i], p_.masks[i]};
  }

  // Pages of 64 tokens with masks.
  __device__ void SendGathered(const Segment& segment) {
    StagePieces groups;  // fewer than four between two pages
    groups.kind = PieceKind::kGroups;
    int tokens = 0;  // pending, fewer than a stage
    bool last = false;
    Entry next = EntryAt(segment, segment.begin + lane_);
#pragma unroll 1
    for (int base = segment.begin; base < segment.end; base += 32) {
      const Entry entry = next;
      next = EntryAt(segment, base + 32 + lane_);
      const int page = entry.page;
      PageTokens of_page;
      if (page >= 0) of_page = TokensOf(entry.mask, segment.position, entry.logical * kStageTokens);
      const bool alone = page >= 0 && of_page.alone;
      AddTokensOfPages(segment, page, alone ? of_page : PageTokens(), &tokens);
      unsigned left = __ballot_sync(~0u, !alone && (of_page.words[0] | of_page.words[1]) != 0);
      const unsigned whole = __ballot_sync(~0u, of_page.whole);
      while (left != 0) {
        const int from = __ffs(static_cast<int>(left)) - 1;
        left &= left - 1;
        const int from_page = __shfl_sync(~0u, page, from);
        const uint32_t low = __shfl_sync(~0u, of_page.words[0], from);
        const uint32_t high = __shfl_sync(~0u, of_page.words[1], from);
        if ((whole >> from & 1) == 0) {
          AddThinPage(segment, from_page, low, high, &groups, &tokens);
          continue;
        }
        last = left == 0 && base + 32 >= segment.end && groups.count == 0 && tokens == 0;
        Push(segment, last, {PieceKind::kPages, 1, from_page, GroupOf(low, high, lane_ % 4)});
      }
    }
    if (last) return;
    if (groups.count > 0) Push(segment, tokens == 0, groups);
    if (groups.count == 0 || tokens > 0) PushTokens(segment, true, tokens);
  }

  __device__ static uint32_t GroupOf(uint32_t low, uint32_t high, int group) {
    return (group < 2 ? low : high) >> (group % 2 * kGroupTokens) & 0xffff;
  }

  // Adds groups and tokens of a page to those that wait; sends stages of them when they are full.
  __device__ void AddThinPage(const Segment& segment, int page, uint32_t low, uint32_t high,
                              StagePieces* groups, int* tokens) {
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      const uint32_t visible = GroupOf(low, high, group);
      if (visible == 0) continue;
      if (__popc(visible) <= kTokensAloneMax) {
        AddTokens(segment, page * kStageTokens + group * kGroupTokens, visible, tokens);
        continue;
      }
      if (lane_ == groups->count) {
        groups->source = page * 4 + group;
        groups->visible = visible;
      }
      if (++groups->count < 4) continue;
      Push(segment, false, *groups);
      groups->count = 0;
      groups->visible = 0;
    }
  }

  // The tokens of each lane's page; sends stages of them when they are full.
  __device__ void AddTokensOfPages(const Segment& segment, int page, const PageTokens& of_page,
                                   int* tokens) {
    uint64_t left = static_cast<uint64_t>(of_page.words[1]) << 32 | of_page.words[0];
    if (__ballot_sync(~0u, left != 0) == 0) return;
    const int mine = __popcll(left);
    int through = mine;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = __shfl_up_sync(~0u, through, step);
      if (lane_ >= step) through += before;
    }
    int at = *tokens + through - mine;
    *tokens += __shfl_sync(~0u, through, 31);
    while (true) {
      for (; left != 0 && at < kStageTokens; ++at, left &= left - 1) {
        pending_tokens_[at] = page * kStageTokens + __ffsll(static_cast<long long>(left)) - 1;
      }
      __syncwarp();
      if (*tokens < kStageTokens) return;
      PushTokens(segment, false, kStageTokens);
      __syncwarp();  // they have been read
      at -= kStageTokens;
      *tokens -= kStageTokens;
    }
  }

  // Tokens of one group, whose first one is `source`.
  __device__ void AddTokens(const Segment& segment, int source, uint32_t visible, int* tokens) {
    const bool mine = (visible >> lane_ & 1) != 0;
    const int at = *tokens + __popc(visible & ((1u << lane_) - 1));
    if (mine && at < kStageTokens) pending_tokens_[at] = source + lane_;
    *tokens += __popc(visible);
    if (*tokens < kStageTokens) return;
    PushTokens(segment, false, kStageTokens);
    __syncwarp();
    if (mine && at >= kStageTokens) pending_tokens_[at - kStageTokens] = source + lane_;
    *tokens -= kStageTokens;
  }
  __device__ void PushTokens(const Segment& segment, bool last, int tokens) {
    Push(segment, last,
         {PieceKind::kTokens, tokens, 0, FirstTokens(tokens - lane_ % 4 * kGroupTokens)});
  }

  // One stage.
  __device__ void Push(const Segment& segment, bool last, const StagePieces& pieces) {
    const RingBarriers& barriers = barriers_[cursor_.stage];
    WaitFor(barriers.empty, cursor_.parity ^ 1);
    if (kGathers) FenceBeforeCopies();  // tokens may have been copied to where bulk will
    StageHeader& header = headers_[cursor_.stage];
    if (lane_ < 4) header.sources[lane_] = pieces.source;
    uint32_t visible[4];
#pragma unroll
    for (int group = 0; group < 4; ++group) {
      visible[group] = __shfl_sync(~0u, pieces.visible, group);
    }
    // What the consumers read, the lane writes that announces the stage to them.
    if (lane_ == 0) {
#pragma unroll
      for (int group = 0; group < 4; ++group) header.visible[group] = visible[group];
      header.first = first_;
      header.last = last;
      header.stop = false;
      if (first_ || last) header.segment = segment;
    }
    __syncwarp();
    Copy(barriers, segment, pieces);
    first_ = false;
    cursor_.Advance(p_.ring_stages);
  }

  __device__ void Copy(const RingBarriers& barriers, const Segment& segment,
                       const StagePieces& pieces) {
    const uint32_t stage =
        stages_ + static_cast<uint32_t>(cursor_.stage * DecodeStageBytes(kHeadDim, p_.tile_heads));
    const int half_bytes = AnnouncedTokens(pieces) * kHeadDim * 2;
    const int query_bytes = kHeadDim * 2;
    const int heads = first_ ? TileHeads(p_, segment.tile) : 0;
    if (lane_ == 0) {
      Announce(barriers.k_full, half_bytes + heads * query_bytes);
      Announce(barriers.v_full, half_bytes);
    }
    __syncwarp();
    CopyHalf(stage, segment, pieces, 0, barriers.k_full);
    CopyAll(heads, query_bytes, barriers.k_full, [&](int i) {
      const int head = segment.kv_head * p_.group + segment.tile * p_.tile_heads + i;
      return CopyAddresses{
          stage +
              static_cast<uint32_t>(DecodeSlabsBytes(kHeadDim) + i * DecodeQueryRowBytes(kHeadDim)),
          static_cast<const std::byte*>(p_.q) + (segment.row * p_.q_row + head * kHeadDim) * 2};
    });
    CopiesIssued(p_, barriers.k_full);
    CopyHalf(stage, segment, pieces, 1, barriers.v_full);
    CopiesIssued(p_, barriers.v_full);
  }

  // What bulk copies bring.
  __device__ int AnnouncedTokens(const StagePieces& pieces) const {
    if constexpr (!kGathers) return pieces.count * p_.page_tokens;
    if (pieces.kind == PieceKind::kTokens) return 0;
    return pieces.count * (pieces.kind == PieceKind::kGroups ? kGroupTokens : p_.page_tokens);
  }

  // The K (half 0) or the V (half 1) of the pieces.
  __device__ void CopyHalf(uint32_t stage, const Segment& segment, const StagePieces& pieces,
                           int half, const uint64_t& barrier) {
    const int bytes = p_.page_tokens * kHeadDim * 2;  // of half a slab
    const int* sources = headers_[cursor_.stage].sources;
    const auto slab = [&](int page) {
      return p_.pool + (static_cast<int64_t>(page) * p_.kv_heads + segment.kv_head) * 2 * bytes +
             half * bytes;
    };
    if (kGathers && pieces.kind == PieceKind::kTokens) {
      if (half == 0) CopyTokens(stage, pieces.count, slab(0));
      return;
    }
    if (!kGathers || pieces.kind == PieceKind::kPages) {
      CopyAll(pieces.count, bytes, barrier, [&](int i) {
        return CopyAddresses{stage + static_cast<uint32_t>((2 * i + half) * bytes),
                             slab(sources[i])};
      });
      return;
    }
    // From each stripe of columns the rows of the group.
    const auto copy_stripes = [&]<int kCount, int kWidth>(int first_byte) {
      constexpr int kBytes = kGroupTokens * kWidth * 2;
      CopyAll(pieces.count * kCount, kBytes, barrier, [&](int i) {
        const int at = first_byte + half * bytes + i % kCount * 4 * kBytes;
        const int source = sources[i / kCount];
        return CopyAddresses{stage + static_cast<uint32_t>(at + i / kCount * kBytes),
                             slab(source / 4) + (at - half * bytes) + source % 4 * kBytes};
      });
    };
    if constexpr (kStripes > 0) copy_stripes.template operator()<kStripes, kStripeColumns>(0);
    if constexpr (kRest > 0) {
      copy_stripes.template operator()<1, kRest>(kStripes * kStripeColumns * kStageTokens * 2);
    }
  }

  // The keys and values of the pending tokens, from the slabs whose first one is `slabs`; 16 bytes
  // of a row to a lane, which always has the same columns.
  __device__ void CopyTokens(uint32_t to, int count, const std::byte* slabs) const {
    constexpr int kChunks = kHeadDim / 8;  // of a row
    constexpr int kRows = 32 / kChunks;    // at a time
    constexpr int kBytes = kStageTokens * kHeadDim * 2;
    if (lane_ >= kRows * kChunks) return;
    const KvColumn<kHeadDim, kStageTokens> column(lane_ % kChunks * 8);
    const auto page_bytes = static_cast<uint32_t>(p_.kv_heads * 2 * kBytes);
#pragma unroll 4
    for (int row = lane_ / kChunks; row < count; row += kRows) {
      const auto source = static_cast<uint32_t>(pending_tokens_[row]);
      const std::byte* const from =
          slabs + uint64_t{source / kStageTokens} * page_bytes + column.At(source % kStageTokens);
      const uint32_t row_to = to + column.At(static_cast<uint32_t>(row));
      AsyncCopy16(row_to, from);
      AsyncCopy16(row_to + kBytes, from + kBytes);
    }
  }

  const DecodeParams& p_;
  const uint32_t stages_;
  RingBarriers* const barriers_;
  StageHeader* const headers_;
  int* const pending_tokens_;
  const int lane_;
  RingCursor cursor_;
  StaticShape shape_;   // of the segment
  bool first_ = false;  // nothing of the segment was sent
};

}  // namespace lacuna::kernels::cuda
