// Every shape of configs/shapes can be made, and is what its name says.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>
#include <string>

#include "engine/model/load_model.h"

namespace lacuna::engine {
namespace {

TEST(Shapes, AllParseAndHaveTheirSize) {
  const std::map<std::string, double> billions = {
      {"bench-150m", 0.15}, {"llama-1b", 1.24},  {"llama-8b", 8.03},  {"llama-70b", 70.55},
      {"qwen3-8b", 8.19},   {"qwen3-32b", 32.8}, {"gemma3-12b", 11.8}};
  size_t seen = 0;
  for (const auto& entry : std::filesystem::directory_iterator("configs/shapes")) {
    const auto config = ReadShape(entry.path().string());
    ASSERT_TRUE(config.ok()) << entry.path() << ": " << config.status().ToString();
    const double hidden = static_cast<double>(config->hidden);
    const double heads =
        static_cast<double>((2 * config->q_heads + 2 * config->kv_heads) * config->head_dim);
    const double layer = hidden * (heads + 3.0 * static_cast<double>(config->ffn));
    const double vocab = static_cast<double>(config->vocab_size) * hidden;
    const double parameters =
        layer * static_cast<double>(config->layers) + vocab * (config->tied_head ? 1.0 : 2.0);
    const std::string name = entry.path().stem().string();
    ASSERT_TRUE(billions.contains(name)) << name;
    EXPECT_NEAR(parameters / 1e9 / billions.at(name), 1.0, 0.06) << name;
    ++seen;
  }
  EXPECT_EQ(seen, billions.size());
  EXPECT_FALSE(ReadShape("configs/shapes/no-such.json").ok());
  EXPECT_TRUE(ReadShape("tests/data/golden/llama").ok());
}

}  // namespace
}  // namespace lacuna::engine
