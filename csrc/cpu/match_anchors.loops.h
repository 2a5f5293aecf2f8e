// SPDX-License-Identifier: BSD-3-Clause
// Included by loops.cpp inside the namespace of an ISA. Both loops compute the same IoU from the
// same operands in the same order, so the second one finds the bits that the first one saw.

// An IoU is never negative, and the bits of such numbers order as integers do: an integer maximum
// is a reduction that the compiler may vectorise, a floating one is not.
template <typename T>
struct BitsOf;
template <>
struct BitsOf<float> {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};

template <typename T>
void best_matches(const BoxPlanes<T>& anchors, int64_t n, const BoxPlanes<T>& gts, int64_t num_gts,
                  T* best_iou, int32_t* best_gt, T* gt_best_iou) {
  using Bits = typename BitsOf<T>::type;
  for (int64_t i = 0; i < n; ++i) {
    best_iou[i] = T(-1);
    best_gt[i] = -1;
  }
  for (int64_t g = 0; g < num_gts; ++g) {
    const Box<T> gt = {gts.x1[g], gts.y1[g], gts.x2[g], gts.y2[g]};
    const T gt_area = gts.area[g];
    Bits most = __builtin_bit_cast(Bits, gt_best_iou[g]);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const Box<T> anchor = {anchors.x1[i], anchors.y1[i], anchors.x2[i], anchors.y2[i]};
      const T overlap = iou(gt, gt_area, anchor, anchors.area[i]);
      const bool better = overlap > best_iou[i];
      best_iou[i] = better ? overlap : best_iou[i];
      best_gt[i] = better ? static_cast<int32_t>(g) : best_gt[i];
      const Bits bits = __builtin_bit_cast(Bits, overlap);
      most = bits > most ? bits : most;
    }
    gt_best_iou[g] = __builtin_bit_cast(T, most);
  }
}

template <typename T>
void find_rescuers(const BoxPlanes<T>& anchors, int64_t n, const BoxPlanes<T>& gts, int64_t num_gts,
                   const T* rescue_iou, int32_t* rescuer) {
  for (int64_t i = 0; i < n; ++i) rescuer[i] = -1;
  for (int64_t g = 0; g < num_gts; ++g) {
    const Box<T> gt = {gts.x1[g], gts.y1[g], gts.x2[g], gts.y2[g]};
    const T gt_area = gts.area[g], wanted = rescue_iou[g];
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const Box<T> anchor = {anchors.x1[i], anchors.y1[i], anchors.x2[i], anchors.y2[i]};
      const T overlap = iou(gt, gt_area, anchor, anchors.area[i]);
      rescuer[i] = overlap == wanted ? static_cast<int32_t>(g) : rescuer[i];
    }
  }
}
