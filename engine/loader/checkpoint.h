// WeightSource: where a model's weights come from; Checkpoint: the safetensors of a folder.
//
// A Checkpoint maps `model.safetensors`, or the shards that `model.safetensors.index.json` names.
// One thread, at load.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/loader/mapped_file.h"
#include "engine/loader/safetensors.h"
#include "kernels/core/status.h"
#include "kernels/core/tensor_view.h"

namespace lacuna::engine {

// A matrix of numbers that only look like weights: uniform in +- scale.
struct RandomMatrix final {
  uint64_t seed = 0;
  float scale = 0.0f;
};

class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // Instead of Get, for a source without values: whoever loads makes such a matrix where it will
  // lie. Nothing: ask Get.
  virtual std::optional<RandomMatrix> Random(const std::string& name, int64_t columns) {
    static_cast<void>(name), static_cast<void>(columns);
    return std::nullopt;
  }
  // A tensor f32 | bf16 | f16 of exactly this shape; the view is good until the next call at least.
  // kInvalidArgument names file, tensor, expected and found.
  virtual Result<TensorView> Get(const std::string& name, std::initializer_list<int64_t> shape) = 0;
};

class Checkpoint final : public WeightSource {
 public:
  static Result<std::unique_ptr<Checkpoint>> Open(const Folder& folder);

  // Views stay good for the life of the checkpoint. Read only, whatever TensorView's type says.
  Result<TensorView> Get(const std::string& name, std::initializer_list<int64_t> shape) override;
  // Any tensor that was never asked for is an error, so that a model is not served with a part
  // of its weights ignored. Derived tables that old exporters wrote are harmless.
  Status CheckAllUsed(std::string_view architecture) const;
  int64_t bytes() const { return bytes_; }

 private:
  struct Tensor {
    SafetensorsEntry entry;
    std::string file;
    bool used = false;
  };

  Status AddFile(const Folder& folder, const std::string& file);
  Status AddIndex(const Folder& folder, std::string_view text);

  std::vector<std::unique_ptr<MappedFile>> files_;
  std::unordered_map<std::string, Tensor> tensors_;
  std::string first_file_;  // stands for all in messages about a missing tensor
  int64_t bytes_ = 0;
};

// One tensor by name and rank, of any file (verify's expectations): rank 1 or 2.
Result<TensorView> FindTensor(const std::vector<SafetensorsEntry>& entries, std::string_view file,
                              std::string_view name, DType dtype, int rank);

std::string ShapeText(const std::vector<int64_t>& shape);  // "[64, 128]"

}  // namespace lacuna::engine
