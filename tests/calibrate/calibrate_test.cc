// `lacuna calibrate` on the embedded model: the observer, prompts, marks, the file, and that the
// tables we ship are those that it makes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>
#include <sstream>

#include "engine/model/load_model.h"
#include "kvcache/sparse/profile_set.h"
#include "kvcache/sparse/resolve.h"
#include "server/commands/calibrate_command.h"
#include "server/commands/calibrate_prompts.h"
#include "server/commands/device_options.h"
#include "server/commands/profiles.h"
#include "server/commands/served_model.h"
#include "server/commands/solo_runner.h"

namespace lacuna::server {
namespace {

using kvcache::ArtefactKind;
using kvcache::SparseArtefacts;
using testing::ElementsAre;
using testing::HasSubstr;

// What the shipped tables were made from, and they.
const char* const kData = "bench/quality/calibration.jsonl.gz";
const char* const kShipped = "models/recall-12m/lacuna-sparse.json";

kvcache::AttentionShape EmbeddedShape() {
  const auto folder = OpenModelFolder("");
  return AttentionShapeOf(*FolderShape(**folder), 64);
}

ServedModel EmbeddedModel() { return *LoadServedModel(**OpenModelFolder("")); }

std::string FileText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

CalibrateCommandOptions Of(const std::string& method, const std::string& data,
                           const std::string& out = "") {
  CalibrateCommandOptions options;
  options.method = method;
  options.data = data;
  options.out = out;
  options.quiet = true;
  return options;
}

CalibrateCommandOptions With(CalibrateCommandOptions options, const std::string& set) {
  options.set = {set};
  return options;
}

// A folder of this test's own.
class Calibrate : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string Path(const std::string& name) const { return (folder_ / name).string(); }
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name), std::ios::binary) << text;
    return Path(name);
  }
  // The error of a run that must fail, without "lacuna calibrate: ".
  std::string Error(CalibrateCommandOptions options) const {
    if (options.out.empty()) options.out = Path("never.json");
    std::ostringstream out, err;
    EXPECT_EQ(RunCalibrate(options, out, err), 2);
    EXPECT_EQ(std::ranges::count(err.str(), '\n'), 1) << err.str();
    EXPECT_FALSE(std::filesystem::exists(options.out));
    return err.str().substr(std::string("lacuna calibrate: ").size());
  }
  SparseArtefacts Run(CalibrateCommandOptions options) const {
    std::ostringstream out, err;
    EXPECT_EQ(RunCalibrate(options, out, err), 0) << err.str();
    auto artefacts = kvcache::ReadArtefacts(FileText(options.out), options.out, EmbeddedShape());
    EXPECT_TRUE(artefacts.ok()) << artefacts.status().message();
    return artefacts.ok() ? *artefacts : SparseArtefacts{};
  }

  std::filesystem::path folder_;
};

class LayerZero final : public engine::AttentionObserver {
 public:
  void Observe(int64_t layer, const TensorView& q, const TensorView& k,
               const TensorView& positions) override {
    if (layer == 0) sample.Take(q, k);
    layers.push_back(layer);
    EXPECT_EQ(positions.dim(0), q.dim(0));
  }
  engine::LayerSample sample;
  std::vector<int64_t> layers;
};

TEST(AttentionObserver, SeesRotatedQueriesAndKeysOfEveryLayer) {
  const auto backend = MakeBackendFor({.device = "cpu", .precision = "fp32", .threads = 1});
  ASSERT_TRUE(backend.ok());
  const auto model = engine::LoadModel(**OpenModelFolder(""), **backend);
  ASSERT_TRUE(model.ok());
  LayerZero seen;
  (*model)->SetObserver(&seen);
  const auto runner =
      SoloRunner::Create(**model, **backend, {.tokens_max = 100, .step_tokens_max = 100});
  ASSERT_TRUE(runner.ok());
  std::vector<TokenId> tokens;
  for (TokenId i = 0; i < 100; ++i) tokens.push_back(300 + i % 7);  // in layer 0, 7 kinds of rows
  ASSERT_TRUE((*runner)->RunForLogits(tokens, 0, /*decode=*/false, 99).ok());
  EXPECT_THAT(seen.layers, ElementsAre(0, 1, 2, 3, 4, 5));
  // Rotation: equal tokens at an equal distance have an equal logit, wherever they stand. At
  // another distance they have not.
  std::vector<float> early(100), late(100);
  for (int32_t head = 0; head < 8; ++head) {
    seen.sample.Logits(head, 20, early);
    seen.sample.Logits(head, 90, late);
    for (size_t key = 0; key <= 20; ++key) {
      EXPECT_NEAR(early[key], late[key + 70], 2e-3f * (1 + std::abs(early[key])));
    }
    EXPECT_GT(std::abs(early[20] - early[6]), 1e-4f);
  }
}

TEST(SamplePrompts, MarksFindWhatIsCopiedAndWhereFrom) {
  const ServedModel model = EmbeddedModel();
  const std::string text = "The pass key for kind-wagon is 40862. It was late. Which pass key?";
  std::vector<TokenId> tokens = *model.tokenizer->Encode(text);
  const auto prompt_tokens = static_cast<int64_t>(tokens.size());
  const std::vector<TokenId> answer = *model.tokenizer->Encode("It is 40862.");
  tokens.insert(tokens.end(), answer.begin(), answer.end());
  const std::vector<std::string> answers = {"40862", "late", "absent"};
  const engine::PromptMarks marks = MarkAnswers(tokens, prompt_tokens, answers, *model.tokenizer);

  std::string copied, source;
  ASSERT_FALSE(marks.answers.empty());
  for (const auto& mark : marks.answers) {
    EXPECT_GE(mark.row, prompt_tokens);
    copied += model.tokenizer->TokenBytes(tokens[static_cast<size_t>(mark.row) + 1]);
    ASSERT_EQ(mark.spans.size(), 1u);
  }
  const engine::TokenSpan span = marks.answers[0].spans[0];
  for (int32_t i = span.begin; i < span.end; ++i) {
    source += model.tokenizer->TokenBytes(tokens[static_cast<size_t>(i)]);
  }
  EXPECT_THAT(copied, HasSubstr("40862"));
  EXPECT_LE(copied.size(), 8u);
  EXPECT_THAT(source, HasSubstr("wagon is 40862"));  // with what names it
  EXPECT_THAT(source, testing::Not(HasSubstr("late")));
}

TEST_F(Calibrate, ReadsLinesAndText) {
  const ServedModel model = EmbeddedModel();
  const std::string file = Write("data.jsonl",
                                 "{\"prompt\": \"One two three\", \"id\": 7}\n\n"
                                 "{\"messages\": [{\"role\": \"user\", \"content\": \"Hello\"}], "
                                 "\"answers\": [\"a\", \"b\"]}\n");
  const auto prompts = ReadSamplePrompts(file, model, {});
  ASSERT_TRUE(prompts.ok()) << prompts.status().message();
  ASSERT_EQ(prompts->size(), 2u);
  EXPECT_EQ((*prompts)[0].tokens, *model.tokenizer->Encode("One two three"));
  EXPECT_THAT((*prompts)[1].answers, ElementsAre("a", "b"));
  EXPECT_THAT(model.tokenizer->Decode((*prompts)[1].tokens, false),
              testing::AllOf(HasSubstr("<|im_start|>user\nHello"), HasSubstr("assistant")));
  EXPECT_EQ(ReadSamplePrompts(file, model, {.prompts_max = 1})->size(), 1u);

  std::string text;
  for (int i = 0; i < 2000; ++i) text += "It was number " + std::to_string(i) + ". ";
  const auto pieces = ReadSamplePrompts(Write("data.txt", text), model, {.tokens_max = 1000});
  ASSERT_TRUE(pieces.ok());
  ASSERT_GT(pieces->size(), 4u);
  for (const SamplePrompt& piece : *pieces) EXPECT_EQ(piece.tokens.size(), 1000u);
  EXPECT_NE((*pieces)[0].tokens, (*pieces)[1].tokens);
}

TEST_F(Calibrate, TellsWhatIsWrongInOneLine) {
  const std::string good = Write("good.jsonl", "{\"prompt\": \"Some words\"}\n");
  EXPECT_THAT(Error(Of("quest", good)),
              HasSubstr("--method: got \"quest\", need one of all, head_scores"));
  EXPECT_THAT(Error(With(Of("all", good), "dens=1")),
              HasSubstr("--set: got \"dens\", need one of row_stride"));
  EXPECT_THAT(Error(With(Of("all", good), "density=2")), HasSubstr("--set: density: got \"2\""));
  EXPECT_THAT(Error(With(Of("all", good), "top_k=1.5")), HasSubstr("a whole number"));
  EXPECT_THAT(Error(Of("all", Path("nowhere"))), HasSubstr("got no such file"));
  EXPECT_THAT(Error(Of("all", Write("bad.jsonl", "{}\n[]\n"))),
              HasSubstr("bad.jsonl: line 1: got"));
  EXPECT_THAT(Error(Of("all", Write("b2.jsonl", "\n{\"prompt\": \"x\", \"answers\": [1]}\n"))),
              HasSubstr("line 2: answers"));
  EXPECT_THAT(Error(Of("all", Write("empty.jsonl", "\n"))), HasSubstr("got no prompt"));
  EXPECT_THAT(Error(Of("all", Write("short.txt", "Too short."))), HasSubstr("got no prompt"));
  CalibrateCommandOptions nowhere = Of("all", good);
  nowhere.model = Path("no-model");
  EXPECT_THAT(Error(nowhere), HasSubstr("no-model"));
  EXPECT_THAT(Error(Of("channels", good, Path("no/such/file"))), HasSubstr("--out: got"));
  // Tables that need more than these prompts have.
  EXPECT_THAT(Error(Of("duoattention", good)), HasSubstr("\"answers\""));
  EXPECT_THAT(Error(Of("prefill_p", good)), HasSubstr("short prompts"));
}

TEST_F(Calibrate, KeepsTheOtherTablesOfAnExistingFile) {
  const auto shape = EmbeddedShape();
  SparseArtefacts before;
  before.planner_layers = {0, 1, 4};
  const std::string out = Write("tables.json", kvcache::WriteArtefacts(before, shape));
  const std::string data = Write("data.jsonl", "{\"prompt\": \"A few words of a text.\"}\n");
  const SparseArtefacts after = Run(Of("double-sparsity", data, out));
  EXPECT_EQ(after.planner_layers, before.planner_layers);
  EXPECT_EQ(after.channels.size(), 6u * 2 * 64);
  EXPECT_EQ(after.model, "recall-12m");
  EXPECT_FALSE(std::filesystem::exists(out + ".partial"));

  const std::string foreign = Write("foreign.json", "{\"some\": \"file\"}\n");
  std::ostringstream text, err;
  EXPECT_EQ(RunCalibrate(Of("channels", data, foreign), text, err), 2);
  EXPECT_EQ(FileText(foreign), "{\"some\": \"file\"}\n");
}

// Two prompts and two tables; the whole run is in docs/calibration.md.
TEST_F(Calibrate, MakesTheSameBytesAgainAndNearlyTheShippedTables) {
  const auto run = [&](const std::string& name, const std::string& method) {
    CalibrateCommandOptions options = Of(method, kData, Path(name));
    options.prompts = 2;
    return Run(options);
  };
  const SparseArtefacts made = run("a.json", "channels");
  run("b.json", "channels");
  EXPECT_EQ(FileText(Path("a.json")), FileText(Path("b.json")));

  const auto shipped = kvcache::ReadArtefacts(FileText(kShipped), kShipped, EmbeddedShape());
  ASSERT_TRUE(shipped.ok()) << shipped.status().message();
  ASSERT_EQ(made.channels.size(), shipped->channels.size());
  constexpr size_t kTold = 16;  // of 64, in any order
  for (size_t head = 0; head < made.channels.size(); head += 64) {
    const auto best = [&](const SparseArtefacts& artefacts) {
      const auto begin = artefacts.channels.begin() + static_cast<ptrdiff_t>(head);
      return std::set<int16_t>(begin, begin + kTold);
    };
    std::vector<int16_t> both;
    std::ranges::set_intersection(best(made), best(*shipped), std::back_inserter(both));
    EXPECT_GE(both.size(), kTold - 4) << "head " << head / 64;
  }
  const SparseArtefacts scores = run("a.json", "head_scores");
  for (size_t i = 0; i < scores.head_scores.size(); ++i) {
    EXPECT_NEAR(scores.head_scores[i], shipped->head_scores[i], 0.25f) << i;
  }
}

TEST(ShippedTables, AreAllThereAndEveryProfileResolvesForTheEmbeddedModel) {
  const auto shipped = kvcache::ReadArtefacts(FileText(kShipped), kShipped, EmbeddedShape());
  ASSERT_TRUE(shipped.ok()) << shipped.status().message();
  for (uint8_t kind = 0; kind <= static_cast<uint8_t>(ArtefactKind::kThresholds); ++kind) {
    EXPECT_TRUE(shipped->Has(ArtefactKind{kind})) << int{kind};
  }
  // Some kv head retrieves, some does not; else the table says nothing.
  EXPECT_GT(*std::ranges::max_element(shipped->head_scores), 0.3f);
  EXPECT_LT(*std::ranges::min_element(shipped->head_scores), 0.05f);
  const auto profiles = kvcache::ProfileSet::Load(kvcache::ShippedProfiles());
  EXPECT_GE(profiles.set.all().size(), 24u);
  for (const kvcache::SparseProfile& profile : profiles.set.all()) {
    std::ostringstream out, err;
    ShowProfileOptions options;
    options.name = profile.name;
    EXPECT_EQ(RunShowProfile(options, out, err), 0) << err.str();
  }
}

TEST(TablesOf, KnowsTablesProfilesAndMethods) {
  EXPECT_EQ(TablesOf("all")->size(), 7u);
  EXPECT_THAT(*TablesOf("minference"), ElementsAre(ArtefactKind::kPatterns));
  EXPECT_THAT(*TablesOf("lserve"), ElementsAre(ArtefactKind::kHeadScores));
  EXPECT_THAT(*TablesOf("moa"), ElementsAre(ArtefactKind::kSpans));
  EXPECT_THAT(*TablesOf("delta"), ElementsAre(ArtefactKind::kPlannerLayers));
  EXPECT_THAT(*TablesOf("xattention"), ElementsAre(ArtefactKind::kPrefillP));
  EXPECT_THAT(*TablesOf("thresholds"), ElementsAre(ArtefactKind::kThresholds));
  EXPECT_FALSE(TablesOf("").ok());
}

}  // namespace
}  // namespace lacuna::server
