#include "tests/ops/test_backend.h"

#include <cstdlib>
#include <map>
#include <string_view>
#include <tuple>

#include "kernels/cpu/isa.h"
#include "kernels/make_backend.h"
#include "tests/cuda_emulator/emulated_backend.h"

namespace lacuna::kernels {
namespace {

// Enough for every test.
constexpr WorkspaceLimits kLimits{.step_tokens = 4096,
                                  .rows = 512,
                                  .sequences = 64,
                                  .q_heads = 128,
                                  .head_dim = 256,
                                  .context_tokens = 1 << 14,
                                  .logit_rows = 64,
                                  .vocab = 1 << 18};

Result<std::unique_ptr<Backend>> Open(const std::string& isa, const BackendOptions& options) {
  if (isa == "emulated") return MakeEmulatedBackend(options);
  return MakeBackend(isa == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu, options);
}

Result<std::shared_ptr<Backend>> Make(const std::string& isa, const BackendOptions& options) {
  LACUNA_ASSIGN_OR_RETURN(std::shared_ptr<Backend> backend, Open(isa, options));
  LACUNA_RETURN_IF_ERROR(backend->ReserveWorkspace(kLimits));
  return backend;
}

Result<std::shared_ptr<Backend>> SharedBackend(const BackendCase& which, bool deterministic) {
  using Made = std::map<std::tuple<std::string, DType, bool>, Result<std::shared_ptr<Backend>>>;
  static Made& made = *new Made();  // the driver may be gone when static objects die
  const auto key = std::tuple(which.isa, which.precision, deterministic);
  auto found = made.find(key);
  if (found == made.end()) {
    BackendOptions options;
    options.precision = which.precision;
    options.deterministic = deterministic;
    found = made.emplace(key, Make(which.isa, options)).first;
  }
  return found->second;
}

// A device's: on and off the alignment of vectors.
void AddDeviceCases(const std::string& isa, bool aligned_only, const std::vector<DType>& precisions,
                    std::vector<BackendCase>& cases) {
  for (const DType precision : precisions) {
    cases.push_back({isa, precision, true});
    if (!aligned_only) cases.push_back({isa, precision, false});
  }
}

}  // namespace

std::string BackendCase::Name() const {
  return isa + "_" + std::string(DTypeName(precision)) + (aligned ? "_aligned" : "");
}

std::vector<BackendCase> BackendCases(bool aligned_only) {
  std::vector<BackendCase> cases;
  for (int i = 0; i <= static_cast<int>(cpu::DetectIsa()); ++i) {
    const std::string isa(cpu::IsaName(static_cast<cpu::Isa>(i)));
    cases.push_back({isa, DType::kBF16});
    cases.push_back({isa, DType::kF32});
  }
  AddDeviceCases("cuda", aligned_only, {DType::kBF16, DType::kF16, DType::kF32}, cases);
  return cases;
}

std::vector<BackendCase> EmulatedCases(bool aligned_only, const std::vector<DType>& precisions) {
  std::vector<BackendCase> cases;
  AddDeviceCases("emulated", aligned_only, precisions, cases);
  return cases;
}

std::string CaseName(const testing::TestParamInfo<BackendCase>& which) {
  return which.param.Name();
}

Result<std::shared_ptr<Backend>> MakeTestBackend(const BackendCase& which, int threads,
                                                 bool deterministic) {
  if (which.cuda() || which.emulated()) return SharedBackend(which, deterministic);
  BackendOptions options;
  options.precision = which.precision;
  options.isa_max = which.isa;
  options.threads = threads;
  options.pin_threads = false;
  options.deterministic = deterministic;
  return Make(which.isa, options);
}

bool TestsAreBrief() {
  const char* brief = std::getenv("LACUNA_TEST_BRIEF");
  return brief != nullptr && std::string_view(brief) == "1";
}

bool SkipsOrFails(const Result<std::shared_ptr<Backend>>& backend) {
  if (backend.ok()) return false;
  const char* require = std::getenv("LACUNA_REQUIRE_CUDA");
  const bool required = require != nullptr && std::string_view(require) == "1";
  const std::string reason = backend.status().ToString();
  [&] {
    if (backend.status().code() != StatusCode::kUnavailable || required) FAIL() << reason;
    GTEST_SKIP() << reason;
  }();
  return true;
}

void TestMemory::Send() {
  if (device_.data() == nullptr && size() > 0) {
    auto buffer = backend_->device().Allocate(static_cast<int64_t>(size()));
    ASSERT_TRUE(buffer.ok()) << buffer.status().ToString();
    device_ = std::move(buffer).value();
  }
  Stream stream;
  ASSERT_EQ(
      backend_->device().Copy(device_.data(), host_.get(), static_cast<int64_t>(size()), stream),
      OkStatus());
  ASSERT_EQ(backend_->device().Synchronize(stream), OkStatus());
}

void TestMemory::Fetch() const {
  Stream stream;
  ASSERT_EQ(
      backend_->device().Copy(host_.get(), device_.data(), static_cast<int64_t>(size()), stream),
      OkStatus());
  ASSERT_EQ(backend_->device().Synchronize(stream), OkStatus());
}

}  // namespace lacuna::kernels
