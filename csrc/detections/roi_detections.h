// SPDX-License-Identifier: BSD-3-Clause
// The detections of a box head over raw pointers. It computes the softmax of each RoI's logits,
// decodes and clips the boxes of the classes above the threshold, and suppresses by class. Plain
// C++, no torch. Cost: one read of the logits and one exp for each; deltas are read only if a class
// passes. Memory: O(candidates), which are all classes that pass.
#pragma once

#include <cstdint>
#include <vector>

#include "../geometry/box_coding.h"
#include "../geometry/threshold.h"
#include "../selection/top_logits.loops.h"
#include "candidates.h"
#include "softmax.loops.h"

namespace fastdet::cpu {

// K RoIs in each image: logits (B, K, C), deltas (B, K, C, 4), boxes (B, K, 4). Class 0 is
// background.
template <typename T>
struct RoiHead {
  const T *logits, *deltas;
  const Box<Sum<T>>* proposals;
  const int64_t* counts;  // (B,) or null; RoIs from an image's count on are not read
  const int64_t* sizes;   // (B, 2): height and width of each image
  int64_t num_images, num_rois, num_classes;
  Deltas<Sum<T>> weights;
};

// The candidates of RoIs [begin, end) of image b.
template <typename T>
Candidates<Sum<T>> roi_candidates(const RoiHead<T>& head, int64_t b, int64_t begin, int64_t end,
                                  Sum<T> score_threshold, Sum<T> min_size) {
  using S = Sum<T>;
  const auto& loops = current_loops<SoftmaxLoops<T>>();
  const int64_t c = head.num_classes;
  const S height = S(head.sizes[2 * b]), width = S(head.sizes[2 * b + 1]);
  std::vector<S> scores(c), found(c);
  std::vector<int64_t> labels(c);
  Candidates<S> out;
  for (int64_t roi = b * head.num_rois + begin; roi < b * head.num_rois + end; ++roi) {
    loops.softmax(head.logits + roi * c, c, scores.data());
    const int64_t n = current_loops<TopLogitsLoops<S>>().find_above(
        scores.data() + 1, c - 1, score_threshold, 1, found.data(), labels.data());
    for (int64_t i = 0; i < n; ++i) {
      const T* d = head.deltas + 4 * (roi * c + labels[i]);
      const Deltas<S> deltas = {S(d[0]), S(d[1]), S(d[2]), S(d[3])};
      const Box<S> box = clip(decode(deltas, head.proposals[roi], head.weights), width, height);
      if (has_sides(box, min_size)) out.append(box, found[i], labels[i]);
    }
  }
  return out;
}

// `parallel(n, grain, body)` calls body(begin, end) over pieces of [0, n).
template <typename T, typename Parallel>
void write_roi_detections(const RoiHead<T>& head, double score_threshold, double iou_threshold,
                          int64_t detections_per_img, double min_size,
                          const DetectionRows<Sum<T>>& out, const Parallel& parallel) {
  using S = Sum<T>;
  constexpr int64_t kPiece = 32;  // the least number of RoIs of a thread
  const int64_t pieces = (head.num_rois + kPiece - 1) / kPiece;
  std::vector<Candidates<S>> found(head.num_images * pieces);
  parallel(head.num_images * pieces, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t b = i / pieces, begin = i % pieces * kPiece;
      const int64_t count = head.counts ? std::min(head.counts[b], head.num_rois) : head.num_rois;
      found[i] = roi_candidates(head, b, begin, std::min(begin + kPiece, count),
                                static_cast<S>(score_threshold), static_cast<S>(min_size));
    }
  });
  const auto suppress = [&](int64_t b) {
    Candidates<S> all;
    for (int64_t i = b * pieces; i < (b + 1) * pieces; ++i) all.append(found[i]);
    const auto score = [](S rank) { return rank; };
    write_kept(b, all, round_down<S>(iou_threshold), detections_per_img, score, out, parallel);
  };
  for_each_image(head.num_images, suppress, parallel);
}

}  // namespace fastdet::cpu
