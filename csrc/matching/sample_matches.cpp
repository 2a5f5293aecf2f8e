// SPDX-License-Identifier: BSD-3-Clause
// A random subset of each image's matches: the positives with the smallest keys, then the negatives
// with the smallest keys. One pass over the anchors fills a heap of the smallest keys so far:
// O(anchors) time for keys in random order, O(num) memory.
#include <algorithm>
#include <bit>
#include <utility>
#include <vector>

#include "../host/parallel.h"
#include "contract.h"

namespace fastdet::cpu {

namespace {

// Keys are >= 0, so their bits have the same order. Ties go to the lower anchor.
using Candidate = std::pair<uint32_t, int64_t>;

// The `limit` smallest of all offered candidates.
class Smallest {
 public:
  explicit Smallest(int64_t limit) : limit_(static_cast<size_t>(limit)) {}

  void offer(const Candidate& candidate) {
    if (heap_.size() == limit_) {
      if (limit_ == 0 || !(candidate < heap_.front())) return;
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
  Smallest positives(max_positives), negatives(num);
  for (int64_t a = 0; a < num_anchors; ++a) {
    if (index[a] < -1) continue;
    (index[a] >= 0 ? positives : negatives).offer({std::bit_cast<uint32_t>(keys[a]), a});
  }
  int64_t k = 0;
  for (Smallest* candidates : {&positives, &negatives})
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
