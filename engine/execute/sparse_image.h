// SparseImage: what the kernels of a step read and add up for its classes, packed into one section
// of the step's image, and the classes that point there.
//
// What is added up (stats, audits) stands first and is zero in the image: after the step, those
// bytes are the report. Engine thread only; one step at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/execute/fill_step.h"
#include "engine/execute/step_batch.h"
#include "engine/execute/step_order.h"
#include "engine/model/sparse_step.h"

namespace lacuna::engine {

// Where the numbers of one sequence with a plan lie in a step's report, which outlives the image.
struct ReportPlace final {
  int32_t sequence = 0;
  bool decode = false, dense = false, audited = false;
  // See HeadLaunches; `at` in bytes from the report's start, `each` of a kv head.
  struct Stats {
    int64_t at = 0, rows = 0, row = 0, each = 0;
  };
  Stats stats, blocks;               // SelectStats, RangeStats
  int64_t audits = -1;               // AttentionAudit[kAuditGroups]
  bool lossless[kAuditGroups] = {};  // thirds whose layers all attend densely
};
SparseReport ReadReport(const ReportPlace& place, const HeadLaunches& launches,
                        const std::byte* report);

class SparseImage final {
 public:
  // `launches` outlives it.
  explicit SparseImage(const HeadLaunches& launches) : launches_(launches) {}

  // Of any step with these plans; corrections come on top.
  static int64_t BytesMax(std::span<const std::shared_ptr<const kvcache::SparsePlan>> plans,
                          const HeadLaunches& launches, int64_t sequences_max);

  // Lays out the arrays of the batch's classes.
  void SetBatch(const StepBatch& batch, const StepOrder& order);
  bool empty() const { return decode_.empty() && prefill_.empty(); }
  int64_t bytes() const { return bytes_; }
  int64_t report_bytes() const { return report_bytes_; }
  const std::vector<ReportPlace>& places() const { return places_; }

  // `base`: where the section lies on the host; `chunks`, `prefill`: as FillStep made them, of the
  // group that keeps all pages.
  void Fill(const StepBatch& batch, const StepOrder& order, const StepChunks& chunks,
            const kvcache::SelectionArrays& prefill, std::byte* base);
  // The classes with pointers into the section at `base`, on the device; `prefill` likewise. What
  // SparseMemory provides is not there yet.
  void Locate(std::byte* base, const kvcache::SelectionArrays& prefill);
  std::vector<DecodeClass>& decode() { return decode_; }
  std::vector<PrefillClass>& prefill() { return prefill_; }

 private:
  struct DecodePlace {  // offsets
    int64_t select = 0, kept = 0, shapes = 0, choosing = 0, stats = 0, audits = 0;
  };
  struct PrefillPlace {
    int64_t shapes = 0, offsets = 0, last_offsets = 0, stats = 0;
    int64_t positions = 0, begins = 0, ends = 0;
    std::vector<kernels::RangeChunk> all, last;  // first_row is filled by Fill
    std::vector<int64_t> correct_firsts;
    int64_t correct_rows = 0;
  };

  template <typename T>
  int64_t Take(int64_t count);
  void TakeReports(const StepBatch& batch, const StepOrder& order);
  void TakeRows(const DecodeClass& rows, DecodePlace& place);
  void TakeChunks(const StepBatch& batch, const StepOrder& order, const StepOrder::Class& one,
                  PrefillPlace& place);
  void FillRows(const StepBatch& batch, const StepOrder& order, const StepOrder::Class& one,
                const DecodePlace& place, std::byte* base) const;
  void FillShapes(const kvcache::SparsePlan& plan, int64_t tokens, int64_t rows, int64_t row,
                  const DecodePlace& place, std::byte* base) const;
  void FillChunks(const StepBatch& batch, const StepOrder& order, const StepChunks& chunks,
                  const kvcache::SelectionArrays& prefill, const PrefillClass& one,
                  PrefillPlace& place, std::byte* base) const;

  const HeadLaunches& launches_;
  int64_t bytes_ = 0, report_bytes_ = 0;
  std::vector<DecodeClass> decode_;
  std::vector<PrefillClass> prefill_;
  std::vector<DecodePlace> decode_places_;
  std::vector<PrefillPlace> prefill_places_;
  std::vector<ReportPlace> places_;
};

}  // namespace lacuna::engine
