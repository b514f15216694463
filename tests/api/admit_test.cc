#include "server/admit/admit.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

namespace lacuna::server {
namespace {

constexpr const char* kKey = "key-one-0123456789";

class AdmitTest : public ::testing::Test {
 protected:
  void Write(const std::string& text) { std::ofstream(path_) << text; }
  std::unique_ptr<Admit> Make(double rate_per_s = 0.0) {
    AdmitOptions options;
    options.api_keys_file = path_;
    options.rate_per_s = rate_per_s;
    options.rate_burst = 2;
    auto admit = Admit::Create(options, clock_);
    EXPECT_TRUE(admit.ok()) << admit.status().message();
    return admit.ok() ? std::move(*admit) : nullptr;
  }
  void TearDown() override { std::remove(path_.c_str()); }

  ManualClock clock_;
  const std::string path_ = ::testing::TempDir() + "admit_test_keys";
};

TEST_F(AdmitTest, KeysAndScopes) {
  Write("# keys\n" + std::string(kKey) + "\r\n\nsecond-key-0123456789\n");
  const auto admit = Make();
  const auto one = admit->Authenticate("Bearer " + std::string(kKey));
  const auto two = admit->Authenticate("bearer second-key-0123456789");
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_NE(one->scope, two->scope);
  EXPECT_EQ(one->scope, admit->Authenticate("Bearer " + std::string(kKey))->scope);
  const Status missing = admit->Authenticate("").status();
  for (const char* bad :
       {"Bearer", "Bearer ", "Basic key-one-0123456789", "key-one-0123456789",
        "Bearer key-one-012345678", "Bearer key-one-01234567890", "Bearer  key-one-0123456789"}) {
    const auto refused = admit->Authenticate(bad);
    EXPECT_EQ(refused.status().code(), StatusCode::kUnauthenticated) << bad;
    EXPECT_EQ(refused.status(), missing) << "the text must not tell why";
  }
}

TEST_F(AdmitTest, DigestLine) {
  const Digest digest = Sha256(kKey);
  std::string hex;
  for (const uint8_t byte : digest) {
    char text[3];
    std::snprintf(text, sizeof text, "%02x", byte);
    hex += text;
  }
  Write("sha256:" + hex + "\n");
  EXPECT_TRUE(Make()->Authenticate("Bearer " + std::string(kKey)).ok());
}

TEST_F(AdmitTest, BadFiles) {
  for (const char* text : {"", "# none\n", "short\n", "sha256:12\n", "with space 0123456789\n"}) {
    EXPECT_FALSE(KeyTable::Parse(text).ok()) << text;
  }
  EXPECT_EQ(KeyTable::Parse("aaaaaaaaaaaaaaaa\nshort").status().message().find("line 2"), 0u);
}

TEST_F(AdmitTest, ReloadKeepsOldKeysOnError) {
  Write(kKey);
  const auto admit = Make();
  Write("short");
  EXPECT_FALSE(admit->Reload().ok());
  EXPECT_TRUE(admit->Authenticate("Bearer " + std::string(kKey)).ok());
  Write("another-key-0123456789");
  EXPECT_TRUE(admit->Reload().ok());
  EXPECT_FALSE(admit->Authenticate("Bearer " + std::string(kKey)).ok());
}

TEST_F(AdmitTest, RatePerKey) {
  Write(std::string(kKey) + "\nsecond-key-0123456789\n");
  const auto admit = Make(0.5);
  const Caller one = *admit->Authenticate("Bearer " + std::string(kKey));
  const Caller two = *admit->Authenticate("Bearer second-key-0123456789");
  EXPECT_EQ(admit->TakeRate(one), 0);
  EXPECT_EQ(admit->TakeRate(one), 0);
  EXPECT_EQ(admit->TakeRate(one), 2);
  EXPECT_EQ(admit->TakeRate(two), 0);
  clock_.Advance(std::chrono::seconds(2));
  EXPECT_EQ(admit->TakeRate(one), 0);
  EXPECT_GT(admit->TakeRate(one), 0);
}

TEST_F(AdmitTest, NoKeysMeansOneScope) {
  auto admit = Admit::Create({}, clock_);
  ASSERT_TRUE(admit.ok());
  EXPECT_EQ((*admit)->Authenticate("Bearer EMPTY")->scope, (*admit)->Authenticate("")->scope);
  const CacheScope scope = (*admit)->Authenticate("")->scope;
  EXPECT_EQ((*admit)->Salted(scope, ""), scope);
  EXPECT_NE((*admit)->Salted(scope, "a"), (*admit)->Salted(scope, "b"));
}

}  // namespace
}  // namespace lacuna::server
