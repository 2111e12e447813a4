#include "methods/engines/rebuilding_plan.h"

#include <algorithm>
#include <numeric>

namespace subquad {

RebuildingPlan::RebuildingPlan(Index capacity, const RebuildOptions& options,
                               std::unique_ptr<TokenScorer> scorer)
    : options_(options),
      scorer_(std::move(scorer)),
      slot_of_(capacity),
      position_(slots(capacity, options)),
      scores_(options.r > 0 || options.prompt ? capacity : 0),
      slot_score_(position_.size()),
      order_(position_.size()) {
  released_.reserve(static_cast<std::size_t>(std::min(options.r, capacity)));
  moves_.reserve(static_cast<std::size_t>(position_.size()));
}

void RebuildingPlan::reset() {
  scorer_->reset();
  std::fill_n(slot_of_.data(), slot_of_.size(), -1);
  length_ = count_ = total_ = 0;
}

// The r best of what was released -> released_, by position. O(n) where scores do not rise with
// age: a token has to beat the worst of the best r so far.
void RebuildingPlan::choose_released(Index n) {
  released_.clear();
  scored_ = false;
  const Index wanted = std::min(options_.r, n - count_);
  if (wanted <= 0) return;
  const auto better = [](const Candidate& a, const Candidate& b) {
    return a.score > b.score || (a.score == b.score && a.position > b.position);
  };
  scorer_->score_past(n, scores_.data());
  scored_ = true;
  // Later tokens first, so that of equals the later one stays.
  for (Index i = n - 1; i >= 0; --i) {
    const bool full = static_cast<Index>(released_.size()) == wanted;
    if (full && !(scores_[i] > released_.front().score)) continue;
    if (slot_of_[i] >= 0) continue;
    if (full) {
      std::pop_heap(released_.begin(), released_.end(), better);
      released_.pop_back();
    }
    released_.push_back({scores_[i], static_cast<std::int32_t>(i)});
    std::push_heap(released_.begin(), released_.end(), better);
  }
  if (options_.rebuild_gate && count_ > 0) {
    float lowest = scores_[position_[0]];
    for (Index s = 1; s < count_; ++s) lowest = std::min(lowest, scores_[position_[s]]);
    std::erase_if(released_, [&](const Candidate& c) { return !(c.score > lowest); });
  }
  std::sort(released_.begin(), released_.end(),
            [](const Candidate& a, const Candidate& b) { return a.position < b.position; });
}

void RebuildingPlan::begin(const StreamTokens& token) {
  SUBQUAD_CHECK(length_ < slot_of_.size(), "{} tokens were seen, one more exceeds {}", length_,
                slot_of_.size());
  const Index n = length_++;
  scorer_->append(token, n);
  choose_released(n);
  total_ = count_;
  const auto take = [&](Index position) {
    position_[total_] = static_cast<std::int32_t>(position);
    slot_of_[position] = static_cast<std::int32_t>(total_++);
  };
  for (const Candidate& c : released_) take(c.position);
  take(n);
}

std::span<const RebuildingPlan::Move> RebuildingPlan::end() {
  moves_.clear();
  const Index n = length_ - 1, newest = total_ - 1, fetched = static_cast<Index>(released_.size());
  const Index candidates = options_.keep_rebuilt ? newest : newest - fetched;
  if (candidates + 1 <= options_.m && candidates == newest) {
    count_ = total_;
    return {};
  }
  const Index kept = std::min(options_.m - 1, candidates);
  if (kept < candidates) {
    if (scored_) {
      for (Index s = 0; s < candidates; ++s) slot_score_[s] = scores_[position_[s]];
    } else {
      scorer_->score_some(n, position_.data(), candidates, slot_score_.data());
    }
    const auto better = [&](std::int32_t a, std::int32_t b) {
      const bool guard_a = is_protected(position_[a], n), guard_b = is_protected(position_[b], n);
      if (guard_a != guard_b) return guard_a;
      if (!guard_a && slot_score_[a] != slot_score_[b]) return slot_score_[a] > slot_score_[b];
      return position_[a] > position_[b];
    };
    if (candidates == kept + 1) {  // one goes: the usual case without fetching
      std::int32_t worst = 0;
      for (std::int32_t s = 1; s < candidates; ++s)
        if (better(worst, s)) worst = s;
      order_[kept] = worst;
    } else {
      std::iota(order_.data(), order_.data() + candidates, 0);
      std::nth_element(order_.data(), order_.data() + kept, order_.data() + candidates, better);
    }
  }
  // Survivors beyond the new count move into the places of those that go.
  for (Index e = kept; e < candidates; ++e) slot_of_[position_[order_[e]]] = -1;
  for (Index s = candidates; s < newest; ++s) slot_of_[position_[s]] = -1;
  count_ = kept + 1;
  Index hole = 0;
  for (Index s = count_; s < total_; ++s) {
    if (slot_of_[position_[s]] < 0) continue;
    while (slot_of_[position_[hole]] >= 0) ++hole;
    moves_.push_back({s, hole});
    position_[hole] = position_[s];
    slot_of_[position_[hole]] = static_cast<std::int32_t>(hole);
  }
  return moves_;
}

void RebuildingPlan::keep_of_prompt(Index length) {
  length_ = length;
  const Index last = length - 1, kept = std::min(options_.m - 1, last);
  std::vector<std::int32_t> order(static_cast<std::size_t>(last));
  std::iota(order.begin(), order.end(), 0);
  if (kept < last) {
    scorer_->score_past(last, scores_.data());
    std::nth_element(order.begin(), order.begin() + kept, order.end(),
                     [&](std::int32_t a, std::int32_t b) {
                       const bool guard_a = is_protected(a, last), guard_b = is_protected(b, last);
                       if (guard_a != guard_b) return guard_a;
                       if (!guard_a && scores_[a] != scores_[b]) return scores_[a] > scores_[b];
                       return a > b;
                     });
    order.resize(static_cast<std::size_t>(kept));
    std::sort(order.begin(), order.end());
  }
  order.push_back(static_cast<std::int32_t>(last));
  for (const std::int32_t t : order) {
    position_[count_] = t;
    slot_of_[t] = static_cast<std::int32_t>(count_++);
  }
}

double RebuildingPlan::aux_bytes() const {
  return 4.0 * static_cast<double>(length_ + count_) + scorer_->aux_bytes(length_);
}

double RebuildingPlan::scratch_bytes() const {
  return scores_.size() > 0 ? 4.0 * static_cast<double>(length_) : 0;
}

double RebuildingPlan::allocated(Index capacity, const RebuildOptions& o) {
  const auto count = static_cast<double>(slots(capacity, o));
  return (12.0 + sizeof(Move)) * count +
         4.0 * static_cast<double>(o.r > 0 || o.prompt ? 2 * capacity : capacity) +
         static_cast<double>(sizeof(Candidate)) * static_cast<double>(std::min(o.r, capacity));
}

}  // namespace subquad
