// Checks paged decode attention on this GPU against double precision on the host: odd lengths,
// groups, head sizes, windows, sinks, caps, lists per head, token masks, shapes per row and head,
// dropped keys, empty rows; that a run repeats its bits, under a graph too; that deterministic bits
// do not depend on the batch; and that full masks and shapes as the parameters have change no bit.
//
// decode_check [part of a name]: prints one line per failing case, and the worst errors; exit
// status 1 on a failure.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/gpu/device_memory.h"
#include "kernels/core/dtype.h"
#include "kernels/cuda/attend/attend_decode.h"
#include "kernels/cuda/kv_layout.cuh"

namespace lacuna::bench {
namespace {

using kernels::AttendDecodeArgs;
using kernels::cuda::DecodeWorkspaceBytes;
using kernels::cuda::DeviceTraits;

struct Case final {
  std::string name;
  std::vector<int> lengths;  // tokens of each row's sequence; 0: a padded row
  int q_heads = 8;
  int kv_heads = 2;
  int head_dim = 128;
  int page_tokens = 64;
  DType dtype = DType::kBF16;
  bool lists_per_head = false;
  double keep = 1.0;         // share of the pages that a list holds
  int unit_tokens = 0;       // masks list half of the runs of so many tokens; 0: no masks
  bool neutral = false;      // full masks, shapes as below, nothing dropped
  bool shapes = false;       // per row and kv head
  bool dropped = false;      // dropped_lse
  bool from_middle = false;  // odd rows ask from the middle of their sequence
  int window_tokens = 0;
  int sink_tokens = 0;
  float softcap = 0.0f;
  bool sink_logits = false;
  float q_scale = 2.0f;
  bool geforce = false;  // blocks have its shared memory
};

uint16_t ToBits(float value, DType dtype) {
  return dtype == DType::kF16 ? ToF16(value).bits : ToBF16(value).bits;
}
float FromBits(uint16_t bits, DType dtype) {
  return dtype == DType::kF16 ? ToFloat(F16{bits}) : ToFloat(BF16{bits});
}

class World final {
 public:
  World(const Case& test, uint32_t seed) : test_(test), random_(seed) {
    MakePool();
    MakeLists();
    q_ = RandomBits(test.lengths.size() * Heads() * Dim(), test.q_scale);
    if (test.sink_logits) {
      std::normal_distribution<float> normal(0.0f, 2.0f);
      for (size_t i = 0; i < Heads(); ++i) sinks_.push_back(normal(random_));
    }
  }

  size_t Rows() const { return test_.lengths.size(); }
  size_t Heads() const { return static_cast<size_t>(test_.q_heads); }
  size_t Dim() const { return static_cast<size_t>(test_.head_dim); }
  size_t ListsPerRow() const {
    return test_.lists_per_head ? static_cast<size_t>(test_.kv_heads) : 1;
  }

  // out [rows, heads, dim], then lse [rows, heads], in double precision.
  std::vector<double> Reference() const;

  const Case& test_;
  std::mt19937 random_;
  std::vector<uint16_t> pool_, q_;
  int64_t pool_pages_ = 0;
  std::vector<std::vector<float>> k_, v_;  // [row][token, kv_head, dim]
  std::vector<std::vector<int>> tables_;   // [row][logical page]
  std::vector<int32_t> positions_, pages_, logical_;
  std::vector<int64_t> begins_, ends_;
  std::vector<uint64_t> masks_;  // of pages_, or empty
  std::vector<float> sinks_, dropped_;
  std::vector<kernels::StaticShape> shapes_;  // [row, kv_head], or empty

 private:
  bool Masked() const { return test_.unit_tokens > 0 || test_.neutral; }
  uint64_t RandomMask();
  std::vector<uint16_t> RandomBits(size_t count, float spread) {
    std::normal_distribution<float> normal(0.0f, spread);
    std::vector<uint16_t> bits(count);
    for (uint16_t& b : bits) b = ToBits(normal(random_), test_.dtype);
    return bits;
  }
  void MakePool();
  void MakeLists();
};

// Free pages are full of NaN; used ones hold zeros behind the last token, as AppendKv leaves them.
void World::MakePool() {
  const int tokens = test_.page_tokens;
  int64_t used = 0;
  for (int length : test_.lengths) used += (length + tokens - 1) / tokens;
  pool_pages_ = used + used / 2 + 3;
  std::vector<int> order(static_cast<size_t>(pool_pages_));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_);
  const size_t half = static_cast<size_t>(tokens) * Dim();
  const auto kv_heads = static_cast<size_t>(test_.kv_heads);
  pool_.assign(static_cast<size_t>(pool_pages_) * kv_heads * 2 * half, 0x7fff);
  size_t next = 0;
  for (int length : test_.lengths) {
    const size_t count = static_cast<size_t>(length) * kv_heads * Dim();
    const std::vector<uint16_t> k = RandomBits(count, 1.0f);
    const std::vector<uint16_t> v = RandomBits(count, 1.0f);
    auto& table = tables_.emplace_back();
    for (int first = 0; first < length; first += tokens) {
      table.push_back(order[next++]);
      uint16_t* page = pool_.data() + static_cast<size_t>(table.back()) * kv_heads * 2 * half;
      std::fill(page, page + kv_heads * 2 * half, uint16_t{0});
      for (size_t i = 0;
           i < std::min<size_t>(static_cast<size_t>(length - first), static_cast<size_t>(tokens)) *
                   kv_heads * Dim();
           ++i) {
        const size_t token = i / (kv_heads * Dim());
        const size_t head = i / Dim() % kv_heads;
        const auto element = static_cast<size_t>(kernels::cuda::KvElement(
            static_cast<int>(token), static_cast<int>(i % Dim()), tokens, test_.head_dim));
        const size_t from = static_cast<size_t>(first) * kv_heads * Dim() + i;
        page[head * 2 * half + element] = k[from];
        page[head * 2 * half + half + element] = v[from];
      }
    }
    for (auto* values : {&k_, &v_}) {
      auto& to = values->emplace_back();
      for (uint16_t bits : values == &k_ ? k : v) to.push_back(FromBits(bits, test_.dtype));
    }
  }
}

// Runs of unit_tokens, each listed or not; never nothing.
uint64_t World::RandomMask() {
  const uint64_t page =
      test_.page_tokens == 64 ? ~uint64_t{0} : (uint64_t{1} << test_.page_tokens) - 1;
  if (test_.unit_tokens == 0) return page;
  uint64_t mask = 0;
  while (mask == 0) {
    for (int token = 0; token < test_.page_tokens; ++token) {
      const bool starts = token % test_.unit_tokens == 0;
      const bool listed = starts ? random_() % 2 == 0 : (mask >> (token - 1) & 1) != 0;
      if (listed) mask |= uint64_t{1} << token;
    }
  }
  return random_() % 4 == 0 ? page : mask;
}

void World::MakeLists() {
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  for (size_t row = 0; row < Rows(); ++row) {
    const int length = test_.lengths[row];
    positions_.push_back(test_.from_middle && row % 2 == 1 ? length / 2 : length - 1);
    for (size_t list = 0; list < ListsPerRow(); ++list) {
      begins_.push_back(static_cast<int64_t>(pages_.size()));
      for (size_t page = 0; page < tables_[row].size(); ++page) {
        if (uniform(random_) >= test_.keep) continue;
        pages_.push_back(tables_[row][page]);
        logical_.push_back(static_cast<int32_t>(page));
        if (Masked()) masks_.push_back(RandomMask());
      }
      ends_.push_back(static_cast<int64_t>(pages_.size()));
      pages_.push_back(-1);  // a gap between the lists, never read
      logical_.push_back(-1);
      if (Masked()) masks_.push_back(0);
    }
    for (int head = 0; head < test_.kv_heads; ++head) {
      const kernels::StaticShape shapes[] = {{0, 0}, {70, 5}, {1, 0}, {130, 64}, {333, 20}};
      if (test_.shapes) shapes_.push_back(shapes[(static_cast<int>(row) + 2 * head) % 5]);
      if (test_.neutral) shapes_.push_back({test_.window_tokens, test_.sink_tokens});
    }
    for (size_t head = 0; head < Heads(); ++head) {
      if (test_.neutral) dropped_.push_back(-INFINITY);
      if (test_.dropped) {
        dropped_.push_back(head % 3 == 0 ? -INFINITY : static_cast<float>(random_() % 12) - 6.0f);
      }
    }
  }
}

std::vector<double> World::Reference() const {
  const size_t dim = Dim();
  const size_t group = Heads() / static_cast<size_t>(test_.kv_heads);
  const auto kv_heads = static_cast<size_t>(test_.kv_heads);
  std::vector<double> out(Rows() * Heads() * dim, 0.0);
  std::vector<double> lse(Rows() * Heads(), -INFINITY);
  for (size_t row = 0; row < Rows(); ++row) {
    for (size_t head = 0; head < Heads(); ++head) {
      const size_t kv = head / group;
      const size_t list = row * ListsPerRow() + (test_.lists_per_head ? kv : 0);
      std::vector<double> q;
      for (size_t d = 0; d < dim; ++d) {
        q.push_back(double{FromBits(q_[(row * Heads() + head) * dim + d], test_.dtype)});
      }
      const kernels::StaticShape shape =
          shapes_.empty() ? kernels::StaticShape{test_.window_tokens, test_.sink_tokens}
                          : shapes_[row * kv_heads + kv];
      std::vector<int> keys;
      std::vector<double> scores;
      for (int64_t i = begins_[list]; i < ends_[list]; ++i) {
        const int first = logical_[static_cast<size_t>(i)] * test_.page_tokens;
        for (int key = first; key < first + test_.page_tokens; ++key) {
          const int position = positions_[row];
          if (key > position || (shape.window_tokens > 0 && key <= position - shape.window_tokens &&
                                 key >= shape.sink_tokens)) {
            continue;
          }
          if (Masked() && (masks_[static_cast<size_t>(i)] >> (key - first) & 1) == 0) continue;
          const float* k = k_[row].data() + (static_cast<size_t>(key) * kv_heads + kv) * dim;
          double score = 0.0;
          for (size_t d = 0; d < dim; ++d) score += q[d] * k[d];
          score /= std::sqrt(static_cast<double>(dim));
          if (test_.softcap > 0.0f) score = test_.softcap * std::tanh(score / test_.softcap);
          keys.push_back(key);
          scores.push_back(score);
        }
      }
      if (keys.empty()) continue;
      const double top = *std::max_element(scores.begin(), scores.end());
      double sum = 0.0;
      for (double score : scores) sum += std::exp(score - top);
      lse[row * Heads() + head] = top + std::log(sum);
      double below = sum + (sinks_.empty() ? 0.0 : std::exp(sinks_[head] - top));
      if (!dropped_.empty()) below += std::exp(double{dropped_[row * Heads() + head]} - top);
      for (size_t i = 0; i < keys.size(); ++i) {
        const double weight = std::exp(scores[i] - top) / below;
        const float* v = v_[row].data() + (static_cast<size_t>(keys[i]) * kv_heads + kv) * dim;
        for (size_t d = 0; d < dim; ++d) out[(row * Heads() + head) * dim + d] += weight * v[d];
      }
    }
  }
  out.insert(out.end(), lse.begin(), lse.end());
  return out;
}

DeviceTraits TraitsFor(const Case& test) {
  DeviceTraits traits = TraitsOfDevice();
  if (test.geforce) traits.shared_bytes_max = kGeForceSharedBytes;
  return traits;
}

// The world on the device, and the op on it.
class OnDevice final {
 public:
  explicit OnDevice(const World& world)
      : world_(world),
        traits_(TraitsFor(world.test_)),
        pool_(world.pool_),
        q_(world.q_),
        out_(world.q_.size()),
        lse_(world.Rows() * world.Heads()),
        sinks_(world.sinks_),
        positions_(world.positions_),
        pages_(world.pages_),
        logical_(world.logical_),
        begins_(world.begins_),
        ends_(world.ends_),
        masks_(world.masks_),
        shapes_(world.shapes_),
        dropped_(world.dropped_),
        workspace_(static_cast<size_t>(
            DecodeWorkspaceBytes(traits_, static_cast<int64_t>(world.Rows()) + 3,
                                 world.test_.q_heads, world.test_.head_dim))) {
    Check(cudaMemset(workspace_.data(), 0, workspace_.size()), "cudaMemset");
    Check(cudaStreamCreate(&stream_), "cudaStreamCreate");
  }
  ~OnDevice() { cudaStreamDestroy(stream_); }

  struct Result final {
    std::vector<uint16_t> out;
    std::vector<float> lse;
    bool operator==(const Result&) const = default;
  };

  // Rows [first, first + count) in one call; results of the others are poison.
  Result Run(size_t first, size_t count, bool deterministic, bool graph) {
    Check(cudaMemset(out_.data(), 0xff, out_.size() * 2), "cudaMemset");
    Check(cudaMemset(lse_.data(), 0xff, lse_.size() * 4), "cudaMemset");
    Check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    cudaGraph_t captured = nullptr;
    cudaGraphExec_t exec = nullptr;
    if (graph) {
      Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    }
    Check(kernels::cuda::AttendDecodePaged(
        Args(first, count), traits_, deterministic,
        {workspace_.data(), static_cast<int64_t>(workspace_.size())}, stream_));
    if (graph) {
      Check(cudaStreamEndCapture(stream_, &captured), "capture");
      Check(cudaGraphInstantiate(&exec, captured, 0), "cudaGraphInstantiate");
      for (int i = 0; i < 3; ++i) Check(cudaGraphLaunch(exec, stream_), "cudaGraphLaunch");
    }
    Check(cudaStreamSynchronize(stream_), "decode");
    if (graph) {
      cudaGraphExecDestroy(exec);
      cudaGraphDestroy(captured);
    }
    return {out_.Download(), lse_.Download()};
  }

  // Whether the counters at the end of the workspace are zero again.
  bool CountersZero() const {
    const std::vector<std::byte> bytes = workspace_.Download();
    const size_t tail = world_.Rows() * world_.Heads() * 4;
    return std::all_of(bytes.end() - static_cast<std::ptrdiff_t>(tail), bytes.end(),
                       [](std::byte b) { return b == std::byte{0}; });
  }

 private:
  AttendDecodeArgs Args(size_t first, size_t count) {
    const Case& test = world_.test_;
    const auto rows = static_cast<int64_t>(count);
    const size_t elements = first * world_.Heads() * world_.Dim();
    const size_t list = first * world_.ListsPerRow();
    AttendDecodeArgs args;
    args.q = TensorView(q_.data() + elements, test.dtype, {rows, test.q_heads, test.head_dim});
    args.out = TensorView(out_.data() + elements, test.dtype, {rows, test.q_heads, test.head_dim});
    args.lse = TensorView(lse_.data() + first * world_.Heads(), DType::kF32, {rows, test.q_heads});
    args.pool = {pool_.data(),  test.dtype,    world_.pool_pages_,
                 test.kv_heads, test.head_dim, test.page_tokens};
    args.positions = TensorView(positions_.data() + first, DType::kI32, {rows});
    args.lists_per_row = static_cast<int>(world_.ListsPerRow());
    args.lists = {pages_.data(), logical_.data(), begins_.data() + list, ends_.data() + list,
                  rows * args.lists_per_row};
    args.params.scale = 1.0f / std::sqrt(static_cast<float>(test.head_dim));
    args.params.softcap = test.softcap;
    args.params.sink_logits = test.sink_logits ? sinks_.data() : nullptr;
    args.params.shape = {test.window_tokens, test.sink_tokens};
    if (masks_.size() > 0) args.lists.masks = masks_.data();
    if (shapes_.size() > 0)
      args.shapes = shapes_.data() + first * static_cast<size_t>(test.kv_heads);
    if (dropped_.size() > 0) {
      args.dropped_lse =
          TensorView(dropped_.data() + first * world_.Heads(), DType::kF32, {rows, test.q_heads});
    }
    return args;
  }

  const World& world_;
  const DeviceTraits traits_;
  DeviceVector<uint16_t> pool_, q_, out_;
  DeviceVector<float> lse_, sinks_;
  DeviceVector<int32_t> positions_, pages_, logical_;
  DeviceVector<int64_t> begins_, ends_;
  DeviceVector<uint64_t> masks_;
  DeviceVector<kernels::StaticShape> shapes_;
  DeviceVector<float> dropped_;
  DeviceVector<std::byte> workspace_;
  cudaStream_t stream_ = nullptr;
};

struct Errors final {
  double out = 0.0;        // largest difference
  double out_share = 0.0;  // norm of the differences over the norm
  double lse = 0.0;
};

Errors Compare(const World& world, const OnDevice::Result& result,
               const std::vector<double>& expected) {
  Errors errors;
  double norm = 0.0;
  double difference = 0.0;
  for (size_t i = 0; i < result.out.size(); ++i) {
    const double error = std::abs(FromBits(result.out[i], world.test_.dtype) - expected[i]);
    errors.out = std::isnan(error) ? INFINITY : std::max(errors.out, error);
    norm += expected[i] * expected[i];
    difference += error * error;
  }
  errors.out_share = norm > 0.0 ? std::sqrt(difference / norm) : std::sqrt(difference);
  for (size_t i = 0; i < result.lse.size(); ++i) {
    const double want = expected[result.out.size() + i];
    const double got = double{result.lse[i]};
    const double error = std::isinf(want) && want == got ? 0.0 : std::abs(got - want);
    errors.lse = std::isnan(error) ? INFINITY : std::max(errors.lse, error);
  }
  return errors;
}

bool SameRow(const World& world, const OnDevice::Result& a, const OnDevice::Result& b, size_t row) {
  const size_t out = world.Heads() * world.Dim();
  return std::memcmp(&a.out[row * out], &b.out[row * out], out * 2) == 0 &&
         std::memcmp(&a.lse[row * world.Heads()], &b.lse[row * world.Heads()], world.Heads() * 4) ==
             0;
}

// Whether full masks and the like leave the bits as they are.
bool NeutralChangesNothing(const Case& test, uint32_t seed) {
  Case neutral = test;
  neutral.neutral = true;
  const World plain_world(test, seed), neutral_world(neutral, seed);
  OnDevice plain(plain_world), same(neutral_world);
  for (const bool deterministic : {false, true}) {
    if (!(plain.Run(0, plain_world.Rows(), deterministic, false) ==
          same.Run(0, plain_world.Rows(), deterministic, false))) {
      return false;
    }
  }
  return true;
}

// True when all is well; adds to `worst`.
bool RunCase(const Case& test, uint32_t seed, Errors* worst) {
  const World world(test, seed);
  const std::vector<double> expected = world.Reference();
  OnDevice device(world);
  std::string wrong;
  for (const bool deterministic : {false, true}) {
    const OnDevice::Result first = device.Run(0, world.Rows(), deterministic, false);
    const Errors errors = Compare(world, first, expected);
    worst->out = std::max(worst->out, errors.out);
    worst->out_share = std::max(worst->out_share, errors.out_share);
    worst->lse = std::max(worst->lse, errors.lse);
    if (errors.out > 2e-2 || errors.out_share > 6e-3 || errors.lse > 1e-3) {
      wrong += " values(out " + std::to_string(errors.out) + " " +
               std::to_string(errors.out_share) + " lse " + std::to_string(errors.lse) + ")";
    }
    if (!(device.Run(0, world.Rows(), deterministic, false) == first)) wrong += " repeat";
    if (!(device.Run(0, world.Rows(), deterministic, true) == first)) wrong += " graph";
    for (size_t row = 0; deterministic && row < world.Rows() && row < 12; ++row) {
      if (!SameRow(world, device.Run(row, 1, true, false), first, row)) {
        wrong += " alone(" + std::to_string(row) + ")";
      }
    }
    if (!device.CountersZero()) wrong += " counters";
    if (!wrong.empty()) wrong += deterministic ? " [deterministic]" : " [default]";
  }
  const bool plain = test.unit_tokens == 0 && !test.shapes && !test.dropped;
  if (plain && !NeutralChangesNothing(test, seed)) wrong += " neutral fields";
  if (!wrong.empty()) std::printf("FAIL %s:%s\n", test.name.c_str(), wrong.c_str());
  return wrong.empty();
}

std::vector<Case> Cases() {
  const std::vector<int> odd = {1, 2, 15, 16, 17, 63, 64, 65, 0, 130, 700, 1023};
  std::vector<Case> cases;
  for (int page_tokens : {64, 16}) {
    const std::string page = " page " + std::to_string(page_tokens);
    for (DType dtype : {DType::kBF16, DType::kF16}) {
      for (int head_dim : {32, 64, 80, 96, 128, 256}) {
        cases.push_back({.name = "dim " + std::to_string(head_dim) + page,
                         .lengths = odd,
                         .head_dim = head_dim,
                         .page_tokens = page_tokens,
                         .dtype = dtype});
      }
    }
    for (int group : {1, 2, 3, 4, 6, 7, 8, 9, 12, 16, 17, 40}) {
      for (int head_dim : {64, 128, 256}) {
        cases.push_back({.name = "group " + std::to_string(group) + page,
                         .lengths = {900, 40, 3000},
                         .q_heads = 2 * group,
                         .head_dim = head_dim,
                         .page_tokens = page_tokens});
      }
    }
    for (int group : {4, 16}) {
      const int q_heads = 4 * group;
      cases.push_back({.name = "lists per head" + page,
                       .lengths = {3000, 1, 700, 0, 64, 5000},
                       .q_heads = q_heads,
                       .kv_heads = 4,
                       .page_tokens = page_tokens,
                       .lists_per_head = true,
                       .keep = 0.4,
                       .from_middle = true});
      cases.push_back({.name = "window" + page,
                       .lengths = {3000, 1, 700, 64, 1000, 300},
                       .q_heads = q_heads,
                       .kv_heads = 4,
                       .page_tokens = page_tokens,
                       .from_middle = true,
                       .window_tokens = 100});
      cases.push_back({.name = "window and sinks" + page,
                       .lengths = {3000, 1, 700, 64, 1000, 90},
                       .q_heads = q_heads,
                       .kv_heads = 4,
                       .page_tokens = page_tokens,
                       .lists_per_head = true,
                       .keep = 0.8,
                       .window_tokens = 257,
                       .sink_tokens = 5,
                       .sink_logits = true});
      cases.push_back({.name = "window out of the list" + page,
                       .lengths = {3000, 2000, 700},
                       .q_heads = q_heads,
                       .kv_heads = 4,
                       .page_tokens = page_tokens,
                       .keep = 0.05,
                       .window_tokens = 64});
      cases.push_back({.name = "softcap, sink logits" + page,
                       .lengths = {3000, 1, 700, 64},
                       .q_heads = q_heads,
                       .kv_heads = 4,
                       .head_dim = 256,
                       .page_tokens = page_tokens,
                       .softcap = 20.0f,
                       .sink_logits = true,
                       .q_scale = 6.0f});
    }
    for (int unit_tokens : {1, 16}) {
      for (int head_dim : {32, 80, 96, 128, 256}) {
        cases.push_back({.name = "masks of " + std::to_string(unit_tokens) + page,
                         .lengths = {3000, 1, 700, 0, 64, 5000},
                         .head_dim = head_dim,
                         .page_tokens = page_tokens,
                         .lists_per_head = head_dim != 128,
                         .keep = 0.6,
                         .unit_tokens = unit_tokens,
                         .from_middle = true});
      }
      cases.push_back({.name = "masks of " + std::to_string(unit_tokens) + " and the rest" + page,
                       .lengths = {3000, 1, 700, 64, 5000, 2111},
                       .q_heads = 32,
                       .kv_heads = 8,
                       .page_tokens = page_tokens,
                       .lists_per_head = true,
                       .keep = 0.6,
                       .unit_tokens = unit_tokens,
                       .shapes = true,
                       .dropped = true,
                       .from_middle = true,
                       .sink_logits = true});
    }
    cases.push_back({.name = "shapes and dropped keys" + page,
                     .lengths = {3000, 1, 700, 64, 5000, 2111},
                     .q_heads = 40,
                     .kv_heads = 2,
                     .page_tokens = page_tokens,
                     .shapes = true,
                     .dropped = true,
                     .from_middle = true});
    cases.push_back({.name = "sharp scores" + page,
                     .lengths = {3000, 500},
                     .page_tokens = page_tokens,
                     .dtype = DType::kF16,
                     .q_scale = 30.0f});
    cases.push_back({.name = "one long among short" + page,
                     .lengths = {20000, 10, 64, 300, 1000, 5, 0, 0, 1, 4000},
                     .page_tokens = page_tokens});
  }
  std::vector<int> many;
  for (int i = 0; i < 300; ++i) many.push_back(i % 7 == 0 ? 0 : (i * 37) % 200);
  cases.push_back(
      {.name = "many rows", .lengths = many, .head_dim = 64, .lists_per_head = true, .keep = 0.9});
  cases.push_back({.name = "many rows, shared lists", .lengths = many, .head_dim = 64});
  cases.push_back({.name = "8b shape", .lengths = {4096, 300, 9000}, .q_heads = 32, .kv_heads = 8});
  cases.push_back({.name = "only padding", .lengths = {0, 0, 0}});
  for (size_t i = 0, end = cases.size(); i < end; ++i) {
    if (cases[i].head_dim != 256) continue;
    Case geforce = cases[i];
    geforce.name += " on a GeForce";
    geforce.geforce = true;
    cases.push_back(geforce);
  }
  return cases;
}

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) {
  using namespace lacuna::bench;
  int failed = 0;
  uint32_t seed = 1;
  Errors worst;
  auto cases = Cases();
  if (argc > 1) {
    std::erase_if(cases,
                  [&](const auto& test) { return test.name.find(argv[1]) == std::string::npos; });
  }
  for (const auto& test : cases) failed += RunCase(test, seed++, &worst) ? 0 : 1;
  std::printf("%zu cases, %d failed; worst: out %.2e, share %.2e, lse %.2e\n", cases.size(), failed,
              worst.out, worst.out_share, worst.lse);
  return failed == 0 ? 0 : 1;
}
