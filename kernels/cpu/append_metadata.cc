#include "kernels/cpu/append_metadata.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/core/dtype.h"
#include "kernels/cpu/metadata_layout.h"

namespace lacuna::kernels::cpu {
namespace {

using Run = AppendMetadataScratch::Run;

constexpr int64_t kHeadDimMax = 256;
constexpr int kGroup = MetadataLayout::kGroup;
// Below this many keys times channels, waking the workers costs more than it saves.
constexpr int64_t kParallelElementsMin = 1 << 14;

enum class Round { kDown, kNearest, kUp };

// The bf16 number next to `value` on the side that `round` names.
BF16 RoundBf16(float value, Round round) {
  if (round == Round::kNearest || !std::isfinite(value)) return ToBF16(value);
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const bool away = (bits >> 31 != 0) == (round == Round::kDown);  // from zero
  const bool exact = (bits & 0xffffu) == 0;
  return {static_cast<uint16_t>((bits >> 16) + (away && !exact ? 1u : 0u))};
}

void StoreBf16(std::byte* to, BF16 value) { std::memcpy(to, &value, sizeof(value)); }

// Keys of one slab as floats; attention.h lays the slab out.
class Keys final {
 public:
  Keys(const KvPool& pool, int64_t page, int64_t head)
      : slab_(pool.Slab(page, head)), page_tokens_(pool.page_tokens), dtype_(pool.dtype) {}

  float at(int64_t channel, int64_t token) const {
    float value[1];
    Read<1>(channel, token, value);
    return value[0];
  }
  // `sum` and the tokens [first, end) of one channel, in order.
  float Add(float sum, int64_t channel, int64_t first, int64_t end) const {
    for (; first + kGroup <= end; first += kGroup) {
      float values[kGroup];
      Read<kGroup>(channel, first, values);
      for (const float value : values) sum += value;
    }
    for (; first < end; ++first) sum += at(channel, first);
    return sum;
  }
  // kCount tokens of one channel, from `token` on.
  template <int kCount>
  void Read(int64_t channel, int64_t token, float* out) const {
    if (dtype_ == DType::kF32) {
      std::memcpy(out, slab_ + (channel * page_tokens_ + token) * 4, kCount * sizeof(float));
      return;
    }
    uint32_t pairs[kCount];
    std::memcpy(pairs, slab_ + (channel / 2 * page_tokens_ + token) * 4, sizeof(pairs));
    const int shift = channel % 2 == 0 ? 16 : 0;
    for (int i = 0; i < kCount; ++i) {
      out[i] = std::bit_cast<float>((pairs[i] << shift) & 0xffff0000u);
    }
  }

 private:
  const std::byte* slab_;
  int64_t page_tokens_;
  DType dtype_;
};

// The least of lows to lows[0], the largest of highs to highs[0]; comparisons with NaN fall where
// they may. Widths are constants so that the compiler takes vectors.
template <int kHalf>
void Fold(float* lows, float* highs) {
  for (int i = 0; i < kHalf; ++i) {
    lows[i] = lows[i] < lows[i + kHalf] ? lows[i] : lows[i + kHalf];
    highs[i] = highs[i] > highs[i + kHalf] ? highs[i] : highs[i + kHalf];
  }
  if constexpr (kHalf > 1) Fold<kHalf / 2>(lows, highs);
}

// scale and zero such that [low, high] is covered; never a scale of 0.
struct Affine final {
  BF16 scale, zero;
  double scale_value, zero_value;

  Affine(float low, float high, int32_t levels) {
    zero = RoundBf16(low, Round::kDown);
    zero_value = ToFloat(zero);
    const double need = (static_cast<double>(high) - zero_value) / levels;
    scale = RoundBf16(std::max(static_cast<float>(need), 0x1p-100f), Round::kUp);
    // The narrowing above may have lost the last bit of `need`.
    if (ToFloat(scale) < need) scale.bits = static_cast<uint16_t>(scale.bits + 1);
    scale_value = ToFloat(scale);
  }
  double ValueOf(double code) const { return zero_value + scale_value * code; }
  // Codes of `count` values; NaN gives code 0. A quotient is a rounding away from the true one at
  // most, so one look at the neighbour on each side makes a bound hold.
  template <Round kRound>
  void Codes(const float* values, int64_t count, int32_t levels, int32_t* codes) const {
    const double inverse = 1.0 / scale_value, most = levels;
    const double up = kRound == Round::kNearest ? 0.5 : 0.0;
    for (int64_t i = 0; i < count; ++i) {
      const double value = values[i];
      double quotient = (value - zero_value) * inverse + up;
      quotient = quotient > 0.0 ? quotient : 0.0;
      quotient = quotient < most ? quotient : most;
      int32_t code = static_cast<int32_t>(quotient);
      if constexpr (kRound == Round::kDown) code -= ValueOf(code) > value ? 1 : 0;
      if constexpr (kRound == Round::kUp) {
        code += ValueOf(code) < value ? 1 : 0;
        code += ValueOf(code) < value ? 1 : 0;
        code = code < levels ? code : levels;
      }
      codes[i] = code > 0 ? code : 0;
    }
  }
};

Round RoundingOf(MetadataKind kind, int vector) {
  if (kind != MetadataKind::kMinMax) return Round::kNearest;
  return vector == 0 ? Round::kDown : Round::kUp;
}

// Makes the entries of one (page, kv head) that hold keys of a run.
class EntryMaker final {
 public:
  EntryMaker(const AppendMetadataArgs& args, const MetadataLayout& layout, const Run& run,
             int64_t head)
      : args_(args),
        layout_(layout),
        run_(run),
        head_(head),
        keys_(args.keys, run.page, head),
        slab_(args.metadata.Slab(run.page, head)) {}

  void Make() {
    const int64_t first = run_.first / layout_.entry_tokens;
    const int64_t end = CeilDiv(int64_t{run_.end}, int64_t{layout_.entry_tokens});
    for (int64_t entry = first; entry < end; ++entry) {
      switch (args_.metadata.spec.kind) {
        case MetadataKind::kMinMax:
          Bounds(entry);
          break;
        case MetadataKind::kMean:
          Mean(entry);
          break;
        default:
          Copy(entry);
          break;
      }
      for (int vector = 0; vector < layout_.vectors; ++vector) Store(entry, vector);
    }
  }

 private:
  int64_t FirstKey(int64_t entry) const { return entry * layout_.entry_tokens; }
  int64_t EndKey(int64_t entry) const {
    return std::min<int64_t>(FirstKey(entry) + layout_.entry_tokens, run_.end);
  }

  void Bounds(int64_t entry) {
    const int64_t first = FirstKey(entry), end = EndKey(entry);
    for (int64_t c = 0; c < layout_.width; ++c) {
      float low = keys_.at(c, first), high = low;
      int64_t token = first;
      for (; token + kGroup <= end; token += kGroup) {
        float lows[kGroup], highs[kGroup];
        keys_.Read<kGroup>(c, token, lows);
        std::memcpy(highs, lows, sizeof(highs));
        Fold<kGroup / 2>(lows, highs);
        low = std::min(low, lows[0]);
        high = std::max(high, highs[0]);
      }
      for (; token < end; ++token) {
        const float key = keys_.at(c, token);
        low = std::min(low, key);
        high = std::max(high, key);
      }
      values_[0][c] = low;
      values_[1][c] = high;
    }
  }

  // The newest window_tokens keys up to the entry's last, in this page and the one before it.
  void Mean(int64_t entry) {
    const int64_t end = EndKey(entry);
    const int64_t first = end - args_.metadata.spec.window_tokens;
    const int64_t page_tokens = args_.keys.page_tokens;
    const bool reaches = first < 0 && run_.previous_page >= 0;
    const Keys previous(args_.keys, reaches ? run_.previous_page : run_.page, head_);
    const int64_t before = reaches ? std::max<int64_t>(page_tokens + first, 0) : page_tokens;
    const int64_t own = std::max<int64_t>(first, 0);
    const auto count = static_cast<float>(end - own + page_tokens - before);
    for (int64_t c = 0; c < layout_.width; ++c) {
      float sum = 0.0f;
      sum = previous.Add(sum, c, before, page_tokens);
      sum = keys_.Add(sum, c, own, end);
      values_[0][c] = sum / count;
    }
  }

  void Copy(int64_t entry) {
    const MetadataPool& metadata = args_.metadata;
    const bool labels = metadata.spec.kind == MetadataKind::kLabels;
    const int16_t* channels = metadata.channels + (labels ? head_ * metadata.spec.channels : 0);
    for (int64_t i = 0; i < layout_.width; ++i) {
      values_[0][i] = keys_.at(labels ? channels[i] : i, FirstKey(entry));
    }
  }

  void Store(int64_t entry, int vector) {
    const float* values = values_[vector];
    const Round round = RoundingOf(args_.metadata.spec.kind, vector);
    if (layout_.bits == 16) {
      for (int64_t c = 0; c < layout_.width; ++c) {
        const int64_t at = layout_.lanes ? layout_.ChannelAt(c, vector) + 2 * entry
                                         : layout_.VectorAt(entry, vector) + 2 * c;
        StoreBf16(slab_ + at, RoundBf16(values[c], round));
      }
      return;
    }
    const auto [low, high] = std::minmax_element(values, values + layout_.width);
    const Affine affine(*low, *high, layout_.levels());
    StoreBf16(slab_ + layout_.ScaleAt(entry, vector), affine.scale);
    StoreBf16(slab_ + layout_.ZeroAt(entry, vector), affine.zero);
    int32_t codes[kHeadDimMax];
    const int32_t levels = layout_.levels();
    switch (round) {
      case Round::kDown:
        affine.Codes<Round::kDown>(values, layout_.width, levels, codes);
        break;
      case Round::kUp:
        affine.Codes<Round::kUp>(values, layout_.width, levels, codes);
        break;
      default:
        affine.Codes<Round::kNearest>(values, layout_.width, levels, codes);
        break;
    }
    if (layout_.bits == 8 && !layout_.lanes) {
      std::byte* row = slab_ + layout_.VectorAt(entry, vector);
      for (int64_t c = 0; c < layout_.width; ++c) row[c] = static_cast<std::byte>(codes[c]);
      return;
    }
    for (int64_t c = 0; c < layout_.width; ++c) {
      const auto code = static_cast<uint32_t>(codes[c]);
      if (layout_.lanes) {
        StoreCode(slab_ + layout_.ChannelAt(c, vector), entry, code);
      } else {
        StoreCode(slab_ + layout_.VectorAt(entry, vector), c, code);
      }
    }
  }

  void StoreCode(std::byte* row, int64_t index, uint32_t code) const {
    const int64_t bytes = kGroup * layout_.bits / 8;
    const int64_t in_group = index % kGroup;
    std::byte& to = row[index / kGroup * bytes + in_group % bytes];
    const auto shift = static_cast<uint32_t>(in_group / bytes * layout_.bits);
    const uint32_t mask = static_cast<uint32_t>(layout_.levels()) << shift;
    to = static_cast<std::byte>((static_cast<uint32_t>(to) & ~mask) | code << shift);
  }

  const AppendMetadataArgs& args_;
  const MetadataLayout& layout_;
  const Run& run_;
  int64_t head_;
  Keys keys_;
  std::byte* slab_;
  float values_[2][kHeadDimMax] = {};  // set, because clang-tidy cannot see that each is written
};

// Slots of one page that follow each other, skipped rows between them left out, are one run.
Status FindRuns(const AppendMetadataArgs& args, std::vector<Run>* runs) {
  const int64_t page_tokens = args.keys.page_tokens, tokens = args.slots.dim(0);
  const auto* slots = args.slots.as<const int32_t>();
  const int32_t* previous =
      args.previous_pages.empty() ? nullptr : args.previous_pages.as<const int32_t>();
  runs->clear();
  for (int64_t t = 0; t < tokens; ++t) {
    if (slots[t] < 0) continue;
    const auto page = static_cast<int32_t>(slots[t] / page_tokens);
    const auto offset = static_cast<int32_t>(slots[t] % page_tokens);
    const int32_t before = previous == nullptr ? -1 : previous[t];
    if (page >= args.keys.pages || before >= args.keys.pages) {
      return InvalidArgument("AppendMetadata: slots: a page outside the pool");
    }
    if (!runs->empty() && runs->back().page == page) {
      runs->back().first = std::min(runs->back().first, offset);
      runs->back().end = std::max(runs->back().end, offset + 1);
    } else {
      runs->push_back({page, before, offset, offset + 1});
    }
  }
  return OkStatus();
}

}  // namespace

Status AppendMetadataCpu(const AppendMetadataArgs& args, Isa /*isa*/, ThreadPool& pool,
                         AppendMetadataScratch& scratch) {
  const int64_t head_dim = args.keys.head_dim, heads = args.keys.kv_heads;
  if (head_dim % kGroup != 0 || head_dim > kHeadDimMax) {
    return InvalidArgument(
        "AppendMetadata: keys: need a head_dim that is a multiple of 16, at most " +
        std::to_string(kHeadDimMax));
  }
  LACUNA_RETURN_IF_ERROR(FindRuns(args, &scratch.runs));
  const MetadataLayout layout(args.metadata.spec, head_dim, args.keys.page_tokens);
  const auto make = [&](int64_t task, int) {
    const Run& run = scratch.runs[static_cast<size_t>(task / heads)];
    EntryMaker(args, layout, run, task % heads).Make();
  };
  const int64_t tasks = static_cast<int64_t>(scratch.runs.size()) * heads;
  if (args.slots.dim(0) * layout.entry_tokens * heads * head_dim < kParallelElementsMin) {
    for (int64_t task = 0; task < tasks; ++task) make(task, 0);
  } else {
    pool.ParallelFor(tasks, make);
  }
  return OkStatus();
}

}  // namespace lacuna::kernels::cpu
