// SPDX-License-Identifier: BSD-3-Clause
// The anchors with the largest values that a warp has seen. Offers gather in shared memory; when it
// is full, the best move to the front, and from then on a smaller value is no offer. So most
// anchors cost one comparison.
#pragma once

#include "../device/warp.cuh"
#include "../geometry/box.h"
#include "contract.h"

namespace fastdet::cuda {

constexpr int kPickRoom = 2 * kMaxTopk;
constexpr int kPickWarps = 4;  // of a block

template <typename S>
struct PickStore {
  S value[kPickRoom];
  int anchor[kPickRoom];
};

// All lanes of a warp call each method together.
template <typename S>
class WarpPicks {
 public:
  // Only values above `least` are picked.
  __device__ WarpPicks(PickStore<S>& store, int64_t topk, S least)
      : store_(store), topk_(static_cast<int>(topk)), size_(0), least_(least) {}

  // Offers must come in the order of the anchors: of equal values the first stays.
  __device__ void offer(bool valid, S value, int anchor) {
    unsigned offers = __ballot_sync(kAllLanes, valid && value > least_);
    if (offers == 0) return;
    if (size_ + __popc(offers) > kPickRoom) {
      sort();
      offers = __ballot_sync(kAllLanes, valid && value > least_);
    }
    if (offers >> lane() & 1) {
      const int at = size_ + __popc(offers & lanes_below());
      store_.value[at] = value;
      store_.anchor[at] = anchor;
    }
    size_ += __popc(offers);
    __syncwarp();
  }

  // Leaves the topk best, the largest value first.
  __device__ void sort() {
    const int size = min_of(size_, topk_);
    for (int k = 0; k < size; ++k) {
      const int best = best_from(k);
      if (lane() == 0 && best != k) swap(k, best);
      __syncwarp();
    }
    size_ = size;
    if (size_ == topk_) least_ = store_.value[topk_ - 1];
  }

  __device__ int size() const { return size_; }
  __device__ S value(int k) const { return store_.value[k]; }
  __device__ int anchor(int k) const { return store_.anchor[k]; }

 private:
  __device__ bool is_better(S value, int anchor, S than, int than_anchor) const {
    return value > than || (value == than && anchor < than_anchor);
  }

  // The place of the best from place k on.
  __device__ int best_from(int k) const {
    int place = min_of(k + lane(), size_ - 1);
    S value = store_.value[place];
    int anchor = store_.anchor[place];
    for (int i = place + kWarp; i < size_; i += kWarp) {
      if (!is_better(store_.value[i], store_.anchor[i], value, anchor)) continue;
      place = i, value = store_.value[i], anchor = store_.anchor[i];
    }
    for (int d = kWarp / 2; d > 0; d /= 2) {
      const S other = __shfl_xor_sync(kAllLanes, value, d);
      const int other_anchor = __shfl_xor_sync(kAllLanes, anchor, d);
      const int other_place = __shfl_xor_sync(kAllLanes, place, d);
      if (!is_better(other, other_anchor, value, anchor)) continue;
      place = other_place, value = other, anchor = other_anchor;
    }
    return place;
  }

  __device__ void swap(int i, int k) {
    const S value = store_.value[i];
    const int anchor = store_.anchor[i];
    store_.value[i] = store_.value[k], store_.anchor[i] = store_.anchor[k];
    store_.value[k] = value, store_.anchor[k] = anchor;
  }

  PickStore<S>& store_;
  int topk_, size_;
  S least_;
};

}  // namespace fastdet::cuda
