// SPDX-License-Identifier: BSD-3-Clause
// Greedy non-maximum suppression. Boxes are visited by falling score (ties: the lower index first)
// and each is tested against the boxes kept so far: O(n * kept) IoUs at most, O(n) memory.
// A score that is NaN or a coordinate that is not finite drops the box before the sort.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../checks.h"
#include "../threshold.h"
#include "loops.h"
#include "parallel.h"

namespace fastdet::cpu {

namespace {

template <typename T>
struct NmsInput {
  const Box<T>* boxes;
  const T* scores;
  const int64_t* groups;  // null: one group
  int64_t n;

  int64_t group(int64_t i) const { return groups ? groups[i] : 0; }
};

// Indices of the usable boxes by (score falling, index rising).
template <typename T>
std::vector<int64_t> score_order(const NmsInput<T>& in) {
  std::vector<int64_t> order;
  order.reserve(in.n);
  for (int64_t i = 0; i < in.n; ++i)
    if (!std::isnan(in.scores[i]) && is_finite(in.boxes[i])) order.push_back(i);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return in.scores[a] != in.scores[b] ? in.scores[a] > in.scores[b] : a < b;
  });
  return order;
}

// The kept boxes of one group, one array a coordinate.
template <typename T>
class KeptBoxes {
 public:
  explicit KeptBoxes(int64_t capacity) : storage_(5 * capacity) {
    T* p = storage_.data();
    planes_ = {p, p + capacity, p + 2 * capacity, p + 3 * capacity, p + 4 * capacity};
  }

  void clear() { n_ = 0; }

  // Keeps the box unless it overlaps a kept one.
  bool offer(const Box<T>& box, T iou_threshold) {
    const T box_area = area(box);
    if (box_loops<T>().overlaps_any(planes_, n_, box, box_area, iou_threshold)) return false;
    planes_.x1[n_] = box.x1;
    planes_.y1[n_] = box.y1;
    planes_.x2[n_] = box.x2;
    planes_.y2[n_] = box.y2;
    planes_.area[n_++] = box_area;
    return true;
  }

 private:
  std::vector<T> storage_;
  BoxPlanes<T> planes_;
  int64_t n_ = 0;
};

// Writes at most `max_keep` kept indices by falling score; returns how many.
template <typename T>
int64_t nms_one_image(const NmsInput<T>& in, T iou_threshold, int64_t max_keep, int64_t* keep) {
  const std::vector<int64_t> order = score_order(in);
  const int64_t n = static_cast<int64_t>(order.size());
  KeptBoxes<T> kept(n);
  int64_t num_kept = 0;
  if (!in.groups) {
    for (int64_t r = 0; r < n && num_kept < max_keep; ++r)
      if (kept.offer(in.boxes[order[r]], iou_threshold)) keep[num_kept++] = order[r];
    return num_kept;
  }
  // Group by group over ranks in score order, then one walk over the ranks restores that order.
  std::vector<int64_t> by_group(n);
  for (int64_t r = 0; r < n; ++r) by_group[r] = r;
  std::stable_sort(by_group.begin(), by_group.end(),
                   [&](int64_t a, int64_t b) { return in.groups[order[a]] < in.groups[order[b]]; });
  std::vector<uint8_t> survives(n, 0);
  for (int64_t i = 0; i < n; ++i) {
    const int64_t index = order[by_group[i]];
    if (i > 0 && in.groups[index] != in.groups[order[by_group[i - 1]]]) kept.clear();
    survives[by_group[i]] = kept.offer(in.boxes[index], iou_threshold);
  }
  for (int64_t r = 0; r < n && num_kept < max_keep; ++r)
    if (survives[r]) keep[num_kept++] = order[r];
  return num_kept;
}

Tensor nms_dynamic(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                   double iou_threshold) {
  const auto dtype = box_dtype(boxes);
  const Tensor boxes_in = box_input(boxes, dtype), scores_in = box_input(scores, dtype);
  const std::optional<Tensor> idxs_in = contiguous(idxs);
  const int64_t n = boxes.size(0);
  const Tensor keep = empty(boxes, {n}, kInt64);
  const int64_t num_kept = dispatch_box(dtype, [&]<typename T>() {
    const NmsInput<T> in = {data<Box<T>>(boxes_in), data<T>(scores_in),
                            idxs_in ? data<int64_t>(*idxs_in) : nullptr, n};
    return nms_one_image(in, round_down<T>(iou_threshold), n, mutable_data<int64_t>(keep));
  });
  Tensor whole = keep;
  return torch::stable::clone(torch::stable::narrow(whole, 0, 0, num_kept));
}

}  // namespace

Tensor nms(const Tensor& boxes, const Tensor& scores, double iou_threshold) {
  check_nms("nms", boxes, scores);
  return nms_dynamic(boxes, scores, std::nullopt, iou_threshold);
}

Tensor batched_nms(const Tensor& boxes, const Tensor& scores, const Tensor& idxs,
                   double iou_threshold) {
  check_batched_nms("batched_nms", boxes, scores, idxs);
  return nms_dynamic(boxes, scores, idxs, iou_threshold);
}

std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores,
                                      double iou_threshold, int64_t max_keep,
                                      const std::optional<Tensor>& groups,
                                      const std::optional<Tensor>& counts) {
  check_nms_padded("nms_padded", boxes, scores, max_keep, groups, counts);
  const auto dtype = box_dtype(boxes);
  const Tensor boxes_in = box_input(boxes, dtype), scores_in = box_input(scores, dtype);
  const std::optional<Tensor> groups_in = contiguous(groups);
  const std::optional<Tensor> counts_in = contiguous(counts);
  const int64_t num_images = boxes.size(0), n = boxes.size(1);
  const Tensor keep = empty(boxes, {num_images, max_keep}, kInt64);
  const Tensor keep_counts = empty(boxes, {num_images}, kInt64);
  dispatch_box(dtype, [&]<typename T>() {
    parallel_for(num_images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) {
        const int64_t count =
            counts_in ? std::clamp<int64_t>(data<int64_t>(*counts_in)[b], 0, n) : n;
        const NmsInput<T> in = {data<Box<T>>(boxes_in) + b * n, data<T>(scores_in) + b * n,
                                groups_in ? data<int64_t>(*groups_in) + b * n : nullptr, count};
        int64_t* row = mutable_data<int64_t>(keep) + b * max_keep;
        const int64_t num_kept = nms_one_image(in, round_down<T>(iou_threshold), max_keep, row);
        std::fill(row + num_kept, row + max_keep, int64_t(-1));
        mutable_data<int64_t>(keep_counts)[b] = num_kept;
      }
    });
  });
  return {keep, keep_counts};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("nms", TORCH_BOX(&nms));
  m.impl("batched_nms", TORCH_BOX(&batched_nms));
  m.impl("nms_padded", TORCH_BOX(&nms_padded));
}

}  // namespace fastdet::cpu
