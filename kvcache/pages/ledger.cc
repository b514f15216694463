#include "kvcache/pages/ledger.h"

namespace lacuna::kvcache {

Ledger::Ledger(const std::vector<const PagePool*>& pools) {
  groups_.reserve(pools.size());
  for (const PagePool* pool : pools) {
    groups_.push_back({.pool = pool, .available = pool->counts().free + pool->counts().cached});
  }
}

bool Ledger::Take(int group, int64_t pages) {
  if (pages > at(group).available) return false;
  at(group).available -= pages;
  return true;
}

int32_t& Ledger::Refs(Group& group, PageId page) {
  return group.refs.try_emplace(page, group.pool->refs(page)).first->second;
}

bool Ledger::Hold(int group, PageId page) {
  int32_t& refs = Refs(at(group), page);
  if (refs == 0) {
    if (at(group).available == 0) return false;
    --at(group).available;
  }
  ++refs;
  return true;
}

void Ledger::Drop(int group, PageId page) {
  int32_t& refs = Refs(at(group), page);
  LACUNA_CHECK(refs > 0);
  if (--refs == 0) ++at(group).available;
}

void Ledger::Drop(int group, const PageTable& table) {
  for (int64_t i = 0; i < table.size(); ++i) Drop(group, table.page(i));
}

}  // namespace lacuna::kvcache
