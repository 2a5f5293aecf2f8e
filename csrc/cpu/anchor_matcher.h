// SPDX-License-Identifier: BSD-3-Clause
// Each anchor's gt, over raw pointers: no torch. Pass 1 finds each anchor's best gt and each gt's
// best IoU; pass 2 labels the anchors and, for the low-quality rules, computes the IoUs again
// instead of keeping a matrix: anchors x gts IoUs twice, O(anchors + gts) memory. A maximum does
// not depend on the order in which threads contribute to it, so neither does the result.
#pragma once

#include <algorithm>
#include <mutex>
#include <vector>

#include "../match_rule.h"
#include "loops.h"

namespace fastdet::cpu {

constexpr int64_t kMatchBlock = 256;  // anchors whose planes and results stay in the L1 cache
constexpr int64_t kMatchChunk = 16 * kMatchBlock;  // anchors per piece of work

template <typename T>
struct MatchInput {
  const Box<T>* anchors;
  int64_t image_stride;      // of anchors: 0 where all images share them
  const Box<T>* gt_boxes;    // (num_images, num_gts)
  const int64_t* gt_counts;  // (num_images,), any values
  int64_t num_images, num_anchors, num_gts;
  MatchRule<T> rule;
};

// A block of anchors as planes.
template <typename T>
struct AnchorPlanes {
  T x1[kMatchBlock], y1[kMatchBlock], x2[kMatchBlock], y2[kMatchBlock], area[kMatchBlock];

  BoxPlanes<T> view() { return {x1, y1, x2, y2, area}; }

  // A box that is not finite becomes one that overlaps nothing.
  void load(const Box<T>* boxes, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const Box<T> b = is_finite(boxes[i]) ? boxes[i] : Box<T>{};
      x1[i] = b.x1, y1[i] = b.y1, x2[i] = b.x2, y2[i] = b.y2;
      area[i] = fastdet::area(b);
    }
  }
};

// The usable gts of one image and the largest IoU of each.
template <typename T>
struct UsableGts {
  std::vector<T> x1, y1, x2, y2, area, best_iou;
  std::vector<int64_t> row;

  void append(const Box<T>& b, int64_t g) {
    x1.push_back(b.x1), y1.push_back(b.y1), x2.push_back(b.x2), y2.push_back(b.y2);
    area.push_back(fastdet::area(b));
    best_iou.push_back(T(0));
    row.push_back(g);
  }

  int64_t size() const { return static_cast<int64_t>(row.size()); }
  BoxPlanes<T> view() { return {x1.data(), y1.data(), x2.data(), y2.data(), area.data()}; }
};

template <typename T, typename Parallel>
class AnchorMatcher {
 public:
  AnchorMatcher(const MatchInput<T>& in, int64_t* index, T* iou, const Parallel& parallel)
      : in_(in), index_(index), iou_(iou), parallel_(parallel), gts_(in.num_images) {
    for (int64_t b = 0; b < in.num_images; ++b) {
      const Box<T>* boxes = in.gt_boxes + b * in.num_gts;
      const int64_t count = std::clamp<int64_t>(in.gt_counts[b], 0, in.num_gts);
      for (int64_t g = 0; g < count; ++g)
        if (is_finite(boxes[g])) gts_[b].append(boxes[g], g);
    }
  }

  void run() {
    for_each_chunk([this](int64_t b, int64_t begin, int64_t end) { find_best(b, begin, end); });
    for (UsableGts<T>& gts : gts_)
      for (T& best : gts.best_iou) best = in_.rule.rescue_iou(best);
    for_each_chunk([this](int64_t b, int64_t begin, int64_t end) { label(b, begin, end); });
  }

 private:
  // body(image, begin, end) over pieces of every image's anchors.
  template <typename Body>
  void for_each_chunk(const Body& body) {
    const int64_t chunks = (in_.num_anchors + kMatchChunk - 1) / kMatchChunk;
    parallel_(in_.num_images * chunks, int64_t(1), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i % chunks * kMatchChunk;
        body(i / chunks, begin, std::min(begin + kMatchChunk, in_.num_anchors));
      }
    });
  }

  // Leaves in index_ the position among the image's usable gts, or -1.
  void find_best(int64_t b, int64_t begin, int64_t end) {
    UsableGts<T>& gts = gts_[b];
    std::vector<T> gt_best_iou(gts.size(), T(0));
    AnchorPlanes<T> planes;
    int32_t best_gt[kMatchBlock];
    for (int64_t i = begin; i < end; i += kMatchBlock) {
      const int64_t n = std::min(kMatchBlock, end - i), out = b * in_.num_anchors + i;
      planes.load(in_.anchors + b * in_.image_stride + i, n);
      box_loops<T>().best_matches(planes.view(), n, gts.view(), gts.size(), iou_ + out, best_gt,
                                  gt_best_iou.data());
      std::copy(best_gt, best_gt + n, index_ + out);
    }
    const std::lock_guard lock(mutex_);
    for (int64_t g = 0; g < gts.size(); ++g)
      gts.best_iou[g] = max_of(gts.best_iou[g], gt_best_iou[g]);
  }

  void label(int64_t b, int64_t begin, int64_t end) {
    UsableGts<T>& gts = gts_[b];
    AnchorPlanes<T> planes;
    int32_t rescuer[kMatchBlock];
    for (int64_t i = begin; i < end; i += kMatchBlock) {
      const int64_t n = std::min(kMatchBlock, end - i);
      const Box<T>* anchors = in_.anchors + b * in_.image_stride + i;
      if (in_.rule.low_quality == LowQuality::kNone) {
        std::fill(rescuer, rescuer + n, -1);
      } else {
        planes.load(anchors, n);
        box_loops<T>().find_rescuers(planes.view(), n, gts.view(), gts.size(), gts.best_iou.data(),
                                     rescuer);
      }
      for (int64_t k = 0; k < n; ++k) {
        int64_t& index = index_[b * in_.num_anchors + i + k];
        T& iou = iou_[b * in_.num_anchors + i + k];
        const bool usable = is_finite(anchors[k]);
        if (!usable || index < 0) {
          index = usable ? -1 : -2;
          iou = T(0);
          continue;
        }
        const int64_t rescuer_row = rescuer[k] < 0 ? -1 : gts.row[rescuer[k]];
        index = in_.rule.label(iou, gts.row[index], rescuer_row);
      }
    }
  }

  const MatchInput<T>& in_;
  int64_t* index_;
  T* iou_;
  const Parallel& parallel_;
  std::vector<UsableGts<T>> gts_;
  std::mutex mutex_;
};

// index and iou are (num_images, num_anchors). parallel(n, grain, body): body(begin, end) over
// pieces of [0, n).
template <typename T, typename Parallel>
void match_batch(const MatchInput<T>& in, int64_t* index, T* iou, const Parallel& parallel) {
  AnchorMatcher<T, Parallel>(in, index, iou, parallel).run();
}

}  // namespace fastdet::cpu
