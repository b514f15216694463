// Any text as a profile and as artefacts: it ends in a plan whose counts fit every length, or in
// one-line errors; what is printed reads back to the same. The first byte says what the rest is.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "kvcache/sparse/decode_counts.h"
#include "kvcache/sparse/profile_pages.h"
#include "kvcache/sparse/profile_set.h"
#include "kvcache/sparse/resolve.h"
#include "tests/kvcache/sparse_test_models.h"

namespace {

using namespace lacuna::kvcache;

void Require(bool condition) {
  if (!condition) std::abort();
}

void FuzzArtefact(ArtefactKind kind, std::string_view text) {
  SparseArtefacts artefacts;
  const lacuna::Status status = ReadArtefact(kind, text, "fuzz", Recall12m(), artefacts);
  Require(status.message().find('\n') == std::string::npos);
  if (!status.ok()) return;
  Require(artefacts.Has(kind));
  const auto again = ReadArtefacts(WriteArtefacts(artefacts, Recall12m()), "again", Recall12m());
  Require(again.ok() && *again == artefacts);
}

void FuzzProfile(std::string_view text) {
  static const ProfileSet kShipped = ProfileSet::Load(ShippedProfiles()).set;
  const FindBase find_base = [](std::string_view name) { return kShipped.Find(name); };
  ParsedProfile parsed = ParseProfile({"p", std::string(text)}, find_base);
  for (const std::string& line : parsed.errors) Require(line.find('\n') == std::string::npos);
  if (!parsed.errors.empty()) return;
  const ParsedProfile again = ParseProfile({"p", PrintProfile(parsed.profile)}, find_base);
  parsed.profile.extends.clear();
  Require(again.errors.empty() && again.profile == parsed.profile);

  const ResolvedPlan resolved =
      ResolvePlan(parsed.profile, Recall12m(), MakeArtefacts(Recall12m()));
  Require((resolved.plan == nullptr) == !resolved.errors.empty());
  if (resolved.plan == nullptr) return;
  Require(!DescribePlan(*resolved.plan).empty());
  for (const int64_t tokens : {1, 2, 63, 64, 65, 1000, 65536, 16777216}) {
    const DecodeCounts counts = CountUnits(*resolved.plan, tokens, tokens % 7);
    Require(counts.sink_units >= 0 && counts.local_units >= 0 && counts.ranked_units_min >= 0);
    Require(counts.ranked_units_min <= counts.ranked_units_max);
    Require(counts.ranked_units_max <= counts.candidates());
    const int64_t pages = ListPagesMax(*resolved.plan, tokens);
    Require(pages >= 1 && pages <= (tokens + 63) / 64);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] >= '0' && data[0] <= '6') {
    FuzzArtefact(static_cast<ArtefactKind>(data[0] - '0'), text);
  } else {
    FuzzProfile(text);
  }
  return 0;
}
