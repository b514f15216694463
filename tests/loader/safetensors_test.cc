#include "engine/loader/safetensors.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/loader/safetensors_bytes.h"

namespace lacuna::engine {
namespace {

std::string ErrorOf(const std::string& header, size_t data_bytes) {
  const std::vector<std::byte> bytes = SafetensorsBytes(header, data_bytes);
  const auto result = ParseSafetensors(bytes, "f.safetensors");
  EXPECT_FALSE(result.ok());
  return result.status().message();
}

TEST(Safetensors, ReadsEntriesInTheOrderOfTheirBytes) {
  const std::vector<std::byte> bytes = SafetensorsBytes(
      R"({"__metadata__": {"format": "pt"},
          "b": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
          "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [4, 16]},
          "n": {"dtype": "I64", "shape": [0], "data_offsets": [16, 16]}})",
      16);
  const auto result = ParseSafetensors(bytes, "f.safetensors");
  ASSERT_TRUE(result.ok()) << result.status().ToString();
  ASSERT_EQ(result->size(), 3u);
  EXPECT_EQ((*result)[0].name, "b");
  EXPECT_EQ((*result)[1].name, "a");
  EXPECT_EQ((*result)[1].dtype, DType::kBF16);
  EXPECT_EQ((*result)[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ((*result)[1].bytes.size(), 12u);
  EXPECT_EQ((*result)[1].bytes.data() + 12, bytes.data() + bytes.size());
  EXPECT_FALSE((*result)[2].dtype.has_value());
}

TEST(Safetensors, NamesFileTensorExpectedAndFound) {
  EXPECT_EQ(ErrorOf(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})", 4),
            "f.safetensors: tensor a: expected 8 bytes of data, found 4: truncated");
  EXPECT_EQ(ErrorOf(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}})",
                    12),
            "f.safetensors: tensor b: expected to begin at byte 8, overlaps at 4");
  EXPECT_EQ(ErrorOf(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                        "b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}})",
                    16),
            "f.safetensors: tensor b: expected to begin at byte 8, leaves a gap to 12");
  EXPECT_EQ(ErrorOf(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})", 9),
            "f.safetensors: expected 8 bytes of tensors, found 9");
  EXPECT_EQ(ErrorOf(R"({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}})", 8),
            "f.safetensors: tensor \"a\": expected 12 bytes for its shape, found 8");
  EXPECT_EQ(ErrorOf(R"({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}})", 8),
            "f.safetensors: tensor \"a\": expected a known dtype, found \"F4\"");
  EXPECT_EQ(ErrorOf(R"({"a": {}, "a": {}})", 0), "f.safetensors: key \"a\" stands twice");
}

TEST(Safetensors, SizesNeverOverflow) {
  const std::string big = "9223372036854775807";
  EXPECT_NE(ErrorOf(R"({"a": {"dtype": "F32", "shape": [)" + big + "," + big +
                        R"(], "data_offsets": [0, 8]}})",
                    8)
                .find("more than 2^63"),
            std::string::npos);
  ErrorOf(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [18446744073709551608, 0]}})", 8);
  ErrorOf(R"({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}})", 8);
  ErrorOf(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}})", 8);
  ErrorOf(R"({"a": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}})", 8);
  ErrorOf(R"({"a": {"dtype": "U8", "shape": [)" + big + R"(], "data_offsets": [0, )" + big + "]}}",
          8);
}

TEST(Safetensors, HeaderLengthIsBounded) {
  std::vector<std::byte> bytes = SafetensorsBytes("{}", 0);
  ASSERT_TRUE(ParseSafetensors(bytes, "f").ok());
  for (const uint64_t length : {uint64_t{9}, uint64_t{1} << 40, ~uint64_t{0}}) {
    std::memcpy(bytes.data(), &length, sizeof(length));
    const auto result = ParseSafetensors(bytes, "f");
    ASSERT_FALSE(result.ok());
    EXPECT_NE(result.status().message().find("header of at most 8 bytes"), std::string::npos);
  }
  EXPECT_FALSE(ParseSafetensors(std::span(bytes).first(7), "f").ok());
  EXPECT_FALSE(ParseSafetensors({}, "f").ok());
}

TEST(Safetensors, DepthAndShapeAreBounded) {
  ErrorOf(std::string(100'000, '['), 0);
  ErrorOf(R"({"a": )" + std::string(100'000, '{'), 0);
  ErrorOf("[]", 0);
  ErrorOf(R"({"a": {"dtype": "F32", "shape": [1,1,1,1,1,1,1,1,1], "data_offsets": [0, 4]}})", 4);
  ErrorOf(R"({"a": 7})", 0);
  ErrorOf(R"({"a": {"dtype": 1, "shape": [1], "data_offsets": [0, 4]}})", 4);
}

TEST(Safetensors, DataMustBeAligned) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} )";
  const uint64_t length = header.size();
  ASSERT_NE(length % 4, 0u);
  std::vector<std::byte> bytes(8 + length + 4);
  std::memcpy(bytes.data(), &length, 8);
  std::memcpy(bytes.data() + 8, header.data(), length);
  const auto result = ParseSafetensors(bytes, "f");
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.status().message().find("aligned"), std::string::npos);
}

TEST(Safetensors, EveryCutOfAGoodFileIsAnError) {
  const std::vector<std::byte> bytes =
      SafetensorsBytes(R"({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}})", 24);
  ASSERT_TRUE(ParseSafetensors(bytes, "f").ok());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(ParseSafetensors(std::span(bytes).first(size), "f").ok()) << size;
  }
}

}  // namespace
}  // namespace lacuna::engine
