// SPDX-License-Identifier: BSD-3-Clause
// From the maps of a dense head to the kept boxes, over raw pointers: plain C++, no torch. The best
// logits of each level above a bound are selected, and their boxes are decoded and clipped. Each
// image is suppressed by falling logit (ties: the lower level, then the lower index), so that the
// rounding of probabilities has no influence. Threads share the logits in pieces and then take
// whole levels. Cost: one read of the logits; all other costs grow with the candidates, not with
// the anchors. Memory: O(levels x k) for an image and O(threads x k) for the selection.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#include "../geometry/box_coding.h"
#include "../selection/top_logits.h"
#include "candidates.h"
#include "detection_rule.h"

namespace fastdet::cpu {

// The head's output for one level, with dense images: logits (B, anchors, classes) and deltas (B,
// anchors, 4), and the strides from one image to the next.
template <typename T>
struct HeadLevel {
  const T *logits, *deltas;
  int64_t num_anchors, logits_stride, deltas_stride;
};

template <typename T>
struct PyramidHead {
  std::vector<HeadLevel<T>> levels;
  const Box<Sum<T>>* anchors;  // of all levels, one after another
  const int64_t* sizes;        // (B, 2): height and width of each image
  int64_t num_images, num_classes;
};

template <typename T, typename Parallel>
class PyramidDetections {
 public:
  using S = Sum<T>;

  PyramidDetections(const PyramidHead<T>& head, const DetectionRule<S>& rule,
                    const Parallel& parallel)
      : head_(head),
        rule_(rule),
        parallel_(parallel),
        num_levels_(static_cast<int64_t>(head.levels.size())),
        slots_(head.num_images * num_levels_) {}

  void write(const DetectionRows<S>& out) {
    select();
    parallel_(static_cast<int64_t>(slots_.size()), 1, [this](int64_t begin, int64_t end) {
      for (int64_t s = begin; s < end; ++s) decode(s);
    });
    for_each_image(head_.num_images, [&](int64_t b) { suppress(b, out); }, parallel_);
  }

 private:
  static constexpr int64_t kPiece = 1 << 15;  // the least number of logits of a thread

  // A run of a level's logits, from `begin` on, that one thread has read.
  struct Run {
    int64_t begin;
    TopLogits<S> top;
  };

  // One level of one image.
  struct Slot {
    std::vector<Run> runs;
    Candidates<S> candidates;
  };

  int64_t num_logits(int64_t level) const {
    return head_.levels[level].num_anchors * head_.num_classes;
  }

  // Finds the candidates of every slot. The pieces of all slots form one range, and each thread
  // takes a part of it.
  void select() {
    std::vector<int64_t> first_piece = {0};
    for (int64_t l = 0; l < num_levels_; ++l)
      first_piece.push_back(first_piece[l] + (num_logits(l) + kPiece - 1) / kPiece);
    const int64_t pieces = first_piece[num_levels_];
    std::mutex mutex;
    parallel_(head_.num_images * pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin / std::max<int64_t>(pieces, 1); b * pieces < end; ++b)
        for (int64_t l = 0; l < num_levels_; ++l) {
          const int64_t origin = b * pieces + first_piece[l];
          const int64_t from = std::max(begin - origin, int64_t(0)) * kPiece;
          const int64_t to = std::min((end - origin) * kPiece, num_logits(l));
          if (from >= to) continue;
          Run run = {from, read(b, l, from, to)};
          const std::lock_guard lock(mutex);
          slots_[b * num_levels_ + l].runs.push_back(std::move(run));
        }
    });
  }

  TopLogits<S> read(int64_t b, int64_t l, int64_t begin, int64_t end) const {
    const HeadLevel<T>& level = head_.levels[l];
    TopLogits<S> top(rule_.topk, rule_.logit_bound);
    top.read(level.logits + b * level.logits_stride, begin, end);
    top.trim();
    top.shrink();
    return top;
  }

  void decode(int64_t s) {
    const int64_t b = s / num_levels_, l = s % num_levels_;
    const TopLogits<S> top = joined(slots_[s].runs);
    const HeadLevel<T>& level = head_.levels[l];
    const Box<S>* anchors = head_.anchors;
    for (int64_t i = 0; i < l; ++i) anchors += head_.levels[i].num_anchors;
    const S height = S(head_.sizes[2 * b]), width = S(head_.sizes[2 * b + 1]);
    for (int64_t i = 0; i < top.size(); ++i) {
      const int64_t anchor = top.index(i) / head_.num_classes;
      const T* d = level.deltas + b * level.deltas_stride + 4 * anchor;
      const Deltas<S> deltas = {S(d[0]), S(d[1]), S(d[2]), S(d[3])};
      const Box<S> box =
          clip(fastdet::decode(deltas, anchors[anchor], {S(1), S(1), S(1), S(1)}), width, height);
      if (has_sides(box, rule_.min_size))
        slots_[s].candidates.append(box, top.logit(i),
                                    rule_.label(l, top.index(i) % head_.num_classes));
    }
  }

  TopLogits<S> joined(std::vector<Run>& runs) const {
    std::sort(runs.begin(), runs.end(),
              [](const Run& a, const Run& b) { return a.begin < b.begin; });
    TopLogits<S> top(rule_.topk, rule_.logit_bound);
    for (const Run& run : runs) top.join(run.top);
    top.trim();
    runs.clear();
    return top;
  }

  void suppress(int64_t b, const DetectionRows<S>& out) {
    Candidates<S> all;
    for (int64_t l = 0; l < num_levels_; ++l) all.append(slots_[b * num_levels_ + l].candidates);
    write_kept(b, all, rule_.iou_threshold, rule_.max_boxes, sigmoid<S>, out, parallel_);
  }

  const PyramidHead<T>& head_;
  const DetectionRule<S>& rule_;
  const Parallel& parallel_;
  int64_t num_levels_;
  std::vector<Slot> slots_;
};

}  // namespace fastdet::cpu
