// SPDX-License-Identifier: BSD-3-Clause
// A random subset of each image's matches: the positives with the smallest keys, then the negatives
// with the smallest keys. One pass over the anchors fills a heap of the smallest keys so far:
// O(anchors) time for keys in random order, O(num) memory.
#include <algorithm>
#include <bit>
#include <limits>
#include <utility>
#include <vector>

#include "../host/parallel.h"
#include "contract.h"

namespace fastdet::cpu {

namespace {

// Keys are >= 0, so their bits have the same order. Ties go to the lower anchor.
using Candidate = std::pair<uint32_t, int64_t>;

// The `limit` smallest of all candidates, which come in the order of the anchors.
class Smallest {
 public:
  explicit Smallest(int64_t limit) : limit_(static_cast<size_t>(limit)) {}

  // Only a candidate with a smaller key can be among the smallest: those before it have lower
  // anchors.
  uint32_t bound() const {
    if (heap_.size() < limit_) return std::numeric_limits<uint32_t>::max();
    return limit_ == 0 ? 0 : heap_.front().first;
  }

  // For a candidate below the bound.
  void add(const Candidate& candidate) {
    if (heap_.size() == limit_) {
      std::pop_heap(heap_.begin(), heap_.end());
      heap_.pop_back();
    }
    heap_.push_back(candidate);
    std::push_heap(heap_.begin(), heap_.end());
  }

  const std::vector<Candidate>& sorted() {
    std::sort(heap_.begin(), heap_.end());
    return heap_;
  }

 private:
  size_t limit_;
  std::vector<Candidate> heap_;
};

void sample_one_image(const int64_t* index, const float* keys, int64_t num_anchors, int64_t num,
                      int64_t max_positives, int64_t* indices, bool* valid) {
  Smallest smallest[2] = {Smallest(num), Smallest(max_positives)};  // negatives, positives
  uint32_t bound[2] = {smallest[0].bound(), smallest[1].bound()};
  for (int64_t a = 0; a < num_anchors; ++a) {
    // Few keys are below the bound, so this is the only branch, and it is easy to predict.
    const bool is_positive = index[a] >= 0;
    const uint32_t key = std::bit_cast<uint32_t>(keys[a]);
    if ((index[a] >= -1) & (key < bound[is_positive])) {
      smallest[is_positive].add({key, a});
      bound[is_positive] = smallest[is_positive].bound();
    }
  }
  int64_t k = 0;
  for (Smallest* candidates : {&smallest[1], &smallest[0]})
    for (const auto& [key, anchor] : candidates->sorted())
      if (k < num) indices[k++] = anchor;
  for (int64_t i = 0; i < num; ++i) valid[i] = i < k;
  std::fill(indices + k, indices + num, int64_t(0));
}

}  // namespace

std::tuple<Tensor, Tensor> sample_matches(const Tensor& index, const Tensor& keys, int64_t num,
                                          double positive_fraction) {
  check_sample_matches(index, keys, num);
  const Tensor index_in = torch::stable::contiguous(index);
  const Tensor keys_in = torch::stable::contiguous(keys);
  const int64_t num_images = index.size(0), num_anchors = index.size(1);
  const Tensor indices = empty(index, {num_images, num}, kInt64);
  const Tensor valid = empty(index, {num_images, num}, kBool);
  const int64_t max_positives = sample_positives(num, positive_fraction);
  parallel_for(num_images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      sample_one_image(data<int64_t>(index_in) + b * num_anchors,
                       data<float>(keys_in) + b * num_anchors, num_anchors, num, max_positives,
                       mutable_data<int64_t>(indices) + b * num,
                       mutable_data<bool>(valid) + b * num);
  });
  return {indices, valid};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("sample_matches", TORCH_BOX(&sample_matches)); }

}  // namespace fastdet::cpu
