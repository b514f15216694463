// Strong integer ids: a PageId cannot be passed where a RequestId is meant.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace lacuna {

template <typename Tag, typename Rep>
struct StrongId final {
  Rep value{};
  constexpr auto operator<=>(const StrongId&) const = default;
};

// Index of one page in the pool of one KvGroup.
using PageId = StrongId<struct PageIdTag, int32_t>;
// Ours, unique in the process; a client's own label is never an id.
using RequestId = StrongId<struct RequestIdTag, uint64_t>;
// The trust boundary inside which cached pages may be shared. Made in server/admit, checked in
// kvcache.
using CacheScope = StrongId<struct CacheScopeTag, uint64_t>;

using TokenId = int32_t;

}  // namespace lacuna

template <typename Tag, typename Rep>
struct std::hash<lacuna::StrongId<Tag, Rep>> {
  size_t operator()(const lacuna::StrongId<Tag, Rep>& id) const noexcept {
    return std::hash<Rep>()(id.value);
  }
};
