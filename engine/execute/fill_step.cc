#include "engine/execute/fill_step.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "kvcache/sparse/decode_counts.h"
#include "kvcache/sparse/prefill_grain.h"

namespace lacuna::engine {
namespace {

int64_t SizeOf(const StepSequence& sequence) {
  return static_cast<int64_t>(sequence.tokens.size());
}

int64_t SampledRows(const StepSequence& sequence) {
  return sequence.logits_from < 0 ? 0 : SizeOf(sequence) - sequence.logits_from;
}

// Writes one batch, sequence by sequence.
class Filler final {
 public:
  Filler(const StepOrder& order, const StepContext& context, const StepSizes& sizes,
         const StepImage::Arrays& out, StepChunks& chunks)
      : order_(order), context_(context), sizes_(sizes), out_(out), chunks_(chunks) {
    for (const StepImage::Arrays::Group& group : out.groups) {
      decode_.emplace_back(group.decode);
      prefill_.emplace_back(group.prefill);
    }
    chunks.all.clear();
    chunks.last.clear();
  }

  Status Fill(const StepBatch& batch) {
    std::vector<int32_t> first_rows(batch.sequences.size());
    auto next_class = order_.decode.begin();
    for (size_t place = 0; place < order_.sequences.size(); ++place) {
      const auto at = static_cast<int64_t>(place);
      if (next_class != order_.decode.end() && next_class->first == at) {
        PadTo((next_class++)->row);
      }
      if (at == order_.decode_sequences) PadTo(order_.decode_rows);
      const size_t i = order_.sequences[place];
      first_rows[i] = row_;
      LACUNA_RETURN_IF_ERROR(FillSequence(batch.sequences[i]));
    }
    int32_t* wanted = out_.wanted;
    for (size_t i = 0; i < batch.sequences.size(); ++i) {
      const auto rows = static_cast<int32_t>(SampledRows(batch.sequences[i]));
      std::iota(wanted, wanted + rows, first_rows[i] + batch.sequences[i].logits_from);
      wanted += rows;
    }
    std::ranges::copy(batch.rows, out_.sample_rows);
    std::fill(out_.sample_rows + batch.rows.size(), out_.sample_rows + sizes_.wanted,
              kernels::SampleRow{});
    std::ranges::copy(batch.edits, out_.edits);
    const auto wanted_rows = static_cast<int32_t>(wanted - out_.wanted);
    std::iota(wanted, out_.wanted + sizes_.wanted, wanted_rows);
    PadTo(sizes_.rows);
    return OkStatus();
  }

 private:
  Status FillSequence(const StepSequence& sequence) {
    const auto count = static_cast<int32_t>(sequence.tokens.size());
    const bool sampled = sequence.sampled_row >= 0;
    for (int32_t i = 0; i < count; ++i) {
      out_.ids[row_ + i] = sampled ? 0 : sequence.tokens[static_cast<size_t>(i)];
      out_.sources[row_ + i] = sampled ? sequence.sampled_row
                                       : static_cast<int32_t>(context_.sampled_rows_max) + row_ + i;
      out_.positions[row_ + i] = sequence.first_position + i;
    }
    for (size_t g = 0; g < context_.groups; ++g) {
      LACUNA_RETURN_IF_ERROR(kvcache::FillSlots(sequence.pages[g], context_.page_tokens,
                                                sequence.first_position, count,
                                                out_.groups[g].slots + row_));
      (IsDecode(sequence) ? decode_ : prefill_)[g].AddDense(sequence.pages[g]);
      if (context_.previous_pages) FillPreviousPages(sequence, g);
    }
    if (!IsDecode(sequence)) {
      chunks_.all.push_back({row_, count, sequence.first_position});
      const int32_t skip = RowsUnread(sequence);
      chunks_.last.push_back({row_ + skip, count - skip, sequence.first_position + skip});
    }
    row_ += count;
    return OkStatus();
  }

  // Rows at the start of a chunk that the last layer need not attend; at least one is left, so that
  // chunks and lists stay in step. What is sparse is cut at the plan's grain.
  static int32_t RowsUnread(const StepSequence& sequence) {
    const auto count = static_cast<int32_t>(sequence.tokens.size());
    const int32_t skip = sequence.logits_from < 0 ? count - 1 : sequence.logits_from;
    const kvcache::SparsePlan* plan = sequence.plan;
    if (plan == nullptr || kvcache::DensePrefill(*plan, sequence.prompt_tokens)) return skip;
    const auto grain = static_cast<int32_t>(kvcache::PrefillGrainTokens(*plan));
    const int32_t first = (sequence.first_position + skip) / grain * grain;
    return std::max(first - sequence.first_position, 0);
  }

  // Of a full group: the page before, -1 for none.
  void FillPreviousPages(const StepSequence& sequence, size_t group) {
    const kvcache::PageSpan& span = sequence.pages[group];
    for (size_t i = 0; i < sequence.tokens.size(); ++i) {
      const int64_t position = sequence.first_position + static_cast<int64_t>(i);
      const auto before = static_cast<size_t>(position / context_.page_tokens) - 1;
      const bool held = position >= context_.page_tokens && before < span.pages.size() &&
                        span.logical[before] == static_cast<int32_t>(before);
      out_.groups[group].previous_pages[row_ + static_cast<int64_t>(i)] =
          held ? span.pages[before] : -1;
    }
  }

  void PadTo(int64_t rows) {
    for (; row_ < static_cast<int32_t>(rows); ++row_) {
      out_.ids[row_] = 0;
      out_.sources[row_] = static_cast<int32_t>(context_.sampled_rows_max) + row_;
      out_.positions[row_] = 0;
      for (size_t g = 0; g < context_.groups; ++g) {
        out_.groups[g].slots[row_] = -1;
        if (context_.previous_pages) out_.groups[g].previous_pages[row_] = -1;
        decode_[g].AddDense({});
      }
    }
  }

  const StepOrder& order_;
  const StepContext& context_;
  const StepSizes& sizes_;
  const StepImage::Arrays& out_;
  StepChunks& chunks_;
  std::vector<kvcache::SelectionBuilder> decode_, prefill_;  // per group
  int32_t row_ = 0;
};

Status CheckPlan(const StepSequence& sequence, const StepContext& context) {
  const kvcache::SparsePlan* plan = sequence.plan;
  if (plan == nullptr) return OkStatus();
  const kvcache::AttentionShape &own = plan->shape, &need = context.shape;
  if (own.layers != need.layers || own.q_heads != need.q_heads || own.kv_heads != need.kv_heads ||
      own.head_dim != need.head_dim || own.page_tokens != context.page_tokens) {
    return InternalError("a step holds plan " + plan->name + ", which is not of this model");
  }
  if (sequence.choice < 0 || sequence.choice >= context.sequences_max) {
    return InternalError("a step keeps choice " + std::to_string(sequence.choice) + ", need 0 to " +
                         std::to_string(context.sequences_max - 1));
  }
  return OkStatus();
}

Status CheckSequence(const StepSequence& sequence, const StepContext& context) {
  if (sequence.tokens.empty() || sequence.pages.size() != context.groups ||
      sequence.first_position < 0 ||
      sequence.first_position + SizeOf(sequence) > context.context_tokens_max) {
    return InternalError("a step holds a sequence without tokens, pages or room");
  }
  if (sequence.logits_from < -1 || sequence.logits_from >= SizeOf(sequence)) {
    return InternalError("a step wants logits of rows that it does not have");
  }
  LACUNA_RETURN_IF_ERROR(CheckPlan(sequence, context));
  if (sequence.sampled_row >= 0) {
    if (sequence.sampled_row >= context.sampled_rows_max || SizeOf(sequence) != 1) {
      return InternalError("a step takes a token from a row that was not sampled");
    }
    return OkStatus();
  }
  const auto in_vocab = [&](TokenId token) { return token >= 0 && token < context.vocab_size; };
  if (!std::ranges::all_of(sequence.tokens, in_vocab)) {
    return InternalError("a step holds a token outside the vocabulary");
  }
  return OkStatus();
}

}  // namespace

int64_t SampledRowsOf(const StepBatch& batch) {
  int64_t rows = 0;
  for (const StepSequence& sequence : batch.sequences) rows += SampledRows(sequence);
  return rows;
}

Status CheckBatch(const StepBatch& batch, const StepContext& context) {
  int64_t rows = 0;
  const int64_t sampled = SampledRowsOf(batch);
  for (const StepSequence& sequence : batch.sequences) {
    LACUNA_RETURN_IF_ERROR(CheckSequence(sequence, context));
    rows += SizeOf(sequence);
  }
  if (rows > context.rows_max ||
      static_cast<int64_t>(batch.sequences.size()) > context.sequences_max) {
    return InternalError("a step of " + std::to_string(rows) + " rows and " +
                         std::to_string(batch.sequences.size()) + " sequences is too large");
  }
  if (sampled != static_cast<int64_t>(batch.rows.size())) {
    return InternalError("a step samples " + std::to_string(sampled) +
                         " tokens and tells how for " + std::to_string(batch.rows.size()));
  }
  return OkStatus();
}

StepSizes SizesOf(const StepBatch& batch, const StepOrder& order, const StepContext& context) {
  StepSizes sizes;
  sizes.rows = sizes.decode_rows = order.decode_rows;
  sizes.chunks = static_cast<int64_t>(order.Chunks().size());
  sizes.previous_pages = context.previous_pages;
  sizes.groups.resize(context.groups);
  for (const StepSequence& sequence : batch.sequences) {
    const bool decode = IsDecode(sequence);
    if (!decode) sizes.rows += SizeOf(sequence);
    sizes.wanted += SampledRows(sequence);
    for (size_t g = 0; g < context.groups; ++g) {
      StepSizes::Group& group = sizes.groups[g];
      (decode ? group.decode_entries : group.prefill_entries) +=
          static_cast<int64_t>(sequence.pages[g].pages.size());
    }
  }
  sizes.edits = static_cast<int64_t>(batch.edits.size());
  return sizes;
}

Status FillStep(const StepBatch& batch, const StepOrder& order, const StepContext& context,
                const StepSizes& sizes, const StepImage::Arrays& out, StepChunks& chunks) {
  return Filler(order, context, sizes, out, chunks).Fill(batch);
}

}  // namespace lacuna::engine
