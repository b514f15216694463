// Calibrator: makes artefact tables from the attention of sample prompts, one after another.
//
// Watches a Model that runs each prompt in one step from position 0 on; what it keeps are sums per
// head. One thread: the one that runs Forward.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "engine/calibrate/table.h"
#include "engine/model/attention_observer.h"
#include "kvcache/sparse/artefacts.h"

namespace lacuna::engine {

// A number that --set changes.
struct CalibrateDial final {
  std::string_view name, meaning;
  double CalibrateOptions::*value = nullptr;
  double min = 0, max = 0;
  bool whole = false;
};
std::span<const CalibrateDial> AllCalibrateDials();

// How a model attends, as far as tables must know.
struct AttentionMath final {
  float scale = 1, softcap = 0;
};

class Calibrator final : public AttentionObserver {
 public:
  Calibrator(const AttentionShape& shape, const AttentionMath& math,
             const CalibrateOptions& options, std::span<const kvcache::ArtefactKind> kinds);

  // The next step is a prompt with these marks; `on_layer` is called behind each layer.
  void Begin(PromptMarks marks, std::function<void(int32_t layer)> on_layer);
  // Until the next Begin, steps are not watched.
  void End() { watching_ = false; }
  void Observe(int64_t layer, const TensorView& q, const TensorView& k,
               const TensorView& positions) override;
  // Writes the tables of `kinds`; those of other kinds stay. The first error of a table.
  Status Finish(kvcache::SparseArtefacts& artefacts);

 private:
  AttentionShape shape_;
  CalibrateOptions options_;
  std::vector<std::unique_ptr<Table>> tables_;
  PromptMarks marks_;
  std::function<void(int32_t layer)> on_layer_;
  bool watching_ = false;
  LayerSample sample_;
  HeadMap map_;
};

}  // namespace lacuna::engine
