// SPDX-License-Identifier: BSD-3-Clause
// The k largest of a stream of logits. Each logit is read once and compared with a bound that rises
// as better ones come: for logits in random order, only about k ln(n / k) of n pass it. O(k)
// memory. Plain C++, no torch. Candidates stay in the order of the stream, so of equal logits the
// first ones are kept. A stream that is read in pieces gives the same result once the pieces are
// joined.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "top_logits.loops.h"

namespace fastdet::cpu {

// The k-th largest of x[0, n), 1 <= k <= n; reorders x. The partition has no branch on the values,
// because no processor could predict it. If the pivots divide badly, nth_element does the rest.
template <typename S>
S kth_largest(S* x, int64_t n, int64_t k) {
  constexpr int kSample = 9, kRounds = 8;
  constexpr int64_t kFew = 64;
  for (int round = 0; round < kRounds && n > kFew; ++round) {
    S sample[kSample];
    for (int i = 0; i < kSample; ++i) sample[i] = x[i * (n - 1) / (kSample - 1)];
    std::sort(sample, sample + kSample, std::greater<S>());
    const S pivot = sample[(k - 1) * kSample / n];
    int64_t above = 0;
    for (int64_t i = 0; i < n; ++i) {
      const S value = x[i];
      x[i] = x[above];
      x[above] = value;
      above += value > pivot;
    }
    if (above >= k) {
      n = above;
    } else if (above > 0) {
      x += above, n -= above, k -= above;
    } else {
      break;  // the pivot is the largest value; perhaps all values are equal
    }
  }
  std::nth_element(x, x + (k - 1), x + n, std::greater<S>());
  return x[k - 1];
}

template <typename S>
class TopLogits {
 public:
  // Only logits above `bound` count. NaN never counts.
  TopLogits(int64_t k, S bound)
      : k_(k), bound_(k > 0 ? bound : std::numeric_limits<S>::infinity()) {}

  int64_t size() const { return size_; }
  S logit(int64_t i) const { return logits_[i]; }
  int64_t index(int64_t i) const { return index_[i]; }

  // Reads logits[begin, end); their indices are above all earlier ones.
  template <typename T>
  void read(const T* logits, int64_t begin, int64_t end) {
    for (; begin < end; begin += kSpan) {
      const int64_t n = std::min(kSpan, end - begin);
      make_room(n);
      size_ += current_loops<TopLogitsLoops<T>>().find_above(
          logits + begin, n, bound_, begin, logits_.data() + size_, index_.data() + size_);
      if (size_ / kSlack > k_) trim();
    }
  }

  // Appends the candidates of the next piece of the stream.
  void join(const TopLogits& next) {
    make_room(next.size_);
    std::copy_n(next.logits_.begin(), next.size_, logits_.begin() + size_);
    std::copy_n(next.index_.begin(), next.size_, index_.begin() + size_);
    size_ += next.size_;
  }

  // Keeps only the k best.
  void trim() {
    if (size_ <= k_) return;
    std::vector<S> values(logits_.begin(), logits_.begin() + size_);
    bound_ = kth_largest(values.data(), size_, k_);
    int64_t above = 0;
    for (int64_t i = 0; i < size_; ++i) above += logits_[i] > bound_;
    int64_t ties = k_ - above, kept = 0;
    for (int64_t i = 0; i < size_; ++i) {
      const S logit = logits_[i];
      const bool tie = logit == bound_;
      logits_[kept] = logit;
      index_[kept] = index_[i];
      kept += (logit > bound_) | (tie & (ties > 0));
      ties -= tie;
    }
    size_ = kept;
  }

  // Releases the memory beyond the candidates.
  void shrink() {
    logits_.resize(size_), index_.resize(size_);
    logits_.shrink_to_fit(), index_.shrink_to_fit();
  }

 private:
  static constexpr int64_t kSpan = 4096;  // logits that are compared with one bound
  static constexpr int64_t kSlack = 4;    // trims at this many times k candidates

  void make_room(int64_t n) {
    if (static_cast<int64_t>(logits_.size()) >= size_ + n) return;
    logits_.resize(std::max(size_ + n, 2 * size_));
    index_.resize(logits_.size());
  }

  int64_t k_, size_ = 0;
  S bound_;
  std::vector<S> logits_;
  std::vector<int64_t> index_;
};

}  // namespace fastdet::cpu
