// AppendMetadata against the keys themselves: bounds hold whatever the precision, other numbers are
// within half a step, entries speak of the keys they have, and nothing else is written.
#include <limits>

#include "tests/ops/select_fixture.h"

namespace lacuna::kernels {
namespace {

struct AppendCase final {
  MetadataSpec spec;
  SelectShape shape;
};

MetadataSpec Spec(MetadataKind kind, MetadataPrecision precision, int sub, int window = 0,
                  int channels = 0) {
  MetadataSpec spec;
  spec.kind = kind;
  spec.precision = precision;
  spec.sub_tokens = sub;
  spec.window_tokens = window > 0 ? window : sub;
  spec.channels = channels;
  return spec;
}

// Every kind, precision and entry that there is, on both page sizes; or a few.
std::vector<AppendCase> Cases() {
  std::vector<AppendCase> cases;
  for (const auto precision : {MetadataPrecision::kBf16, MetadataPrecision::kInt8,
                               MetadataPrecision::kInt4, MetadataPrecision::kInt2}) {
    for (const int page : {16, 64}) {
      for (const int sub : {1, 16, 64}) {
        cases.push_back({Spec(MetadataKind::kMinMax, precision, sub), {2, 1, 48, page}});
        cases.push_back({Spec(MetadataKind::kMean, precision, sub), {1, 1, 64, page}});
        const int window = std::min(64, std::min(sub, page) + page);
        if (window <= sub) continue;
        cases.push_back({Spec(MetadataKind::kMean, precision, sub, window), {2, 1, 32, page}});
      }
      cases.push_back({Spec(MetadataKind::kLabels, precision, 1, 1, 5), {3, 1, 32, page}});
      cases.push_back({Spec(MetadataKind::kLowBit, precision, 1), {2, 1, 128, page}});
    }
  }
  if (!TestsAreBrief()) return cases;
  std::vector<AppendCase> few;
  for (size_t i = 0; i < cases.size(); i += 7) few.push_back(cases[i]);
  return few;
}

class AppendMetadataTest : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    auto backend = MakeTestBackend(GetParam());
    if (SkipsOrFails(backend)) return;
    backend_ = std::move(backend).value();
  }

  // All entries of the first `tokens` tokens of a sequence.
  void ExpectEntries(SelectWorld& world, const AppendCase& one, int sequence, int tokens) {
    const int page_tokens = one.shape.page_tokens;
    const int sub = std::min(one.spec.sub_tokens, page_tokens);
    for (int kv = 0; kv < one.shape.kv_heads; ++kv) {
      for (int first = 0; first < tokens; first += sub) {
        const int end = std::min(first + sub, tokens);
        const int page = world.page(sequence, first / page_tokens);
        const int entry = first % page_tokens / sub;
        const std::string where = "kind " + std::to_string(static_cast<int>(one.spec.kind)) + "/" +
                                  std::to_string(static_cast<int>(one.spec.precision)) + " sub " +
                                  std::to_string(sub) + " page " + std::to_string(page_tokens) +
                                  " of " + std::to_string(tokens) + ", head " + std::to_string(kv) +
                                  ", entry from " + std::to_string(first);
        for (int vector = 0; vector < (one.spec.kind == MetadataKind::kMinMax ? 2 : 1); ++vector) {
          std::vector<double> want = Wanted(world, one, sequence, kv, first, end, vector);
          ExpectVector(world, one.spec, page, kv, entry, vector, want, where);
          if (HasFatalFailure()) return;
        }
      }
    }
  }

 private:
  std::vector<double> Wanted(SelectWorld& world, const AppendCase& one, int sequence, int kv,
                             int first, int end, int vector) {
    const bool labels = one.spec.kind == MetadataKind::kLabels;
    std::vector<double> want;
    for (int i = 0; i < (labels ? one.spec.channels : one.shape.head_dim); ++i) {
      const int c =
          labels ? world.channels(one.spec)[static_cast<size_t>(kv * one.spec.channels + i)] : i;
      const auto key = [&](int t) { return double{world.key(sequence, t, kv)[c]}; };
      double value = key(end - 1);
      if (one.spec.kind == MetadataKind::kMean) {
        // A window reaches into one page before its own.
        const int page = one.shape.page_tokens, own = first / page * page;
        const int from = std::max({end - one.spec.window_tokens, own - page, 0});
        value = 0;
        for (int t = from; t < end; ++t) value += key(t) / (end - from);
      } else if (one.spec.kind == MetadataKind::kMinMax) {
        for (int t = first; t < end; ++t) {
          value = vector == 0 ? std::min(value, key(t)) : std::max(value, key(t));
        }
      }
      want.push_back(value);
    }
    return want;
  }

  void ExpectVector(const SelectWorld& world, const MetadataSpec& spec, int page, int kv, int entry,
                    int vector, const std::vector<double>& want, const std::string& where) {
    const auto [low, high] = std::ranges::minmax(want);
    constexpr int kLevels[] = {1, 255, 15, 3};
    const bool bound = spec.kind == MetadataKind::kMinMax;
    for (size_t c = 0; c < want.size(); ++c) {
      const double got = world.Stored(spec, page, kv, entry, vector, static_cast<int64_t>(c));
      // One bf16 unit; or one step of a scale and zero that are themselves rounded.
      const double unit = std::abs(want[c]) * 0x1p-7;
      const double step = ((high - low) * 1.01 + std::max(std::abs(low), std::abs(high)) * 0x1p-7) /
                          kLevels[static_cast<int>(spec.precision)];
      const double whole = spec.precision == MetadataPrecision::kBf16 ? unit : step;
      const double slack = 1e-6 * (1.0 + std::abs(want[c]));
      if (bound) {
        ASSERT_LE(vector == 0 ? got : want[c], (vector == 0 ? want[c] : got) + 1e-12) << where;
        ASSERT_LE(std::abs(got - want[c]), whole + slack) << where << ", channel " << c;
      } else {
        ASSERT_LE(std::abs(got - want[c]), whole * 0.51 + slack) << where << ", channel " << c;
      }
    }
  }

 protected:
  std::shared_ptr<Backend> backend_;
};

TEST_P(AppendMetadataTest, EveryKindAtOnceAndStepByStep) {
  for (const AppendCase& one : Cases()) {
    SelectWorld world(backend_, one.shape, GetParam().precision, {150, 65, 1}, 17);
    world.AddMetadata(one.spec);
    int before = 0;
    for (const int tokens : {1, 2, 15, 16, 17, 63, 64, 65, 66, 128, 150}) {
      world.AppendTo(0, tokens);
      ASSERT_NO_FATAL_FAILURE(ExpectEntries(world, one, 0, tokens)) << "after " << before;
      before = tokens;
    }
    world.AppendTo(1, 65);
    world.AppendTo(2, 1);
    ASSERT_NO_FATAL_FAILURE(ExpectEntries(world, one, 1, 65));
    ASSERT_NO_FATAL_FAILURE(ExpectEntries(world, one, 2, 1));
    ASSERT_NO_FATAL_FAILURE(ExpectEntries(world, one, 0, 150));
  }
}

// The same bytes whether tokens come at once or one by one, and on several threads.
TEST_P(AppendMetadataTest, PromptsEqualSteps) {
  for (const AppendCase& one : Cases()) {
    const int tokens = 700;
    const auto bytes = [&](int step) {
      SelectWorld world(backend_, one.shape, GetParam().precision, {tokens}, 23);
      world.AddMetadata(one.spec);
      for (int t = step; t < tokens + step; t += step) world.AppendTo(0, std::min(t, tokens));
      const TestMemory& memory = world.stored(one.spec);
      return std::vector<uint8_t>(memory.read(), memory.read() + memory.size());
    };
    const int step = one.shape.page_tokens == 16 ? 7 : 1;
    const bool long_steps = GetParam().emulated() || TestsAreBrief();
    ASSERT_EQ(bytes(tokens), bytes(long_steps ? 90 + step : step));
  }
}

TEST_P(AppendMetadataTest, SkippedRowsAndOtherPagesAreLeftAlone) {
  const AppendCase one{Spec(MetadataKind::kMinMax, MetadataPrecision::kInt8, 16), {2, 1, 32, 64}};
  SelectWorld world(backend_, one.shape, GetParam().precision, {64, 64}, 29);
  world.AddMetadata(one.spec);
  world.AppendTo(0, 40);
  const int64_t slab_bytes = world.metadata(one.spec).SlabBytes();
  const auto slabs = [&](int sequence) {
    const uint8_t* from =
        world.stored(one.spec).read() + int64_t{world.page(sequence, 0)} * 2 * slab_bytes;
    return std::vector<uint8_t>(from, from + 2 * slab_bytes);
  };
  EXPECT_TRUE(std::ranges::all_of(slabs(1), [](uint8_t byte) { return byte == 0xff; }));
  const std::vector<uint8_t> before = slabs(0);
  const auto append = [&](const std::vector<int32_t>& tokens) {
    TestArray<int32_t> slots(*backend_, tokens);
    Stream stream;
    const TensorView view(slots.device(), DType::kI32, {static_cast<int64_t>(tokens.size())});
    return AppendMetadata(*backend_, {view, {}, world.pool(), world.metadata(one.spec)}, stream);
  };
  const int32_t first = world.page(0, 0) * 64;
  ASSERT_EQ(append({-1, -1}), OkStatus());
  ASSERT_EQ(append({-1, first + 8, -1, first + 37, -1, first + 39, -1}), OkStatus());
  EXPECT_EQ(slabs(0), before);
  EXPECT_TRUE(std::ranges::all_of(slabs(1), [](uint8_t byte) { return byte == 0xff; }));
  // A page outside the pool is refused, or skipped where slots are known to the device alone.
  const Status outside = append({static_cast<int32_t>(world.pool().pages * 64)});
  const bool on_host = backend_->device().kind() == DeviceKind::kCpu;
  EXPECT_EQ(outside.code(), on_host ? StatusCode::kInvalidArgument : StatusCode::kOk);
  EXPECT_EQ(slabs(0), before);
}

// Keys so far apart, or so equal, that scales run into their limits.
TEST_P(AppendMetadataTest, ExtremeKeys) {
  for (const float size : {0.0f, 1e-30f, 1e30f, std::numeric_limits<float>::infinity()}) {
    for (const auto precision : {MetadataPrecision::kBf16, MetadataPrecision::kInt8}) {
      const SelectShape shape{1, 1, 16, 16};
      SelectWorld world(backend_, shape, GetParam().precision, {16}, 31);
      const MetadataSpec spec = Spec(MetadataKind::kMinMax, precision, 16);
      world.AddMetadata(spec);
      world.AppendTo(0, 16);
      TestTensor k({backend_.get(), true}, GetParam().precision, 16, 16);
      std::vector<int32_t> slots;
      for (int t = 0; t < 16; ++t) {
        slots.push_back(world.page(0, 0) * 16 + t);
        for (int c = 0; c < 16; ++c) k.set(t, c, size * static_cast<float>((t * 5 + c) % 7 - 3));
      }
      Stream stream;
      TestArray<int32_t> device_slots(*backend_, slots);
      const TensorView view(device_slots.device(), DType::kI32, {16}), rows = k.view3(1);
      ASSERT_EQ(AppendKv(*backend_, {rows, rows, view, world.pool()}, stream), OkStatus());
      ASSERT_EQ(AppendMetadata(*backend_, {view, {}, world.pool(), world.metadata(spec)}, stream),
                OkStatus());
      const bool finite = std::isfinite(Rounded(3 * size, GetParam().precision));
      for (int c = 0; c < 16 && finite; ++c) {
        double low = k.at(0, c), high = low;
        for (int t = 0; t < 16; ++t) {
          low = std::min(low, double{k.at(t, c)});
          high = std::max(high, double{k.at(t, c)});
        }
        EXPECT_LE(world.Stored(spec, world.page(0, 0), 0, 0, 0, c), low) << size;
        EXPECT_GE(world.Stored(spec, world.page(0, 0), 0, 0, 1, c), high) << size;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, AppendMetadataTest, testing::ValuesIn(BackendCases(true)),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(Emulated, AppendMetadataTest, testing::ValuesIn(EmulatedCases(true)),
                         CaseName);

}  // namespace
}  // namespace lacuna::kernels
