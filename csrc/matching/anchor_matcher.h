// SPDX-License-Identifier: BSD-3-Clause
// Finds the ground-truth box (gt) of each anchor, over raw pointers: plain C++, no torch. Pass 1
// finds the best gt of each anchor and labels the anchor by the thresholds. It also records the
// best IoU of each gt, and the first and the last block of anchors that has this IoU. Pass 2, for
// the low-quality rules, computes those blocks again, with the same bits, instead of storing a
// matrix. Cost: anchors x gts IoUs, but a block skips the gts that do not touch its hull; memory
// O(threads x gts). Maxima, firsts and lasts do not depend on the order in which threads
// contribute, so the result does not depend on it either.
#pragma once

#include <algorithm>
#include <limits>
#include <mutex>
#include <vector>

#include "match_anchors.loops.h"
#include "match_rule.h"

namespace fastdet::cpu {

template <typename T>
struct MatchInput {
  const Box<T>* anchors;
  int64_t image_stride;      // of anchors; 0 if all images share them
  const Box<T>* gt_boxes;    // (num_images, num_gts)
  const int64_t* gt_counts;  // (num_images,), any values
  int64_t num_images, num_anchors, num_gts;
  MatchRule<T> rule;
};

// The largest IoU of a gt, and the first and the last block that has it.
template <typename T>
struct GtBest {
  T iou = T(0);
  LaneInt<T> first = 0, last = 0;

  void add(const GtBest& other) {
    if (other.iou > iou) {
      *this = other;
    } else if (other.iou == iou) {
      first = std::min(first, other.first);
      last = std::max(last, other.last);
    }
  }
};

// The finite gts of one image.
template <typename T>
struct UsableGts {
  std::vector<T> x1, y1, x2, y2, area;
  std::vector<LaneInt<T>> row;
  std::vector<GtBest<T>> best;
  bool rescue = false, rescue_all = false;  // whether pass 2 must read some, or all, blocks

  void append(const Box<T>& b, int64_t g) {
    const bool proper = b.x1 < b.x2 && b.y1 < b.y2;
    x1.push_back(b.x1), y1.push_back(b.y1), x2.push_back(b.x2), y2.push_back(b.y2);
    area.push_back(proper ? fastdet::area(b) : std::numeric_limits<T>::infinity());
    row.push_back(static_cast<LaneInt<T>>(g));
    best.emplace_back();
  }

  int64_t size() const { return static_cast<int64_t>(row.size()); }
  GtPlanes<T> view() const {
    return {x1.data(), y1.data(), x2.data(), y2.data(), area.data(), row.data(), size()};
  }
};

// The memory of a GtMaxima.
template <typename T>
struct GtMaximaStorage {
  std::vector<T> of_block, best;
  std::vector<LaneInt<T>> first, last;

  explicit GtMaximaStorage(int64_t num_gts)
      : of_block(num_gts * kMatchLanes<T>), best(of_block), first(of_block.size()), last(first) {}

  GtMaxima<T> view() { return {of_block.data(), best.data(), first.data(), last.data()}; }

  void add_to(std::vector<GtBest<T>>& gts) const {
    for (size_t i = 0; i < best.size(); ++i)
      gts[i / kMatchLanes<T>].add({best[i], first[i], last[i]});
  }
};

template <typename T, typename Parallel>
class AnchorMatcher {
 public:
  AnchorMatcher(const MatchInput<T>& in, int64_t* index, T* iou, const Parallel& parallel)
      : in_(in),
        blocks_((in.num_anchors + kMatchBlock - 1) / kMatchBlock),
        index_(index),
        iou_(iou),
        parallel_(parallel),
        gts_(in.num_images) {
    for (int64_t b = 0; b < in.num_images; ++b) {
      const Box<T>* boxes = in.gt_boxes + b * in.num_gts;
      const int64_t count = std::clamp<int64_t>(in.gt_counts[b], 0, in.num_gts);
      for (int64_t g = 0; g < count; ++g)
        if (is_finite(boxes[g])) gts_[b].append(boxes[g], g);
    }
  }

  void run() {
    for_each_run([this](int64_t image, int64_t begin, int64_t end) { match(image, begin, end); });
    if (in_.rule.low_quality == LowQuality::kNone) return;
    bool any = false;
    for (UsableGts<T>& gts : gts_) any |= find_rescued(gts);
    if (!any) return;
    for_each_run([this](int64_t image, int64_t begin, int64_t end) { rescue(image, begin, end); });
  }

 private:
  // The workspace of a thread: a block of anchors, the results of the anchors and those of the gts.
  struct Work {
    AnchorBlock<T> anchors;
    T iou[kMatchBlock];
    LaneInt<T> row[kMatchBlock], rescuer[kMatchBlock];
    std::vector<int32_t> chosen;
    GtMaximaStorage<T> maxima;

    explicit Work(int64_t num_gts) : chosen(num_gts), maxima(num_gts) {
      std::fill_n(rescuer, kMatchBlock, LaneInt<T>(-1));
    }
  };

  // Calls body(image, begin, end) over runs of blocks of every image.
  template <typename Body>
  void for_each_run(const Body& body) {
    parallel_(in_.num_images * blocks_, kGrainBlocks, [&](int64_t first, int64_t last) {
      while (first < last) {
        const int64_t image = first / blocks_, begin = first % blocks_;
        const int64_t end = std::min(blocks_, begin + last - first);
        body(image, begin, end);
        first += end - begin;
      }
    });
  }

  int64_t size_of(int64_t block) const {
    return std::min(kMatchBlock, in_.num_anchors - block * kMatchBlock);
  }

  void match(int64_t image, int64_t begin, int64_t end) {
    Work work(gts_[image].size());
    for (int64_t i = begin; i < end; ++i) {
      find_best(image, i, work);
      label(image, i, work);
      std::copy_n(work.iou, size_of(i), iou_ + image * in_.num_anchors + i * kMatchBlock);
    }
    const std::lock_guard lock(mutex_);
    work.maxima.add_to(gts_[image].best);
  }

  void find_best(int64_t image, int64_t i, Work& work) const {
    const MatchLoops<T>& loops = current_loops<MatchLoops<T>>();
    loops.load_anchors(in_.anchors + image * in_.image_stride + i * kMatchBlock, size_of(i),
                       work.anchors);
    loops.best_matches(work.anchors, gts_[image].view(), i, work.chosen.data(), work.maxima.view(),
                       work.iou, work.row);
  }

  void label(int64_t image, int64_t i, const Work& work) {
    // Without gts, no anchor can be positive, and all usable ones are negative.
    const MatchRule<T> rule =
        gts_[image].size() > 0 ? in_.rule : MatchRule<T>{T(1), T(1), LowQuality::kNone};
    current_loops<MatchLoops<T>>().label_anchors(
        work.anchors, size_of(i), rule, work.iou, work.row, work.rescuer,
        index_ + image * in_.num_anchors + i * kMatchBlock);
  }

  // Whether an anchor's label depends on a gt's best IoU. An anchor whose IoU with a gt is at least
  // `high` is matched to its own best gt already. If a gt overlaps no anchor, its best IoU is 0,
  // and all anchors have it.
  bool find_rescued(UsableGts<T>& gts) const {
    const bool gt_best = in_.rule.low_quality == LowQuality::kGtBest;
    for (GtBest<T>& best : gts.best) {
      if (best.iou == T(0)) {
        gts.rescue_all |= !gt_best;
        best.first = best.last + 1;
      } else if (!gt_best && best.iou >= in_.rule.high) {
        best.first = best.last + 1;
      } else {
        gts.rescue = true;
      }
    }
    gts.rescue |= gts.rescue_all;
    return gts.rescue;
  }

  void rescue(int64_t image, int64_t begin, int64_t end) {
    const UsableGts<T>& gts = gts_[image];
    if (!gts.rescue) return;
    Work work(gts.size());
    std::vector<int64_t> here;
    for (int64_t i = begin; i < end; ++i) {
      here.clear();
      for (int64_t g = 0; g < gts.size(); ++g)
        if (gts.best[g].first <= i && i <= gts.best[g].last) here.push_back(g);
      if (here.empty() && !gts.rescue_all) continue;
      find_best(image, i, work);
      std::fill_n(work.rescuer, kMatchBlock, LaneInt<T>(gts.rescue_all ? 0 : -1));
      for (const int64_t g : here)
        current_loops<MatchLoops<T>>().find_rescuers(work.anchors, gts.view(), g, gts.best[g].iou,
                                                     work.rescuer);
      label(image, i, work);
    }
  }

  static constexpr int64_t kGrainBlocks = 8;  // the least that a thread takes

  const MatchInput<T>& in_;
  int64_t blocks_;  // of an image
  int64_t* index_;
  T* iou_;
  const Parallel& parallel_;
  std::vector<UsableGts<T>> gts_;
  std::mutex mutex_;
};

// index and iou are (num_images, num_anchors). parallel(n, grain, body) calls body(begin, end) over
// pieces of [0, n).
template <typename T, typename Parallel>
void match_batch(const MatchInput<T>& in, int64_t* index, T* iou, const Parallel& parallel) {
  AnchorMatcher<T, Parallel>(in, index, iou, parallel).run();
}

}  // namespace fastdet::cpu
