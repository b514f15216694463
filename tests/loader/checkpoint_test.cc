#include "engine/loader/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "tests/loader/safetensors_bytes.h"

namespace lacuna::engine {
namespace {

namespace fs = std::filesystem;

class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::path(testing::TempDir()) /
            (std::string("checkpoint_") +
             testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(root_);
    fs::create_directories(root_ / "model");
  }
  void TearDown() override { fs::remove_all(root_); }

  void Write(const std::string& name, const std::string& text) {
    std::ofstream(root_ / "model" / name, std::ios::binary) << text;
  }
  // One tensor [2, 3] F32.
  void WriteShard(const std::string& name, const std::string& tensor,
                  const std::string& dtype = "F32") {
    const std::string bytes = dtype == "F32" ? "24" : "48";
    const std::vector<std::byte> file =
        SafetensorsBytes("{\"" + tensor + "\": {\"dtype\": \"" + dtype +
                             "\", \"shape\": [2, 3], \"data_offsets\": [0, " + bytes + "]}}",
                         std::stoul(bytes));
    Write(name, std::string(reinterpret_cast<const char*>(file.data()), file.size()));
  }
  Result<std::unique_ptr<Checkpoint>> Open() {
    Result<std::unique_ptr<Folder>> folder = Folder::Open((root_ / "model").string());
    if (!folder.ok()) return folder.status();
    return Checkpoint::Open(**folder);
  }
  std::string OpenError() {
    const auto result = Open();
    EXPECT_FALSE(result.ok());
    return result.status().message();
  }
  void WriteIndex(const std::string& map) {
    Write("model.safetensors.index.json", "{\"weight_map\": " + map + "}");
  }

  fs::path root_;
};

TEST_F(CheckpointTest, SingleFile) {
  WriteShard("model.safetensors", "a.weight");
  auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  EXPECT_EQ((*checkpoint)->bytes(), 24);
  EXPECT_TRUE((*checkpoint)->Get("a.weight", {2, 3}).ok());
  EXPECT_EQ((*checkpoint)->Get("a.weight", {3, 2}).status().message(),
            "model.safetensors: tensor a.weight: expected [3, 2], found [2, 3]");
  EXPECT_EQ((*checkpoint)->Get("b.weight", {3}).status().message(),
            "model.safetensors: tensor b.weight: expected [3], found none");
  EXPECT_TRUE((*checkpoint)->CheckAllUsed("X").ok());
}

TEST_F(CheckpointTest, UnusedTensorsAreErrors) {
  WriteShard("model.safetensors", "extra.weight");
  EXPECT_EQ((*Open())->CheckAllUsed("XForCausalLM").message(),
            "model.safetensors: tensor extra.weight: expected none of that name in XForCausalLM, "
            "found [2, 3]");
  WriteShard("model.safetensors", "model.layers.0.self_attn.rotary_emb.inv_freq");
  EXPECT_TRUE((*Open())->CheckAllUsed("XForCausalLM").ok());
}

TEST_F(CheckpointTest, Shards) {
  WriteShard("one.safetensors", "a");
  WriteShard("two.safetensors", "b");
  WriteIndex(R"({"a": "one.safetensors", "b": "two.safetensors"})");
  auto checkpoint = Open();
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().ToString();
  EXPECT_TRUE((*checkpoint)->Get("b", {2, 3}).ok());
  WriteIndex(R"({"a": "one.safetensors", "b": "one.safetensors"})");
  EXPECT_EQ(OpenError(),
            "model.safetensors.index.json: tensor b: expected in one.safetensors, "
            "found nowhere");
  WriteIndex(R"({"a": "one.safetensors", "b": "three.safetensors"})");
  EXPECT_EQ(OpenError(), "three.safetensors: no such file");
  WriteShard("two.safetensors", "a");
  WriteIndex(R"({"a": "one.safetensors", "b": "two.safetensors"})");
  EXPECT_EQ(OpenError(), "two.safetensors: tensor a: expected once, found in one.safetensors too");
  WriteIndex(R"({"a": 1})");
  EXPECT_EQ(OpenError(), "model.safetensors.index.json: a: expected a file name, found 1");
}

TEST_F(CheckpointTest, OtherDtypesAreErrors) {
  WriteShard("model.safetensors", "a", "I64");
  EXPECT_EQ((*Open())->Get("a", {2, 3}).status().message(),
            "model.safetensors: tensor a: expected F32, BF16 or F16, found I64");
}

TEST_F(CheckpointTest, NothingOutsideTheFolderIsOpened) {
  const fs::path model = root_ / "model";
  WriteShard("real.safetensors", "a");
  fs::copy_file(model / "real.safetensors", root_ / "secret.safetensors");
  for (const std::string name : {"../secret.safetensors", "..", ".", "", "/etc/passwd",
                                 "sub/one.safetensors", "..\\\\secret.safetensors"}) {
    WriteIndex("{\"a\": \"" + name + "\"}");
    EXPECT_NE(OpenError().find("expected a plain file name, found a path"), std::string::npos)
        << name;
  }
  fs::remove(model / "model.safetensors.index.json");
  fs::create_symlink("../secret.safetensors", model / "model.safetensors");
  EXPECT_EQ(OpenError(), "model.safetensors: expected a file in the folder, found a link out");
  fs::remove(model / "model.safetensors");
  fs::create_symlink("real.safetensors", model / "model.safetensors");
  EXPECT_TRUE(Open().ok());
}

TEST_F(CheckpointTest, OddFilesAreErrors) {
  const fs::path file = root_ / "model" / "model.safetensors";
  EXPECT_EQ(OpenError(), "model.safetensors: no such file");
  fs::create_directory(file);
  EXPECT_NE(OpenError().find("expected a plain file"), std::string::npos);
  fs::remove(file);
  ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);
  EXPECT_NE(OpenError().find("expected a plain file"), std::string::npos);
  fs::remove(file);
  Write("model.safetensors", "");
  EXPECT_EQ(OpenError(), "model.safetensors: expected at least 8 bytes, found 0");
  const auto folder = Folder::Open((root_ / "none").string());
  EXPECT_EQ(folder.status().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace lacuna::engine
