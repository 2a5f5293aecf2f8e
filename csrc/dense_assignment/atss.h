// SPDX-License-Identifier: BSD-3-Clause
// Adaptive training sample selection (ATSS) on the CPU: plain C++ over pointers, without torch.
// First each ground-truth box (gt) finds its candidates and its positives among them, gt by gt.
// Then the gts of an image claim their positives in order. Memory: O(anchors + gts * topk *
// levels).
#pragma once

#include <algorithm>
#include <vector>

#include "atss_rule.h"
#include "dense_points.h"

namespace fastdet::cpu {

template <typename S>
struct AtssInput {
  const Box<S>* anchors;  // (A,)
  std::vector<int64_t> level_sizes;
  const Box<S>* gt_boxes;    // (B, G)
  const int64_t* gt_counts;  // (B,)
  int64_t num_images, num_anchors, num_gts;
  int64_t topk;
};

template <typename S, typename Parallel>
class AtssAssigner {
 public:
  AtssAssigner(const AtssInput<S>& in, int64_t* index, S* iou, const Parallel& parallel)
      : in_(in),
        slots_(in.topk * static_cast<int64_t>(in.level_sizes.size())),
        positives_(in.num_images * in.num_gts * slots_),
        num_positives_(in.num_images * in.num_gts),
        index_(index),
        iou_(iou),
        parallel_(parallel) {
    std::vector<S> centres(2 * in.num_anchors);
    for (int64_t a = 0; a < in.num_anchors; ++a) {
      const Point<S> centre = centre_of(in.anchors[a]);
      const bool usable = is_finite(in.anchors[a]);
      centres[2 * a] = usable ? centre.x : std::numeric_limits<S>::quiet_NaN();
      centres[2 * a + 1] = centre.y;
    }
    int64_t first = 0;
    for (const int64_t size : in.level_sizes) {
      levels_.push_back({DensePoints<S>(centres.data() + 2 * first, size), first});
      first += size;
    }
  }

  void run() {
    parallel_(in_.num_images * in_.num_gts, kGrainGts, [&](int64_t begin, int64_t end) {
      Work work(in_.num_anchors, in_.topk, slots_);
      for (int64_t row = begin; row < end; ++row)
        if (row % in_.num_gts < in_.gt_counts[row / in_.num_gts] &&
            is_assignable(in_.gt_boxes[row]))
          find_positives(row, work);
    });
    parallel_(in_.num_images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t image = begin; image < end; ++image) claim(image);
    });
  }

 private:
  static constexpr int64_t kGrainGts = 4;

  struct Level {
    DensePoints<S> centres;
    int64_t first;  // anchor
  };

  struct Positive {
    S iou;
    int32_t anchor;
  };

  // The candidates of a gt.
  struct Work {
    std::vector<S> bounds, distances, iou;
    std::vector<int32_t> nearest, anchors;

    Work(int64_t num_anchors, int64_t topk, int64_t slots)
        : bounds(padded_to_lanes(num_anchors / kPointBlock + 1)),
          distances(topk),
          iou(slots),
          nearest(topk),
          anchors(slots) {}
  };

  void find_positives(int64_t row, Work& work) {
    const Box<S>& gt = in_.gt_boxes[row];
    const int64_t n = find_candidates(gt, work);
    if (n == 0) return;
    const S gt_area = area(gt);
    for (int64_t k = 0; k < n; ++k) {
      const Box<S>& anchor = in_.anchors[work.anchors[k]];
      work.iou[k] = iou(anchor, area(anchor), gt, gt_area);
    }
    const double threshold = atss_threshold(work.iou.data(), n);
    Positive* next = positives_.data() + row * slots_;
    for (int64_t k = 0; k < n; ++k)
      if (is_atss_positive(work.iou[k], threshold, in_.anchors[work.anchors[k]], gt))
        *next++ = {work.iou[k], work.anchors[k]};
    num_positives_[row] = next - (positives_.data() + row * slots_);
  }

  // The anchors of each level whose centres are nearest to the gt's.
  int64_t find_candidates(const Box<S>& gt, Work& work) const {
    const Point<S> centre = centre_of(gt);
    int64_t n = 0;
    for (const Level& level : levels_) {
      const int64_t found = current_loops<PointLoops<S>>().nearest_points(
          level.centres.planes(), centre.x, centre.y, in_.topk, work.bounds.data(),
          work.distances.data(), work.nearest.data());
      for (int64_t k = 0; k < found; ++k)
        work.anchors[n++] = static_cast<int32_t>(level.first + work.nearest[k]);
    }
    return n;
  }

  void claim(int64_t image) {
    int64_t* const index = index_ + image * in_.num_anchors;
    S* const best = iou_ + image * in_.num_anchors;
    std::fill_n(index, in_.num_anchors, int64_t(-1));
    std::fill_n(best, in_.num_anchors, S(0));
    for (int64_t g = 0; g < in_.num_gts; ++g) {
      const int64_t row = image * in_.num_gts + g;
      for (int64_t k = 0; k < num_positives_[row]; ++k) {
        const Positive& positive = positives_[row * slots_ + k];
        if (!(positive.iou > best[positive.anchor])) continue;
        best[positive.anchor] = positive.iou;
        index[positive.anchor] = g;
      }
    }
  }

  const AtssInput<S>& in_;
  int64_t slots_;  // of a gt
  std::vector<Level> levels_;
  std::vector<Positive> positives_;  // (B, G, slots)
  std::vector<int64_t> num_positives_;
  int64_t* index_;
  S* iou_;
  const Parallel& parallel_;
};

// Writes index and iou (B, A). `parallel(n, grain, body)` runs body(begin, end) for pieces of
// [0, n).
template <typename S, typename Parallel>
void assign_atss_batch(const AtssInput<S>& in, int64_t* index, S* iou, const Parallel& parallel) {
  AtssAssigner<S, Parallel>(in, index, iou, parallel).run();
}

}  // namespace fastdet::cpu
