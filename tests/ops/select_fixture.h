// SelectWorld: sequences of keys in a paged pool that starts full of NaN, metadata beside them, and
// what each decode row should read by the words of docs/profiles.md, in double precision. The
// reference reads the metadata as the backend stored it. Single thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/ops/ops.h"
#include "tests/ops/op_test.h"

namespace lacuna::kernels {

struct SelectShape final {
  int kv_heads = 2;
  int group = 3;
  int head_dim = 32;
  int page_tokens = 64;
};

// Keys of all sequences, [sequence][token][kv_head * head_dim], as the pool's type holds them.
using KeyTable = std::vector<std::vector<std::vector<float>>>;

class SelectWorld final {
 public:
  // `whole`: keys and queries are small whole numbers, so that scores are exact and tie.
  SelectWorld(std::shared_ptr<Backend> backend, const SelectShape& shape, DType dtype,
              std::vector<int> capacity_tokens, uint32_t seed, bool whole = false);

  // Appends the tokens up to `end` of a sequence, and their metadata.
  void AppendTo(int sequence, int end);
  // Metadata that later appends write; its channel lists are drawn here.
  void AddMetadata(const MetadataSpec& spec);

  const SelectShape& shape() const { return shape_; }
  Backend& backend() { return *backend_; }
  int q_heads() const { return shape_.kv_heads * shape_.group; }
  int page(int sequence, int logical) const {
    return page_table_[static_cast<size_t>(sequence)][static_cast<size_t>(logical)];
  }
  const float* key(int sequence, int token, int kv_head) const {
    return keys_[static_cast<size_t>(sequence)][static_cast<size_t>(token)].data() +
           kv_head * shape_.head_dim;
  }
  KvPool pool();
  MetadataPool metadata(const MetadataSpec& spec);
  // One stored number, as the backend lays it out.
  double Stored(const MetadataSpec& spec, int64_t page, int64_t head, int64_t entry, int vector,
                int64_t channel) const;
  const TestMemory& stored(const MetadataSpec& spec) const {
    return stores_.at(KeyOf(spec))->memory;
  }
  const std::vector<int16_t>& channels(const MetadataSpec& spec) {
    return stores_.at(KeyOf(spec))->lists;
  }
  std::mt19937& random() { return random_; }
  float Draw();

 private:
  struct Store final {
    MetadataSpec spec;
    std::vector<int16_t> lists;
    TestMemory memory;
    TestArray<int16_t> channels;
  };
  static std::string KeyOf(const MetadataSpec& spec);

  std::shared_ptr<Backend> backend_;
  SelectShape shape_;
  DType dtype_;
  bool whole_;
  std::mt19937 random_;
  std::vector<std::vector<int32_t>> page_table_;
  std::vector<int> appended_;
  KeyTable keys_;
  KvPool pool_;
  std::unique_ptr<TestMemory> memory_;
  std::map<std::string, std::unique_ptr<Store>> stores_;
};

// One decode row: the newest token of a sequence that has `tokens` of them.
struct RowCase final {
  int sequence = 0;
  int tokens = 1;
  SelectRow what;
  std::vector<StaticShape> shapes;  // [kv_heads], or empty
};

// All that one call returns, on the host.
struct SelectOutcome final {
  struct Entry final {
    int32_t page = 0, logical = 0;
    uint64_t mask = 0;
    bool operator==(const Entry&) const = default;
  };
  std::vector<std::vector<Entry>> lists;  // [rows * kv_heads]
  std::vector<float> dropped_lse;         // [rows * q_heads]
  std::vector<SelectStats> stats;         // [rows * kv_heads]
};

// Choices that live over several calls.
struct ChoiceStore final {
  std::vector<uint64_t> masks;
  std::vector<float> queries;
};

// Rows with their queries, against one path.
class SelectRun final {
 public:
  SelectRun(SelectWorld& world, const DecodePath& path, std::vector<RowCase> rows,
            std::vector<float> thresholds = {});

  int64_t rows() const { return static_cast<int64_t>(rows_.size()); }
  const RowCase& row(int64_t i) const { return rows_[static_cast<size_t>(i)]; }
  TestTensor& q() { return q_; }
  // Runs rows [begin, end) in one call.
  SelectOutcome Run(int64_t begin, int64_t end, ChoiceStore& choices);
  Status status() const { return status_; }

  // The tokens that each kv head of a row reads, [kv_heads][tokens]. `kept`: the tokens chosen at
  // an earlier step, of each owner; filled with the choice when the row chooses.
  using Tokens = std::vector<bool>;
  std::vector<Tokens> Expected(int64_t row, std::vector<Tokens>* kept);
  // Compares the outcome of row `row`, the `at`-th of its call, with what is expected.
  void ExpectRow(int64_t row, const SelectOutcome& outcome, int64_t at,
                 const std::vector<Tokens>& expected);

  static constexpr int kPagesMax = 704;
  static constexpr float kScale = 0.25f;

 private:
  struct CallMemory;

  std::vector<double> EntryScores(const RowCase& row, int64_t i, int q_row);
  std::vector<double> TokenScores(const RowCase& row, int64_t i, int q_row,
                                  const MetadataSpec& spec);
  std::vector<float> Query(int64_t i, int q_row) const;
  int heads() const;
  std::vector<int> QueryRows(const RowCase& row, int owner) const;
  bool Windowed(const RowCase& row, int kv) const;
  Tokens ChooseFirst(const RowCase& row, int64_t i, int owner);
  Tokens ChooseSecond(const RowCase& row, int64_t i, int owner, const Tokens& first);
  Tokens Forced(const RowCase& row) const;

  SelectWorld& world_;
  DecodePath path_;
  std::vector<RowCase> rows_;
  std::vector<float> thresholds_;
  TestTensor q_;
  Status status_;
};

}  // namespace lacuna::kernels
