// The house as a test: parses every include of the tree and fails on an edge that the design
// forbids, and on files that have grown two jobs (too many lines). Runs from the root of the
// repository.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace lacuna {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kTops = {"kernels", "kvcache", "engine",
                                        "models",  "server",  "bench"};

// The kernels of an op know those of no other.
const std::set<std::string> kBelowCudaOps = {"kernels/core", "kernels/device", "kernels/ops",
                                             "kernels/cuda"};

// What a folder may include beside itself. "kvcache/pages" names a folder; "engine/*.h" the
// front-door headers that lie directly in a top folder.
const std::map<std::string, std::set<std::string>> kAllowed = {
    {"kernels/core", {}},
    {"kernels/device", {"kernels/core"}},
    {"kernels/ops", {"kernels/core", "kernels/device"}},
    {"kernels/cpu", {"kernels/core", "kernels/device", "kernels/ops"}},
    // A library of its own: kernels/make_backend.cc loads it, and nobody includes it.
    {"kernels/cuda", {"kernels/core", "kernels/device", "kernels/ops"}},
    {"kernels/cuda/append", kBelowCudaOps},
    {"kernels/cuda/attend", kBelowCudaOps},
    {"kernels/cuda/matmul", kBelowCudaOps},
    {"kernels/cuda/ranges", kBelowCudaOps},
    {"kernels/cuda/sample", kBelowCudaOps},
    {"kernels/cuda/select", kBelowCudaOps},
    {"kernels", {"kernels/core", "kernels/device", "kernels/ops", "kernels/cpu"}},
    {"kvcache/pages", {"kernels/core", "kernels/device", "kernels/ops"}},
    {"kvcache/prefix", {"kernels/core", "kvcache/pages"}},
    {"kvcache/sparse", {"kernels/core", "kernels/device", "kernels/ops", "kvcache/pages"}},
    {"kvcache", {"kernels/core", "kvcache/pages", "kvcache/prefix", "kvcache/sparse"}},
    {"engine/loader", {"kernels/core"}},
    {"engine/sample", {"kernels/core", "kernels/ops", "engine"}},
    {"engine/model",
     {"kernels/core", "kernels/device", "kernels/ops", "kvcache/pages", "kvcache/sparse",
      "engine/loader"}},
    {"engine/schedule", {"kernels/core", "kvcache", "kvcache/pages", "kvcache/prefix", "engine"}},
    {"engine/execute",
     {"kernels/core", "kernels/device", "kernels/ops", "kvcache/pages", "kvcache/sparse",
      "engine/model", "engine"}},
    {"engine/calibrate", {"kernels/core", "kvcache/sparse", "engine/model"}},
    {"models", {}},
    {"engine",
     {"kernels", "kernels/core", "kernels/device", "kernels/ops", "kvcache", "kvcache/pages",
      "kvcache/prefix", "kvcache/sparse", "engine/loader", "engine/model", "engine/schedule",
      "engine/execute", "engine/sample"}},
    {"server/text", {"kernels/core"}},
    {"server/admit", {"kernels/core"}},
    {"server/metrics", {"kernels/core", "engine"}},
    {"server/sparse", {"kernels/core", "kvcache/sparse", "engine"}},
    {"server/api",
     {"kernels/core", "engine", "engine/sample", "server/text", "server/admit", "server/metrics",
      "server/sparse"}},
    {"server/http", {"kernels/core", "engine", "server/admit", "server/metrics", "server/api"}},
    {"server/grpc",
     {"kernels/core", "engine", "engine/sample", "server/text", "server/admit", "server/metrics",
      "server/api", "proto"}},
    {"server/config",
     {"kernels", "kernels/core", "kvcache", "engine", "server/admit", "server/api", "server/http",
      "server/grpc", "server/sparse"}},
    {"server/commands", {"*"}},
    {"server", {"*"}},
    {"server/client", {"kernels/core"}},
    {"server/eval", {"kernels/core", "server/client", "server/text"}},
    {"bench/load",
     {"kernels/core", "server/client",
      "server/config"}},  // its config files are read as serve's are
    {"bench/cpu", {"kernels", "kernels/core", "kernels/device", "kernels/ops", "kernels/cpu"}},
    {"bench/gpu",
     {"kernels/core", "kernels/device", "kernels/ops", "kernels/cuda", "kernels/cuda/attend",
      "kernels/cuda/matmul", "kernels/cuda/ranges", "kernels/cuda/select"}},
    {"bench/text", {"kernels/core", "server/text"}},
};

// Files that are one job and longer all the same, with the reason.
const std::map<std::string, std::string> kLong = {};

std::string FolderOf(const fs::path& file) { return file.parent_path().generic_string(); }

std::vector<fs::path> Sources() {
  std::vector<fs::path> files;
  for (const std::string& top : kTops) {
    if (!fs::exists(top)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(top)) {
      const std::string extension = entry.path().extension();
      if (entry.is_regular_file() &&
          (extension == ".h" || extension == ".cc" || extension == ".inl" || extension == ".cu" ||
           extension == ".cuh")) {
        files.push_back(entry.path());
      }
    }
  }
  return files;
}

std::vector<std::string> Lines(const fs::path& path) {
  std::ifstream in(path);
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

TEST(Layers, EveryIncludeIsAnAllowedEdge) {
  const std::regex include(R"re(^\s*#\s*include\s*"([^"]+)")re");
  int edges = 0;
  for (const fs::path& file : Sources()) {
    const std::string from = FolderOf(file);
    const auto allowed = kAllowed.find(from);
    ASSERT_NE(allowed, kAllowed.end()) << from << " is not in the table of layers";
    for (const std::string& line : Lines(file)) {
      std::smatch match;
      if (!std::regex_search(line, match, include)) continue;
      const std::string to = FolderOf(fs::path(match[1].str()));
      const std::string top = to.substr(0, to.find('/'));
      const bool ours = top == "proto" || std::find(kTops.begin(), kTops.end(), top) != kTops.end();
      if (!ours && match[1].str().find("lacuna") == std::string::npos) continue;
      ++edges;
      EXPECT_TRUE(to == from || allowed->second.contains(to) || allowed->second.contains("*") ||
                  (top == "proto" && allowed->second.contains("proto")))
          << file.generic_string() << " may not include " << match[1].str();
    }
  }
  EXPECT_GT(edges, 100) << "the test ran in the wrong folder";
}

// No CUDA above the library that is loaded for it: the rest builds and runs without.
TEST(Layers, OnlyTheCudaFolderKnowsCuda) {
  const std::regex cuda(R"re(^\s*#\s*(include\s*<(cuda|cublas|nccl|cub/)|ifn?def\s+\w*CUDA))re");
  for (const fs::path& file : Sources()) {
    const std::string from = FolderOf(file);
    if (from.starts_with("kernels/cuda") || from == "bench/gpu") continue;
    EXPECT_TRUE(file.extension() != ".cu" && file.extension() != ".cuh") << file.generic_string();
    for (const std::string& line : Lines(file)) {
      EXPECT_FALSE(std::regex_search(line, cuda)) << file.generic_string() << ": " << line;
    }
  }
}

TEST(Layers, NoFileHasGrownTwoJobs) {
  for (const fs::path& file : Sources()) {
    const size_t limit = file.extension() == ".h" ? 200 : 600;
    if (kLong.contains(file.generic_string())) continue;
    EXPECT_LE(Lines(file).size(), limit) << file.generic_string();
  }
}

TEST(Layers, EveryHeaderSaysWhatItIs) {
  for (const fs::path& file : Sources()) {
    if (file.extension() != ".h" && file.extension() != ".cuh") continue;
    const std::vector<std::string> lines = Lines(file);
    ASSERT_FALSE(lines.empty()) << file;
    EXPECT_TRUE(lines[0].starts_with("//")) << file.generic_string();
    EXPECT_NE(std::find(lines.begin(), lines.end(), "#pragma once"), lines.end())
        << file.generic_string();
  }
}

}  // namespace
}  // namespace lacuna
