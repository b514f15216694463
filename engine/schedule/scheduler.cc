#include "engine/schedule/scheduler.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/checked_math.h"

namespace lacuna::engine {

using kvcache::KvCache;
using kvcache::Ledger;

bool Scheduler::Before::operator()(const ScheduledSequence* a, const ScheduledSequence* b) const {
  const auto key = [](const ScheduledSequence& s) {
    return std::tuple(!s.promoted, s.promoted ? 0 : s.priority, s.arrival);
  };
  return key(*a) < key(*b);
}

Scheduler::Scheduler(const SchedulerLimits& limits, const KvCache& cache)
    : limits_(limits), cache_(cache) {
  if (limits_.logit_rows_max == 0) limits_.logit_rows_max = std::numeric_limits<int64_t>::max() / 2;
}

void Scheduler::Enqueue(ScheduledSequence& sequence) {
  waiting_.insert(&sequence);
  waiting_by_age_.insert(&sequence);
}

void Scheduler::Admit(ScheduledSequence& sequence) {
  LACUNA_CHECK(waiting_.erase(&sequence) == 1);
  waiting_by_age_.erase(&sequence);
  running_.insert(&sequence);
  if (waiting_by_age_.empty()) return;
  ScheduledSequence* oldest = *waiting_by_age_.begin();
  if (oldest->arrival > sequence.arrival || oldest->promoted) return;
  // Nobody younger was passed over more often than the oldest one: one counter is enough.
  if (std::exchange(bypassed_, oldest) != oldest) bypass_count_ = 0;
  if (++bypass_count_ < kBypassMax) return;
  waiting_.erase(oldest);
  oldest->promoted = true;
  waiting_.insert(oldest);
}

void Scheduler::Preempt(ScheduledSequence& sequence) {
  LACUNA_CHECK(running_.erase(&sequence) == 1);
  Enqueue(sequence);
}

void Scheduler::Remove(ScheduledSequence& sequence) {
  if (bypassed_ == &sequence) bypassed_ = nullptr;
  if (running_.erase(&sequence) == 1) return;
  LACUNA_CHECK(waiting_.erase(&sequence) == 1);
  waiting_by_age_.erase(&sequence);
}

bool Scheduler::running(ScheduledSequence& sequence) const { return running_.contains(&sequence); }

// One call of Plan: the scratch state, and the passes over it in order.
class Scheduler::Planner final {
 public:
  Planner(const Scheduler& scheduler, Ledger ledger)
      : scheduler_(scheduler),
        cache_(scheduler.cache_),
        ledger_(std::move(ledger)),
        tokens_left_(scheduler.limits_.step_tokens_max),
        rows_left_(scheduler.limits_.logit_rows_max) {
    slots_.reserve(scheduler.running_.size());
    for (ScheduledSequence* sequence : scheduler.running_) slots_.push_back({.sequence = sequence});
    alive_ = slots_.size();
  }

  StepPlan Plan() && {
    RunPass(true);
    RunPass(false);
    for (const bool decodes : {true, false}) {
      for (size_t i = 0; i < alive_; ++i) {
        const Slot& slot = slots_[i];
        if (slot.tokens == 0 || slot.sequence->decodes() != decodes) continue;
        plan_.runs.push_back({.sequence = slot.sequence, .tokens = slot.tokens, .hit = {}});
      }
    }
    if (plan_.preempt.empty() && !starved_) AdmitPass();
    return std::move(plan_);
  }

 private:
  struct Slot {
    ScheduledSequence* sequence = nullptr;
    int64_t tokens = 0;
    int64_t rows = 0;
    std::vector<int64_t> pages{};  // taken for them, per group
  };

  // Gives every running sequence of the kind its tokens, preempting from the back for pages.
  void RunPass(bool decodes) {
    for (size_t i = 0; i < alive_; ++i) {
      Slot& slot = slots_[i];
      if (slot.sequence->decodes() != decodes) continue;
      const ScheduledSequence& s = *slot.sequence;
      const int64_t wanted = TokensWanted(s, s.launched_tokens(), s.left_tokens());
      if (wanted == 0) {
        // Its next grain is more than others have left of the budgets: nobody may add to them.
        starved_ = starved_ || (s.kv.grain_tokens > 0 && s.left_tokens() > 0);
        continue;
      }
      int64_t tokens = TokensThatFit(*slot.sequence, wanted);
      while (tokens == 0 && alive_ - 1 > i) {
        PreemptLast();
        tokens = TokensThatFit(*slot.sequence, wanted);
      }
      // The last in precedence keeps its pages and waits for those before it.
      tokens == 0 ? static_cast<void>(starved_ = true) : Reserve(slot, tokens);
    }
  }

  // Under the budgets of tokens and rows.
  int64_t TokensWanted(const ScheduledSequence& s, int64_t begin, int64_t left) const {
    const int64_t rows_end = std::max(begin, s.first_logits_position()) + rows_left_;
    if (s.replays_output) left = std::min(left, std::max<int64_t>(1, s.prompt_tokens - begin));
    return s.CutTokens(begin, std::min({left, tokens_left_, rows_end - begin}));
  }

  int64_t TokensThatFit(const ScheduledSequence& s, int64_t wanted) const {
    for (int g = 0; g < cache_.groups(); ++g) {
      const int64_t end = s.launched_tokens() + wanted;
      if (cache_.PagesLacking(g, s.kv, end) <= ledger_.available(g)) continue;
      const int64_t held = s.kv.tables[static_cast<size_t>(g)].logical_end();
      const int64_t room = (held + ledger_.available(g)) * cache_.page_tokens();
      wanted = std::min(wanted, room - s.launched_tokens());
    }
    return s.CutTokens(s.launched_tokens(), wanted);
  }

  void Reserve(Slot& slot, int64_t tokens) {
    const ScheduledSequence& s = *slot.sequence;
    const int64_t begin = s.launched_tokens();
    for (int g = 0; g < cache_.groups(); ++g) {
      slot.pages.push_back(cache_.PagesLacking(g, s.kv, begin + tokens));
      LACUNA_CHECK(ledger_.Take(g, slot.pages.back()));
    }
    slot.tokens = tokens;
    slot.rows = s.LogitRows(begin, begin + tokens);
    tokens_left_ -= tokens;
    rows_left_ -= slot.rows;
  }

  void PreemptLast() {
    Slot& slot = slots_[--alive_];
    for (int g = 0; g < cache_.groups(); ++g) {
      if (slot.tokens > 0) ledger_.Return(g, slot.pages[static_cast<size_t>(g)]);
      ledger_.Drop(g, slot.sequence->kv.tables[static_cast<size_t>(g)]);
    }
    tokens_left_ += slot.tokens;
    rows_left_ += slot.rows;
    plan_.preempt.push_back(slot.sequence);
  }

  // Pages that running prefills will still need, and one for each running sequence to grow into.
  std::vector<int64_t> PromisedPages() const {
    std::vector<int64_t> promised(static_cast<size_t>(cache_.groups()),
                                  static_cast<int64_t>(alive_));
    for (size_t i = 0; i < alive_; ++i) {
      if (slots_[i].sequence->decodes()) continue;
      for (int g = 0; g < cache_.groups(); ++g) {
        promised[static_cast<size_t>(g)] += PagesToCome(g, slots_[i]);
      }
    }
    return promised;
  }

  int64_t PagesToCome(int g, const Slot& slot) const {
    const ScheduledSequence& s = *slot.sequence;
    const int64_t taken = slot.tokens > 0 ? slot.pages[static_cast<size_t>(g)] : 0;
    const int64_t held = s.kv.tables[static_cast<size_t>(g)].size() + taken;
    return std::max<int64_t>(0, PagesWhole(g, s, s.left_tokens()) - held);
  }

  int64_t PagesWhole(int g, const ScheduledSequence& s, int64_t left) const {
    return cache_.PagesFor(g, s.expected_tokens(),
                           std::min(left, scheduler_.limits_.step_tokens_max));
  }

  // Admits from the head of the line while all its known tokens have room. When nothing runs, the
  // head is admitted with as few tokens as fit.
  void AdmitPass() {
    std::vector<int64_t> promised = PromisedPages();
    auto running = static_cast<int64_t>(alive_);
    for (ScheduledSequence* head : scheduler_.waiting_) {
      if (running >= scheduler_.limits_.running_max || tokens_left_ == 0 || rows_left_ == 0) return;
      const bool alone = running == 0;
      PlannedRun run{.sequence = head, .admit = true, .hit = {}};
      run.hit.pages.resize(static_cast<size_t>(cache_.groups()));
      if (head->reuse_prefix) {
        const int64_t limit = std::min(head->known_tokens() - 1, head->shared_tokens_max);
        run.hit = cache_.Lookup(head->kv, head->tokens, limit);
      }
      if (!TryAdmit(run, alone, promised)) {
        if (alone) plan_.stuck = head;
        return;
      }
      plan_.runs.push_back(std::move(run));
      ++running;
    }
  }

  // False leaves the ledger half changed: the pass ends there.
  bool TryAdmit(PlannedRun& run, bool alone, std::vector<int64_t>& promised) {
    const ScheduledSequence& s = *run.sequence;
    std::vector<int64_t> whole;
    run.tokens = TokensWanted(s, run.hit.tokens, s.known_tokens() - run.hit.tokens);
    for (int g = 0; g < cache_.groups(); ++g) {
      const auto& hit = run.hit.pages[static_cast<size_t>(g)];
      for (const PageId page : hit) {
        if (!ledger_.Hold(g, page)) return false;
      }
      const auto held = static_cast<int64_t>(hit.size());
      whole.push_back(PagesWhole(g, s, s.known_tokens() - run.hit.tokens) - held);
      const int64_t room = ledger_.available(g) - promised[static_cast<size_t>(g)];
      if (!alone && whole.back() + 1 > room) return false;
      const int64_t fit = (held + ledger_.available(g)) * cache_.page_tokens() - run.hit.tokens;
      run.tokens = std::min(run.tokens, fit);
    }
    run.tokens = s.CutTokens(run.hit.tokens, run.tokens);
    if (run.tokens <= 0) return false;
    for (int g = 0; g < cache_.groups(); ++g) {
      const auto held = static_cast<int64_t>(run.hit.pages[static_cast<size_t>(g)].size());
      const int64_t end = CeilDiv(run.hit.tokens + run.tokens, cache_.page_tokens());
      LACUNA_CHECK(ledger_.Take(g, end - held));
      promised[static_cast<size_t>(g)] +=
          1 + std::max<int64_t>(0, whole[static_cast<size_t>(g)] - (end - held));
    }
    tokens_left_ -= run.tokens;
    rows_left_ -= s.LogitRows(run.hit.tokens, run.hit.tokens + run.tokens);
    return true;
  }

  const Scheduler& scheduler_;
  const KvCache& cache_;
  Ledger ledger_;
  int64_t tokens_left_, rows_left_;
  std::vector<Slot> slots_;  // the running ones, by precedence; those from alive_ on are preempted
  size_t alive_ = 0;
  bool starved_ = false;  // somebody running got no page, or no grain
  StepPlan plan_;
};

StepPlan Scheduler::Plan(Ledger ledger) const { return Planner(*this, std::move(ledger)).Plan(); }

}  // namespace lacuna::engine
