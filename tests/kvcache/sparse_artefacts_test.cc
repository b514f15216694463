// Artefacts as bytes: the container reads back as written, each method's own format is read, and
// what does not fit the model is refused with one line.
#include <gtest/gtest.h>

#include "kvcache/sparse/artefacts.h"
#include "tests/kvcache/sparse_test_models.h"

namespace lacuna::kvcache {
namespace {

constexpr ArtefactKind kAllKinds[] = {ArtefactKind::kHeadScores,    ArtefactKind::kPatterns,
                                      ArtefactKind::kSpans,         ArtefactKind::kChannels,
                                      ArtefactKind::kPlannerLayers, ArtefactKind::kPrefillP,
                                      ArtefactKind::kThresholds};

AttentionShape Tiny() {
  return {.layers = 2,
          .q_heads = 4,
          .kv_heads = 2,
          .head_dim = 4,
          .page_tokens = 64,
          .layer_window_tokens = {}};
}

SparseArtefacts Read(ArtefactKind kind, std::string_view text) {
  SparseArtefacts artefacts;
  const Status status = ReadArtefact(kind, text, "f", Tiny(), artefacts);
  EXPECT_TRUE(status.ok()) << status.message();
  return artefacts;
}

std::string ErrorOf(ArtefactKind kind, std::string_view text) {
  SparseArtefacts artefacts;
  return ReadArtefact(kind, text, "f", Tiny(), artefacts).message();
}

TEST(SparseArtefacts, TheContainerReadsBackAsWritten) {
  for (const AttentionShape& shape : {Recall12m(), Llama8B()}) {
    SparseArtefacts artefacts = MakeArtefacts(shape);
    artefacts.patterns[3].kind = PatternKind::kProfile;  // a head without an entry
    artefacts.patterns[3].a = artefacts.patterns[3].b = 0;
    const std::string text = WriteArtefacts(artefacts, shape);
    const Result<SparseArtefacts> again = ReadArtefacts(text, "f", shape);
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_EQ(*again, artefacts);
    EXPECT_EQ(WriteArtefacts(*again, shape), text);
    for (const ArtefactKind kind : kAllKinds) {  // each kind alone, out of the container
      SparseArtefacts one;
      ASSERT_TRUE(ReadArtefact(kind, text, "f", shape, one).ok());
      EXPECT_TRUE(one.Has(kind));
    }
  }
}

TEST(SparseArtefacts, AbsentTablesStayAbsent) {
  SparseArtefacts artefacts;
  artefacts.planner_layers = {1};
  const auto again = ReadArtefacts(WriteArtefacts(artefacts, Tiny()), "f", Tiny());
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(*again, artefacts);
  EXPECT_FALSE(again->Has(ArtefactKind::kSpans));
  EXPECT_EQ(ErrorOf(ArtefactKind::kSpans, WriteArtefacts(artefacts, Tiny())),
            "f: spans: got nothing, need the table of that name");
}

TEST(SparseArtefacts, DuoAttentionTsv) {
  const std::string text = "1.000000000000000000e+00\t2.5e-01\r\n0\t0.5\n";
  EXPECT_EQ(Read(ArtefactKind::kHeadScores, text).head_scores,
            (std::vector<float>{1, 0.25f, 0, 0.5f}));
  const auto error = [](std::string_view tsv) { return ErrorOf(ArtefactKind::kHeadScores, tsv); };
  EXPECT_EQ(error("1\t2\n0\t0\n"), "f: head_scores[0]: got 2.0, need a number from 0 to 1");
  EXPECT_EQ(error("1\tnan\n0\t0\n"), "f: head_scores[0]: got null, need a number from 0 to 1");
  EXPECT_EQ(error("1\tx\n0\t0\n"), "f: row 0: got \"x\", need a number");
  EXPECT_EQ(error("1\t\n0\t0\n"), "f: row 0: got \"\", need a number");
  EXPECT_EQ(error("1\t1\n"), "f: head_scores: got 1 layers, need 2");
  EXPECT_EQ(error("1\t1\n1\t1\n1\t1\n"), "f: head_scores: got 3 layers, need 2");
  EXPECT_EQ(error("1\n1\n"), "f: head_scores[0]: got 1 heads, need 2");
  EXPECT_EQ(error(""), "f: head_scores: got 0 layers, need 2");
}

TEST(SparseArtefacts, MInferencePatterns) {
  const std::string text = R"([{"0": ["vertical_and_slash", 1000, 6096, 0.97],
                                "2": ["stream_llm", 128, 3968, 1.0]},
                               {"3": ["block_sparse", 100, 0, 0.9]}])";
  const std::vector<HeadPattern> patterns = Read(ArtefactKind::kPatterns, text).patterns;
  ASSERT_EQ(patterns.size(), 8u);
  EXPECT_EQ(patterns[0], (HeadPattern{PatternKind::kVerticalSlash, 1000, 6096}));
  EXPECT_EQ(patterns[1], HeadPattern{});
  EXPECT_EQ(patterns[2], (HeadPattern{PatternKind::kAShape, 128, 3968}));
  EXPECT_EQ(patterns[7], (HeadPattern{PatternKind::kBlocks, 100, 0}));
  const auto error = [](std::string_view json) { return ErrorOf(ArtefactKind::kPatterns, json); };
  EXPECT_EQ(error(R"([{"4": ["block_sparse", 1, 1]}, {}])"),
            "f: patterns[0]: got head \"4\", need 0 to 3");
  EXPECT_EQ(error(R"([{"x": ["block_sparse", 1, 1]}, {}])"),
            "f: patterns[0]: got head \"x\", need 0 to 3");
  EXPECT_EQ(error(R"([{"0": ["grid", 1, 1]}, {}])"),
            "f: patterns[0]: got [\"grid\",1,1], need [vertical_slash, a_shape or blocks, size, "
            "size]");
  EXPECT_EQ(error(R"([{"0": ["block_sparse", -1, 1]}, {}])"),
            "f: patterns[0]: got [\"block_sparse\",-1,1], need [vertical_slash, a_shape or blocks, "
            "size, size]");
}

TEST(SparseArtefacts, MoaSpans) {
  const std::string text = R"({"alphas": [[0, -1024, 0, 0], [0, 0, 0, 2048]],
                               "betas": [[0.125, 1, 0.5, 0], [0, 0, 0, 0.25]]})";
  const std::vector<HeadSpan> spans = Read(ArtefactKind::kSpans, text).spans;
  ASSERT_EQ(spans.size(), 8u);
  EXPECT_EQ(spans[1], (HeadSpan{-1024, 1}));
  EXPECT_EQ(spans[7], (HeadSpan{2048, 0.25f}));
  EXPECT_EQ(ErrorOf(ArtefactKind::kSpans, "[1]"),
            R"(f: spans: got [1], need {"alphas": [...], "betas": [...]})");
  EXPECT_EQ(ErrorOf(ArtefactKind::kSpans, R"({"alphas": [], "betas": []})"),
            "f: spans.alphas: got 0 layers, need 2");
}

TEST(SparseArtefacts, DoubleSparsityChannels) {
  // Two kv heads as they are, the others merged from their query heads by the sum of ranks; lists
  // that end early go on with the channels they lack.
  const std::string text = R"({
    "model.layers.0.self_attn.k_proj": [[3, 1], [0, 1, 2, 3]],
    "model.layers.1.self_attn.qk_proj": [[3, 2, 1, 0], [3, 0, 1, 2], [0, 1, 2, 3], [1, 0, 2, 3]]})";
  EXPECT_EQ(Read(ArtefactKind::kChannels, text).channels,
            (std::vector<int16_t>{3, 1, 0, 2, /**/ 0, 1, 2, 3, /**/ 3, 0, 1, 2, /**/ 0, 1, 2, 3}));
  EXPECT_EQ(ErrorOf(ArtefactKind::kChannels, R"({"model.layers.0.self_attn.k_proj": [[0], [4]]})"),
            "f: model.layers.1.self_attn.qk_proj: got no list, need a list of channels per kv head "
            "or per query head");
  EXPECT_EQ(ErrorOf(ArtefactKind::kChannels, R"({"model.layers.0.self_attn.k_proj": [[0], [4]],
                                                 "model.layers.1.self_attn.k_proj": [[0], [0]]})"),
            "f: channels[0]: got 4, need each channel from 0 to 3 at most once");
  EXPECT_EQ(ErrorOf(ArtefactKind::kChannels, R"({"model.layers.0.self_attn.k_proj": [[0, 0], [1]],
                                                 "model.layers.1.self_attn.k_proj": [[0], [0]]})"),
            "f: channels[0]: got 0, need each channel from 0 to 3 at most once");
}

TEST(SparseArtefacts, PlannerLayersAndPerHeadNumbers) {
  EXPECT_EQ(Read(ArtefactKind::kPlannerLayers, "[0, 1]").planner_layers,
            (std::vector<int32_t>{0, 1}));
  EXPECT_EQ(ErrorOf(ArtefactKind::kPlannerLayers, "[1, 0]"),
            "f: planner_layers: got 0, need ascending layers from 0 to 1");
  EXPECT_EQ(ErrorOf(ArtefactKind::kPlannerLayers, "[2]"),
            "f: planner_layers: got 2, need ascending layers from 0 to 1");
  EXPECT_EQ(ErrorOf(ArtefactKind::kPlannerLayers, "[]"),
            "f: planner_layers: got no layer, need at least one");
  EXPECT_EQ(Read(ArtefactKind::kThresholds, "[[1, 2, 3, 4], [-5, 6, 7, 8]]").thresholds[4], -5.0f);
  EXPECT_EQ(ErrorOf(ArtefactKind::kPrefillP, "[[1, 1, 1, 1], [1, 1, 1, 1.5]]"),
            "f: prefill_p[1]: got 1.5, need a number from 0 to 1");
}

TEST(SparseArtefacts, OtherModelsAndBrokenFiles) {
  const std::string text = WriteArtefacts(MakeArtefacts(Tiny()), Tiny());
  EXPECT_EQ(ReadArtefacts(text, "f", Recall12m()).status().message(), "f: layers: got 2, need 6");
  EXPECT_EQ(ReadArtefacts("{}", "f", Tiny()).status().message(),
            "f: format: got something else, need \"lacuna-sparse-artefacts\"");
  EXPECT_EQ(ReadArtefacts(R"({"format": "lacuna-sparse-artefacts", "version": 2})", "f", Tiny())
                .status()
                .message(),
            "f: version: got 2, need 1");
  EXPECT_FALSE(ReadArtefacts(std::string(1000, '['), "f", Tiny()).ok());
  for (size_t bytes = 0; bytes + 2 < text.size(); bytes += 7) {  // cut short anywhere
    EXPECT_FALSE(ReadArtefacts(text.substr(0, bytes), "f", Tiny()).ok());
  }
  for (const ArtefactKind kind : kAllKinds) {
    for (const char* json : {"", "0", "null", "{}", "[[]]", "[{}]", "[[[[]]]]", "\"x\""}) {
      EXPECT_NE(ErrorOf(kind, json), "") << json;
    }
  }
}

}  // namespace
}  // namespace lacuna::kvcache
