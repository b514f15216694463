// Which lists the layers of a decode step read, seen from behind a backend that writes them down.
#include <bit>
#include <map>

#include "tests/model/sparse_steps_fixture.h"

namespace lacuna::engine {
namespace {

using kernels::Backend;
using kernels::Stream;

// One AttendDecode of one row: per kv head, mask by logical page; empty when the row's list is
// shared by the heads (dense).
using HeadLists = std::vector<std::map<int32_t, uint64_t>>;

struct Log final {
  std::vector<HeadLists> decodes;  // in the order of the calls, of batches of one row
  int selects = 0, selects_choosing = 0;
};
Log log_of_step;

// Passes everything on.
class Recorder final : public Backend {
 public:
  explicit Recorder(std::unique_ptr<Backend> cpu) : cpu_(std::move(cpu)) {}

  kernels::Device& device() override { return cpu_->device(); }
  std::string_view name() const override { return cpu_->name(); }
  DType act_dtype() const override { return cpu_->act_dtype(); }
  bool decode_equals_prefill() const override { return cpu_->decode_equals_prefill(); }
  bool deterministic() const override { return cpu_->deterministic(); }
  int threads() const override { return cpu_->threads(); }
  Result<std::unique_ptr<kernels::PreparedMatrix>> PrepareMatrix(const TensorView& w) override {
    return cpu_->PrepareMatrix(w);
  }
  Result<std::unique_ptr<kernels::PreparedMatrix>> PrepareRandomMatrix(int64_t rows,
                                                                       int64_t columns,
                                                                       uint64_t seed,
                                                                       float scale) override {
    return cpu_->PrepareRandomMatrix(rows, columns, seed, scale);
  }
  Status ReserveWorkspace(const kernels::WorkspaceLimits& limits) override {
    return cpu_->ReserveWorkspace(limits);
  }
  Status Embed(const kernels::EmbedArgs& a, Stream& s) override { return cpu_->Embed(a, s); }
  Status RmsNorm(const kernels::RmsNormArgs& a, Stream& s) override { return cpu_->RmsNorm(a, s); }
  Status Matmul(const kernels::MatmulArgs& a, Stream& s) override { return cpu_->Matmul(a, s); }
  Status GatedActivation(const kernels::GatedActivationArgs& a, Stream& s) override {
    return cpu_->GatedActivation(a, s);
  }
  Status GatherRows(const kernels::GatherRowsArgs& a, Stream& s) override {
    return cpu_->GatherRows(a, s);
  }
  Status Softcap(const kernels::SoftcapArgs& a, Stream& s) override { return cpu_->Softcap(a, s); }
  Status RopeAppend(const kernels::RopeAppendArgs& a, Stream& s) override {
    return cpu_->RopeAppend(a, s);
  }
  Status AppendKv(const kernels::AppendKvArgs& a, Stream& s) override {
    return cpu_->AppendKv(a, s);
  }
  Status AttendDecode(const kernels::AttendDecodeArgs& a, Stream& s) override {
    HeadLists lists;
    for (int64_t list = 0; a.lists_per_row > 1 && list < a.lists_per_row; ++list) {
      auto& pages = lists.emplace_back();
      for (int64_t i = a.lists.begins[list]; i < a.lists.ends[list]; ++i) {
        pages[a.lists.logical[i]] = a.lists.masks[i];
      }
    }
    log_of_step.decodes.push_back(std::move(lists));
    return cpu_->AttendDecode(a, s);
  }
  Status AttendPrefill(const kernels::AttendPrefillArgs& a, Stream& s) override {
    return cpu_->AttendPrefill(a, s);
  }
  Status Sample(const kernels::SampleArgs& a, Stream& s) override { return cpu_->Sample(a, s); }
  bool has_sparse_ops() const override { return true; }
  Status AppendMetadata(const kernels::AppendMetadataArgs& a, Stream& s) override {
    return cpu_->AppendMetadata(a, s);
  }
  Status SelectKeys(const kernels::SelectKeysArgs& a, Stream& s) override {
    ++log_of_step.selects;
    log_of_step.selects_choosing += a.rows[0].choose ? 1 : 0;
    return cpu_->SelectKeys(a, s);
  }
  Status SelectRanges(const kernels::SelectRangesArgs& a, Stream& s) override {
    return cpu_->SelectRanges(a, s);
  }
  Status CorrectPrefill(const kernels::CorrectPrefillArgs& a, Stream& s) override {
    return cpu_->CorrectPrefill(a, s);
  }
  Status CompareAttention(const kernels::CompareAttentionArgs& a, Stream& s) override {
    return cpu_->CompareAttention(a, s);
  }

 private:
  std::unique_ptr<Backend> cpu_;
};

std::unique_ptr<Backend> Record(std::unique_ptr<Backend> cpu) {
  return std::make_unique<Recorder>(std::move(cpu));
}

class SparseReuse : public SparseSteps {
 protected:
  // What each layer of one decode step read, after a prompt.
  std::vector<HeadLists> ListsOf(const PlanPtr& plan, int32_t steps_since_choice = -1) {
    Make({plan}, Record);
    TestSequence one = Sparse(MakeSequence(500, 3, 5), plan);
    Run({Step(one, 0, 498, -1)});
    if (steps_since_choice >= 0) Run({Step(one, 498, 499, 0, /*decode=*/true)});
    log_of_step = {};
    one.steps_since_choice = steps_since_choice;
    const auto from = static_cast<size_t>(steps_since_choice >= 0 ? 499 : 498);
    Run({Step(one, from, from + 1, 0, /*decode=*/true)});
    return log_of_step.decodes;
  }
};

TEST_P(SparseReuse, LayersReadTheChoiceOfTheirSource) {
  for (const char* name : {"tidaldecode", "lessismore", "delta", "quest"}) {
    SCOPED_TRACE(name);
    kvcache::SparseProfile profile = ChangedProfile(name, Dials::kTight);
    if (std::string(name) == "quest") profile.decode_layers.share_layers = 2;
    const PlanPtr plan = Resolve(profile);
    const std::vector<HeadLists> lists = ListsOf(plan);
    ASSERT_EQ(lists.size(), plan->layers.size());
    int reused = 0;
    for (size_t layer = 0; layer < lists.size(); ++layer) {
      SCOPED_TRACE(layer);
      const kvcache::LayerPlan& role = plan->layers[layer];
      const bool reads_all =
          role.decode == kvcache::LayerRole::kDense || role.decode == kvcache::LayerRole::kPlanner;
      EXPECT_EQ(lists[layer].empty(), reads_all);
      if (role.decode != kvcache::LayerRole::kReuse) continue;
      const HeadLists& source = lists[static_cast<size_t>(role.source)];
      if (!source.empty()) {
        EXPECT_EQ(lists[layer], source);
      }
      for (size_t before = 0; before < layer; ++before) {
        const kvcache::LayerPlan& other = plan->layers[before];
        if (other.decode != kvcache::LayerRole::kReuse || other.source != role.source) continue;
        EXPECT_EQ(lists[layer], lists[before]);
      }
      ++reused;
    }
    EXPECT_GT(reused, 0);
    EXPECT_EQ(log_of_step.selects, plan->slots);
  }
}

// A head that streams in one layer and not in another that reads the same choice.
TEST_P(SparseReuse, StreamingHeadsOfOtherLayersGetTheirOwnLists) {
  kvcache::SparseProfile profile = ChangedProfile("lserve", Dials::kTight);
  profile.decode_layers.share_layers = 8;
  const PlanPtr plan = Resolve(profile);
  const std::vector<HeadLists> lists = ListsOf(plan);
  ASSERT_EQ(lists.size(), plan->layers.size());
  std::map<int32_t, uint64_t> chosen[2];  // of each kv head, as full heads read it
  int full = 0, streaming = 0;
  for (size_t layer = 0; layer < lists.size(); ++layer) {
    if (plan->layers[layer].decode == kvcache::LayerRole::kDense) continue;
    for (int32_t head = 0; head < 2; ++head) {
      SCOPED_TRACE(testing::Message() << "layer " << layer << " head " << head);
      const kvcache::HeadPlan& role = plan->head(static_cast<int32_t>(layer), head);
      const auto& pages = lists[layer][static_cast<size_t>(head)];
      if (role.role == kvcache::HeadRole::kStreaming) {
        const auto last = static_cast<int32_t>(498 / GetParam().page_tokens);
        const auto first =
            static_cast<int32_t>((499 - role.decode.window_tokens) / GetParam().page_tokens);
        for (int32_t page = first; page <= last; ++page) EXPECT_TRUE(pages.contains(page));
        ++streaming;
        continue;
      }
      if (chosen[head].empty()) chosen[head] = pages;
      EXPECT_EQ(pages, chosen[head]);
      int64_t keys = 0;
      for (const auto& [page, mask] : pages) keys += std::popcount(mask);
      EXPECT_GE(keys, 100);  // the budget of 128, but for the incomplete page
      ++full;
    }
  }
  EXPECT_GT(full, 2);
  EXPECT_GT(streaming, 2);
}

TEST_P(SparseReuse, KeptChoicesAreReadAgain) {
  const PlanPtr plan = Resolve(ChangedProfile("lserve", Dials::kTight));
  ListsOf(plan, 1);
  EXPECT_EQ(log_of_step.selects_choosing, 0);
  ListsOf(plan, 4);
  EXPECT_EQ(log_of_step.selects_choosing, log_of_step.selects);
}

INSTANTIATE_TEST_SUITE_P(Models, SparseReuse,
                         testing::ValuesIn(Cases({{"recall-12m", 64}, {"recall-12m", 16}}, 1)),
                         [](const auto& test) { return test.param.Name(); });

}  // namespace
}  // namespace lacuna::engine
