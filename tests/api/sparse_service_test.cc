// What requests are granted: plans, dials, dense; and every refusal, word for word.
#include "server/sparse/sparse_service.h"

#include <gtest/gtest.h>

#include <limits>
#include <set>
#include <thread>

#include "kvcache/sparse/plan_storage.h"
#include "tests/kvcache/sparse_test_models.h"

namespace lacuna::server {
namespace {

const kvcache::ProfileSet& Shipped() {
  static const kvcache::ProfileSet kSet = kvcache::ProfileSet::Load(kvcache::ShippedProfiles()).set;
  return kSet;
}

SparseService::Model ModelWith(bool artefacts) {
  SparseService::Model model;
  model.shape = kvcache::Recall12m();
  if (artefacts) {
    model.artefacts = ArtefactText{
        "test", kvcache::WriteArtefacts(kvcache::MakeArtefacts(model.shape), model.shape)};
  }
  model.has_sparse_ops = true;
  model.backend = "cpu";
  return model;
}

std::unique_ptr<SparseService> Make(const SparseConfig& config = {}, bool artefacts = true) {
  auto service = SparseService::Create(config, Shipped(), ModelWith(artefacts));
  EXPECT_TRUE(service.ok()) << service.status().message();
  return service.ok() ? std::move(*service) : nullptr;
}

SparseAsk Ask(const std::string& profile, std::vector<kvcache::DialValue> dials = {}) {
  SparseAsk ask;
  ask.profile = profile;
  ask.dials = std::move(dials);
  return ask;
}

// "key: message", or "" when granted.
std::string Refusal(const SparseService& service, const SparseAsk& ask) {
  const SparseGrant grant = service.Grant(ask);
  if (!grant.refusal) return "";
  EXPECT_EQ(grant.options.plan, nullptr);
  return grant.refusal->key + ": " + grant.refusal->message;
}

bool Served(const SparseService& service, const std::string& name) {
  for (const ProfileInfo& info : service.profiles()) {
    if (info.name == name) return true;
  }
  return false;
}

std::string ReasonOf(const SparseService& service, const std::string& name) {
  for (const SparseService::LeftOut& one : service.left_out()) {
    if (one.name == name) return one.reason;
  }
  return "";
}

// A prompt is computed in chunks of whole cells, so a cell fits a step; changed dials too.
TEST(SparseService, CellsFitTheEnginesSteps) {
  SparseService::Model model = ModelWith(true);
  for (const auto& [step_tokens, cell_tokens] :
       {std::pair{1500, 1024}, {2048, 2048}, {9000, 4096}}) {
    model.step_tokens_max = step_tokens;
    const auto service = std::move(*SparseService::Create({}, Shipped(), model));
    EXPECT_EQ(service->Grant(Ask("minference")).options.plan->prefill.cell_tokens, cell_tokens);
    EXPECT_EQ(service->Grant(Ask("flexprefill", {{"prefill_top_p", 0.8}}))
                  .options.plan->prefill.cell_tokens,
              cell_tokens);
  }
}

TEST(SparseService, AllProfilesThatTheModelCanRun) {
  const auto all = Make();
  EXPECT_EQ(all->profiles().size(), Shipped().all().size());
  EXPECT_EQ(all->plans().size(), Shipped().all().size());
  EXPECT_TRUE(all->left_out().empty());
  EXPECT_EQ(all->default_profile(), "dense");

  const auto bare = Make({}, /*artefacts=*/false);
  EXPECT_TRUE(Served(*bare, "quest"));
  EXPECT_FALSE(Served(*bare, "duoattention"));
  EXPECT_NE(ReasonOf(*bare, "duoattention").find("artefacts.head_scores: got "), std::string::npos)
      << ReasonOf(*bare, "duoattention");
  EXPECT_EQ(bare->profiles().size() + bare->left_out().size(), Shipped().all().size());
}

TEST(SparseService, BrokenArtefactsLeaveOutWhatNeedsThem) {
  SparseService::Model model = ModelWith(false);
  model.artefacts = ArtefactText{"broken.json", R"({"format": "lacuna-sparse-artefacts"})"};
  auto service = SparseService::Create({}, Shipped(), model);
  ASSERT_TRUE(service.ok());
  EXPECT_TRUE(Served(**service, "quest"));
  EXPECT_NE(ReasonOf(**service, "moa").find("broken.json"), std::string::npos);
}

TEST(SparseService, ANamedListAndTheDefault) {
  SparseConfig config;
  config.profile = "lacuna-balanced";
  config.profiles = {"quest"};
  const auto service = Make(config);
  EXPECT_EQ(service->plans().size(), 2u);
  EXPECT_EQ(service->Grant({}).profile, "lacuna-balanced");
  EXPECT_EQ(service->Grant({}).options.plan->name, "lacuna-balanced");
  EXPECT_EQ(service->Grant(Ask("quest")).options.plan->name, "quest");
  EXPECT_EQ(Refusal(*service, Ask("minference")),
            R"(profile: got "minference", need one of dense, lacuna-balanced, quest.)");
  EXPECT_EQ(service->Grant(Ask("dense")).options.plan, nullptr);
  SparseAsk dense;
  dense.dense = true;
  EXPECT_EQ(service->Grant(dense).options.plan, nullptr);
  EXPECT_EQ(service->Grant(dense).profile, "dense");
  for (const ProfileInfo& info : service->profiles()) {
    EXPECT_EQ(info.is_default, info.name == "lacuna-balanced");
  }
}

TEST(SparseService, NoListLeavesDenseAlone) {
  SparseConfig config;
  config.profiles = {};
  const auto service = Make(config);
  EXPECT_TRUE(service->plans().empty());
  EXPECT_EQ(Refusal(*service, Ask("quest")), R"(profile: got "quest", need one of dense.)");
  EXPECT_EQ(service->metadata_share(), 0.0);
}

TEST(SparseService, DialsChangeThePlanAndEqualRequestsShareIt) {
  const auto service = Make();
  const auto plain = service->Grant(Ask("quest")).options.plan;
  const auto small =
      service->Grant(Ask("quest", {{"budget_tokens", 512}, {"sink_tokens", 64}})).options.plan;
  ASSERT_NE(small, nullptr);
  EXPECT_EQ(small->decode_dials.budget_tokens, 512);
  EXPECT_EQ(small->path_fingerprint, plain->path_fingerprint);
  EXPECT_NE(small->fingerprint, plain->fingerprint);
  EXPECT_EQ(
      service->Grant(Ask("quest", {{"sink_tokens", 64}, {"budget_tokens", 512}})).options.plan,
      small);
  EXPECT_EQ(service->Grant(Ask("quest")).options.plan, plain);
  EXPECT_EQ(service->plans_cached(), 1);
}

TEST(SparseService, TheCacheOfPlansIsBoundedAndKeepsWhatIsUsed) {
  const auto service = Make();
  const SparseAsk often = Ask("quest", {{"budget_tokens", 320}});
  const auto plan = service->Grant(often).options.plan;
  for (int i = 0; i < 1000; ++i) {
    ASSERT_EQ(Refusal(*service, Ask("quest", {{"budget_tokens", 1024.0 + i}})), "");
    ASSERT_EQ(service->Grant(often).options.plan, plan);
  }
  EXPECT_EQ(service->plans_cached(), 256);
}

TEST(SparseService, RefusedDialsAreNotCached) {
  const auto service = Make();
  EXPECT_NE(Refusal(*service, Ask("quest", {{"budget_tokens", -1}})), "");
  EXPECT_EQ(service->plans_cached(), 0);
}

TEST(SparseService, RefusalsSayWhatExists) {
  const auto service = Make();
  const std::string typo = Refusal(*service, Ask("qest"));
  EXPECT_TRUE(
      typo.starts_with(R"(profile: got "qest", need quest (the nearest), or one of dense, )"))
      << typo;
  EXPECT_NE(typo.find(", xattention."), std::string::npos) << typo;
  EXPECT_EQ(Refusal(*service, Ask("quest", {{"top_p", 0.5}})),
            "top_p: got a dial that this profile lacks, need one of budget_tokens, "
            "budget_fraction, sink_tokens, local_tokens, dense_below_tokens (profile quest).");
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double bad : {-1.0, 0.5, 1e300, nan, std::numeric_limits<double>::infinity()}) {
    const std::string text = Refusal(*service, Ask("quest", {{"budget_tokens", bad}}));
    EXPECT_TRUE(text.starts_with("budget_tokens: got ")) << text;
    EXPECT_NE(text.find("need a whole number from 0 to "), std::string::npos) << text;
  }
  EXPECT_TRUE(Refusal(*service, Ask("quest", {{"budget_tokens", 64}, {"budget_fraction", 0.1}}))
                  .starts_with("budget_fraction: got budget_tokens too"));
  // What only the checker knows is told under the dial that caused it.
  const std::string below = Refusal(*service, Ask("quest", {{"budget_tokens", 0}}));
  EXPECT_TRUE(below.starts_with("budget_tokens: ")) << below;
}

TEST(SparseService, ContradictionsAreRefused) {
  const auto service = Make();
  SparseAsk ask = Ask("quest");
  ask.dense = true;
  EXPECT_EQ(Refusal(*service, ask), "mode: got dense beside a profile, need one of the two.");
  ask = Ask("dense", {{"budget_tokens", 512}});
  EXPECT_EQ(Refusal(*service, ask), "budget_tokens: has no meaning for dense attention.");
  ask = Ask("", {{"budget_tokens", 512}});
  EXPECT_EQ(Refusal(*service, ask),
            "budget_tokens: needs a profile: this server's default is dense.");
  ask = Ask("");
  ask.audit_fraction = 0.5;
  EXPECT_TRUE(Refusal(*service, ask).starts_with("audit_fraction: needs a profile"));
  ask = Ask("quest");
  ask.mass_floor = 0.9;
  EXPECT_EQ(Refusal(*service, ask), "mass_floor: needs an audit_fraction above 0.");
  ask.audit_fraction = 2;
  EXPECT_EQ(Refusal(*service, ask), "audit_fraction: need a number from 0 to 1.");
}

TEST(SparseService, AuditsOfTheServerAndOfARequest) {
  SparseConfig config;
  config.profile = "quest";
  config.audit_fraction = 0.25;
  config.mass_floor = 0.5;
  const auto service = Make(config);
  SparseAsk ask;
  EXPECT_EQ(service->Grant(ask).options.audit_fraction, 0.25);
  EXPECT_EQ(service->Grant(ask).options.mass_floor, 0.5);
  ask.mass_floor = 0.0;
  EXPECT_EQ(service->Grant(ask).options.mass_floor, 0.0);
  ask = {};
  ask.audit_fraction = 0.0;  // no audits, so the server's floor cannot hold
  EXPECT_EQ(service->Grant(ask).options.audit_fraction, 0.0);
  EXPECT_EQ(service->Grant(ask).options.mass_floor, 0.0);
  ask = Ask("dense");
  EXPECT_EQ(service->Grant(ask).options.audit_fraction, 0.0);
}

TEST(SparseService, ABackendWithoutSparseOpsNeverAnswersDenselyInstead) {
  SparseService::Model model = ModelWith(true);
  model.has_sparse_ops = false;
  model.backend = "cuda";
  auto service = SparseService::Create({}, Shipped(), model);
  ASSERT_TRUE(service.ok());
  EXPECT_TRUE((*service)->plans().empty());
  EXPECT_EQ(Refusal(**service, Ask("quest")), "profile: the backend cuda has no sparse attention.");
  EXPECT_TRUE((*service)->Grant(Ask("quest")).refusal->unsupported);
  EXPECT_EQ(Refusal(**service, Ask("dense")), "");
  EXPECT_EQ(Refusal(**service, {}), "");
  SparseConfig config;
  config.profile = "quest";
  const auto refused = SparseService::Create(config, Shipped(), model);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().message(),
            R"(sparse.profile: got "quest", need dense: the backend cuda has no sparse attention)");
}

TEST(SparseService, ADefaultThatTheModelCannotRunIsAnError) {
  SparseConfig config;
  config.profile = "moa";
  const auto service = SparseService::Create(config, Shipped(), ModelWith(false));
  ASSERT_FALSE(service.ok());
  EXPECT_TRUE(service.status().message().starts_with(
      R"(sparse.profile: got "moa", need a profile that this model can run (of this one: )"))
      << service.status().message();
  config.profile = "nobody";
  EXPECT_FALSE(SparseService::Create(config, Shipped(), ModelWith(false)).ok());
}

TEST(SparseService, DroppedStreamingHeadsBindEveryRequest) {
  SparseConfig config;
  config.profile = "duoattention";
  config.store_streaming_heads = false;
  const auto service = Make(config);
  ASSERT_NE(service->residency(), nullptr);
  EXPECT_EQ(service->residency()->name, "duoattention");
  EXPECT_FALSE(service->dense_allowed());
  for (const auto& plan : service->plans()) EXPECT_EQ(plan->heads, service->residency()->heads);
  EXPECT_EQ(Refusal(*service, {}), "");
  EXPECT_NE(Refusal(*service, Ask("quest")).find("store_streaming_heads"), std::string::npos);
  SparseAsk dense;
  dense.dense = true;
  EXPECT_TRUE(Refusal(*service, dense).starts_with("mode: this server drops tokens"));
  EXPECT_TRUE(Refusal(*service, Ask("dense")).starts_with("profile: this server drops tokens"));

  config.profile = "quest";  // has none
  const auto none = SparseService::Create(config, Shipped(), ModelWith(true));
  ASSERT_FALSE(none.ok());
  EXPECT_TRUE(none.status().message().starts_with("sparse.store_streaming_heads: got false"));
}

TEST(SparseService, MetadataCostsWhatItsStoresHold) {
  SparseConfig config;
  config.profiles = {"quest"};
  const auto service = Make(config);
  const kvcache::SparsePlan& plan = *service->plans().front();
  // 2 keys and values of bf16 per channel, all layers.
  const double kv = 2.0 * 2 * 64 * plan.shape.kv_heads * plan.shape.layers;
  EXPECT_NEAR(service->metadata_share(), kvcache::MetadataBytesPerToken(plan) / kv, 0.01);
  EXPECT_GT(service->metadata_share(), 0.0);
  EXPECT_GT(Make()->metadata_share(), service->metadata_share());
}

TEST(SparseService, DialsOfAProfileWithTheirBounds) {
  const auto service = Make();
  for (const ProfileInfo& info : service->profiles()) {
    EXPECT_FALSE(info.summary.empty()) << info.name;
    std::set<std::string_view> names;
    for (const ProfileInfo::Dial& dial : info.dials) {
      EXPECT_TRUE(names.insert(dial.name).second) << info.name << " " << dial.name;
      EXPECT_GE(dial.value, dial.min) << info.name << " " << dial.name;
      EXPECT_LE(dial.value, dial.max) << info.name << " " << dial.name;
    }
    if (info.name == "quest") {
      EXPECT_TRUE(names.contains("budget_tokens"));
    }
  }
}

TEST(SparseService, ManyThreads) {
  const auto service = Make();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&service] {
      for (int i = 0; i < 500; ++i) {
        const SparseGrant grant =
            service->Grant(Ask("quest", {{"budget_tokens", 1024.0 + i % 300}}));
        EXPECT_FALSE(grant.refusal);
        EXPECT_EQ(grant.options.plan->decode_dials.budget_tokens, 1024 + i % 300);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_LE(service->plans_cached(), 256);
}

}  // namespace
}  // namespace lacuna::server
