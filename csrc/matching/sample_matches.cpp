// SPDX-License-Identifier: BSD-3-Clause
// A random subset of each image's matches: the positives with the smallest keys, then the negatives
// with the smallest keys. One pass over the anchors collects what may be among the smallest: the
// keys below a bound, which is lowered each time that twice as many as needed are found. So
// candidates are O(num * log(anchors / num)) and memory is O(num).
#include <algorithm>
#include <vector>

#include "../host/parallel.h"
#include "contract.h"
#include "sample_matches.loops.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kBlock = 512;  // anchors between two looks at the bounds

bool is_before(const SampleCandidate& a, const SampleCandidate& b) {
  return a.key != b.key ? a.key < b.key : a.anchor < b.anchor;
}

// The `limit` first of all candidates, which come in the order of the anchors.
class Smallest {
 public:
  explicit Smallest(int64_t limit) : limit_(static_cast<size_t>(limit)) {}

  // A later candidate whose key is not below it cannot be among the first.
  uint32_t bound() const { return bound_; }

  void add(const SampleCandidate& candidate) {
    candidates_.push_back(candidate);
    if (candidates_.size() == 2 * limit_ + 1) keep_first();
  }

  const std::vector<SampleCandidate>& sorted() {
    keep_first();
    std::sort(candidates_.begin(), candidates_.end(), is_before);
    return candidates_;
  }

 private:
  void keep_first() {
    if (candidates_.size() <= limit_) return;
    const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(limit_);
    std::nth_element(candidates_.begin(), end, candidates_.end(), is_before);
    bound_ = end->key;
    candidates_.erase(end, candidates_.end());
  }

  size_t limit_;
  uint32_t bound_ = kSampleKeys;
  std::vector<SampleCandidate> candidates_;
};

void sample_one_image(const int64_t* index, SampleSeed seed, int64_t num_anchors, int64_t num,
                      int64_t max_positives, int64_t* indices, bool* valid) {
  const SampleLoops& loops = current_loops<SampleLoops>();
  Smallest positives(max_positives), negatives(num);
  SampleCandidate found[kBlock];
  for (int64_t first = 0; first < num_anchors; first += kBlock) {
    const int64_t count =
        loops.find_candidates(index + first, first, std::min(kBlock, num_anchors - first), seed,
                              {negatives.bound(), positives.bound()}, found);
    for (int64_t i = 0; i < count; ++i) (found[i].positive ? positives : negatives).add(found[i]);
  }
  int64_t k = 0;
  for (Smallest* candidates : {&positives, &negatives})
    for (const SampleCandidate& candidate : candidates->sorted())
      if (k < num) indices[k++] = candidate.anchor;
  for (int64_t i = 0; i < num; ++i) valid[i] = i < k;
  std::fill(indices + k, indices + num, int64_t(0));
}

}  // namespace

std::tuple<Tensor, Tensor> sample_matches(const Tensor& index, const Tensor& seeds, int64_t num,
                                          double positive_fraction) {
  check_sample_matches(index, seeds, num);
  const Tensor index_in = torch::stable::contiguous(index);
  const Tensor seeds_in = torch::stable::contiguous(seeds);
  const int64_t num_images = index.size(0), num_anchors = index.size(1);
  const Tensor indices = empty(index, {num_images, num}, kInt64);
  const Tensor valid = empty(index, {num_images, num}, kBool);
  const int64_t max_positives = sample_positives(num, positive_fraction);
  parallel_for(num_images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      sample_one_image(data<int64_t>(index_in) + b * num_anchors,
                       SampleSeed(data<double>(seeds_in)[b]), num_anchors, num, max_positives,
                       mutable_data<int64_t>(indices) + b * num,
                       mutable_data<bool>(valid) + b * num);
  });
  return {indices, valid};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("sample_matches", TORCH_BOX(&sample_matches)); }

}  // namespace fastdet::cpu
