// SPDX-License-Identifier: BSD-3-Clause
// The hot loops of every CPU kernel as tables of functions, one table per ISA and element type.
// A loop called x lives in x.loops.h; loops.cpp is compiled once per ISA and fills the tables;
// isa.cpp picks one. Plain C++ over pointers and ranges: no torch, no threads, no allocation, so
// that the NumPy entry points run the same code as the torch ops.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "../geometry/box_coding.h"
#include "../geometry/box_iou.h"
#include "../masks/mask_paste.h"
#include "../matching/match_rule.h"
#include "../focal_loss/focal_loss.h"
#include "../network/winograd_filters.h"

namespace fastdet::cpu {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// n boxes, one array a coordinate, so that a loop over boxes fills whole vectors.
template <typename T>
struct BoxPlanes {
  T *x1, *y1, *x2, *y2, *area;
};

// The same, read only, with the angle of the diagonal where a kind of IoU wants it.
template <typename T>
struct IouPlanes {
  const T *x1, *y1, *x2, *y2, *area, *angle;
};

// Anchors matched at a time; their planes and results stay in the L1 cache.
constexpr int64_t kMatchBlock = 256;
// A gt has so many running maxima, one a lane of the widest vector.
template <typename T>
constexpr int64_t kMatchLanes = 64 / static_cast<int64_t>(sizeof(T));
// What a lane of T is compared into.
template <typename T>
using LaneInt = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

// kMatchBlock anchors by planes. One that overlaps nothing, for want of a side above 0 or because
// the block is not full, is turned inside out; its area is NaN where it is not finite, else
// infinite.
template <typename T>
struct AnchorBlock {
  T x1[kMatchBlock], y1[kMatchBlock], x2[kMatchBlock], y2[kMatchBlock], area[kMatchBlock];
  Box<T> hull;  // of those that can overlap something
};

// The gts that are finite; `row` is where each of them stood. The area of one without sides above 0
// is infinite.
template <typename T>
struct GtPlanes {
  const T *x1, *y1, *x2, *y2, *area;
  const LaneInt<T>* row;
  int64_t size;
};

// The largest IoU of each gt with the blocks so far, and the first and last block that has it;
// kMatchLanes numbers a gt. of_block is all 0 between blocks.
template <typename T>
struct GtMaxima {
  T *of_block, *best;
  LaneInt<T>*first, *last;
};

enum class SoftNmsMethod { kLinear, kGaussian };

// How a score falls by the overlap with a picked box: by 1 - IoU where that is >= iou_threshold, or
// by exp(-IoU^2 / sigma). Below min_score, which is >= 0, a box is gone.
template <typename T>
struct SoftNmsRule {
  SoftNmsMethod method;
  T iou_threshold, sigma, min_score;
};

// The places [begin, begin + count) of kept boxes.
struct KeptRun {
  uint32_t begin, count;
};

constexpr int kNmsOverread = 16;

// An IoU above `iou` implies an intersection above `filter` times the union, as computed.
template <typename T>
struct NmsThreshold {
  T iou, filter;
};

template <typename T>
struct ImageSize {
  T width, height;
};

// Loops over boxes; T is float or double.
template <typename T>
struct BoxLoops {
  int64_t lanes;  // boxes that are looked at together

  // The place, less at most a vector, of a kept box in the runs that `box` overlaps by an IoU above
  // the threshold, or -1. Reads, and ignores, up to kNmsOverread values beyond a run.
  int64_t (*find_overlap)(const BoxPlanes<T>& kept, const KeptRun* runs, int64_t num_runs,
                          const Box<T>& box, T box_area, const NmsThreshold<T>& threshold);

  // out[j] = the IoU of `box` and others[j], j in [0, n).
  void (*box_iou_row)(IouKind kind, const IouBox<T>& box, const IouPlanes<T>& others, int64_t n,
                      const IouEps<T>& eps, T* out);

  // The sum over j of grad[j] times the derivative of that IoU by `box`.
  Box<T> (*box_iou_backward_row)(IouKind kind, const IouBox<T>& box, const IouPlanes<T>& others,
                                 int64_t n, const IouEps<T>& eps, const T* grad);

  // sum[j] += grad[j] times its derivative by others[j].
  void (*box_iou_backward_columns)(IouKind kind, const IouBox<T>& box, const IouPlanes<T>& others,
                                   int64_t n, const IouEps<T>& eps, const T* grad,
                                   const BoxPlanes<T>& sum);

  // out[i] = 1 - the IoU of boxes1[i] and boxes2[i], i in [0, n).
  void (*box_iou_loss)(IouKind kind, const Box<T>* boxes1, const Box<T>* boxes2, int64_t n,
                       const IouEps<T>& eps, T* out);

  // grad[i] times its derivative by boxes1[i] and boxes2[i].
  void (*box_iou_loss_backward)(IouKind kind, const Box<T>* boxes1, const Box<T>* boxes2, int64_t n,
                                const IouEps<T>& eps, const T* grad, Box<T>* grad1, Box<T>* grad2);

  // Row by row; decoded boxes are clipped to the size unless that is null.
  void (*encode_boxes)(const Box<T>* boxes, const Box<T>* anchors, int64_t n,
                       const Deltas<T>& weights, Deltas<T>* out);
  void (*decode_boxes)(const Deltas<T>* deltas, const Box<T>* anchors, int64_t n,
                       const Deltas<T>& weights, const ImageSize<T>* size, Box<T>* out);
  void (*decode_boxes_backward)(const Box<T>* grad, const Deltas<T>* deltas, const Box<T>* anchors,
                                int64_t n, const Deltas<T>& weights, const ImageSize<T>* size,
                                Deltas<T>* out);

  // n <= kMatchBlock boxes.
  void (*load_anchors)(const Box<T>* boxes, int64_t n, AnchorBlock<T>& block);

  // For each anchor its largest IoU with a gt and that gt's row (ties: the lowest), 0 and the first
  // row where it overlaps none; adds the block to the maxima. `chosen` has room for all gts.
  void (*best_matches)(const AnchorBlock<T>& anchors, const GtPlanes<T>& gts, int64_t block,
                       int32_t* chosen, const GtMaxima<T>& maxima, T* best_iou,
                       LaneInt<T>* best_row);

  // Puts the row of gt g where an anchor's IoU with it is `wanted`, a number above 0.
  void (*find_rescuers)(const AnchorBlock<T>& anchors, const GtPlanes<T>& gts, int64_t g, T wanted,
                        LaneInt<T>* rescuer);

  // The result of n anchors; the rescuer is a row or negative.
  void (*label_anchors)(const AnchorBlock<T>& anchors, int64_t n, const MatchRule<T>& rule,
                        const T* best_iou, const LaneInt<T>* best_row, const LaneInt<T>* rescuer,
                        int64_t* index);

  // Lets scores[0, n) fall by the overlap with `picked`; what is gone, or was, becomes -1. Returns
  // the highest score.
  T (*decay_scores)(const SoftNmsRule<T>& rule, const Box<T>& picked, T picked_area,
                    const BoxPlanes<T>& boxes, int64_t n, T* scores);
};

// What values of type T are summed in: float for the half types.
template <typename T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};
template <typename T>
using Sum = typename SumOf<T>::type;

// Bins whose merged rows RoIAlign holds at a time.
constexpr int64_t kMergedRows = 8;
// Columns merged at a time, in registers.
constexpr int64_t kColumnBlock = 16;
// From one merged row to the next.
constexpr int64_t merged_stride(int64_t span) { return (span + 31) / 32 * 32; }

// The channels of one image or of one pooled RoI; (c, y, x) lies at
// c * channel_stride + y * row_stride + x * pixel_stride.
template <typename T>
struct FeatureMap {
  T* data;
  int64_t channels, channel_stride, row_stride, pixel_stride;
};

// One axis of a RoI: bin p is the sum of weight[i] * feature[index[i]], begin[p] <= i < begin[p +
// 1]. All samples of the bin that read an index are merged into one tap.
template <typename S>
struct Taps {
  const int64_t *begin, *index;
  const S* weight;
  int64_t bins;
  int64_t low, span;  // every index is in [low, low + span)
};

// Loops over features and logits; T is float, double, Half or BFloat16, sums are float or double.
template <typename T>
struct FeatureLoops {
  // RoIAlign of one RoI. `pixels`: channel_stride is 1 in the map; `planes`: pixel_stride is 1, and
  // merged has room for kMergedRows * merged_stride(columns.span) finite values. The pooled side
  // may have any strides.
  void (*pool_pixels)(const FeatureMap<const T>& map, const Taps<Sum<T>>& rows,
                      const Taps<Sum<T>>& columns, const FeatureMap<T>& pooled);
  void (*pool_planes)(const FeatureMap<const T>& map, const Taps<Sum<T>>& rows,
                      const Taps<Sum<T>>& columns, const FeatureMap<T>& pooled, Sum<T>* merged);
  // Its transpose: adds the gradient of one pooled RoI to the gradient of the map.
  void (*spread_pixels)(const FeatureMap<const T>& grad, const Taps<Sum<T>>& rows,
                        const Taps<Sum<T>>& columns, const FeatureMap<Sum<T>>& map);
  void (*spread_planes)(const FeatureMap<const T>& grad, const Taps<Sum<T>>& rows,
                        const Taps<Sum<T>>& columns, const FeatureMap<Sum<T>>& map, Sum<T>* merged);

  // The focal loss of n logits, and grad times its derivative; null targets are all 0.
  void (*sigmoid_focal_loss)(const T* inputs, const Sum<T>* targets, int64_t n,
                             const FocalWeights<Sum<T>>& weights, Sum<T>* out);
  void (*sigmoid_focal_loss_backward)(const T* inputs, const Sum<T>* targets, int64_t n,
                                      const FocalWeights<Sum<T>>& weights, const Sum<T>* grad,
                                      T* out);

  // The values and indices, from `first` on, of the logits above the bound, in order; returns how
  // many. Both outputs have room for n.
  int64_t (*find_above)(const T* logits, int64_t n, Sum<T> bound, int64_t first, Sum<T>* values,
                        int64_t* index);

  // out = softmax(logits), n of them.
  void (*softmax)(const T* logits, int64_t n, Sum<T>* out);
};

// Loops over masks; S is float or double.
template <typename S>
struct MaskLoops {
  // out (rows.bins, columns.bins) = the taps of a mask, whose pixels lie side by side; merged has
  // room for kMergedRows * merged_stride(columns.span) finite values.
  void (*crop_mask)(const uint8_t* mask, int64_t row_stride, const Taps<S>& rows,
                    const Taps<S>& columns, S* out, S* merged);

  // The sum of the binary cross entropies of n logits, and the derivative of each.
  S (*mask_loss)(const S* logits, const S* targets, int64_t n, S* residual);

  // out[x] = a row of a mask at column taps (see ../mask_paste.h), x in [0, n); and n values
  // between two such rows, themselves or compared with a threshold.
  void (*stretch_row)(const S* row, const int32_t* index, const S* fraction, int64_t n, S* out);
  void (*paste_row)(const S* above, const S* below, S fraction, int64_t n, S* out);
  void (*paste_row_above)(const S* above, const S* below, S fraction, S threshold, int64_t n,
                          bool* out);

  // out[i] = 1 where what lies between values[i] and values[i + 1] is above, i in [0, n).
  void (*paste_column_above)(const S* values, const S* fraction, S threshold, int64_t n,
                             uint8_t* out);
};

// So many tiles are multiplied by a panel of filters at a time.
constexpr int64_t kWinogradRows = 12;

// (row, k) lies at row * row_stride + k * depth_stride.
struct WinogradFactor {
  const float* data;
  int64_t row_stride, depth_stride;
};

// Loops of Winograd's F(2x2, 3x3). A tile's 16 positions lie position_stride apart, row by row.
struct WinogradLoops {
  // The transformed 4x4 inputs, or gradients of 2x2 outputs, of a tile. Whole vectors are written.
  void (*input)(const float* const* pixels, int64_t channels, float* out, int64_t position_stride);
  void (*output_grad)(const float* const* pixels, int64_t channels, float* out,
                      int64_t position_stride);

  // out (rows, kWinogradPanel) = the factor times a panel (depth, kWinogradPanel), or += that; rows
  // are a multiple of kWinogradRows.
  void (*multiply)(const WinogradFactor& factor, int64_t rows, const float* panel, int64_t depth,
                   bool add, float* out, int64_t out_stride);

  // The channels [first, first + channels) of 2x2 outputs: a tile's products, plus a bias, plus the
  // summands unless they are null. Null pixels are left out. Products and bias, which begin at
  // `first`, are read by whole vectors.
  void (*output)(const float* products, int64_t position_stride, const float* bias,
                 const float* const* summands, bool relu, int64_t first, int64_t channels,
                 float* const* pixels);

  // The 16 positions, kWinogradPanel apart, of at most kWinogradPanel channels of a filter; its 9
  // taps lie tap_stride apart. And the gradient of the taps by that of the positions.
  void (*filter)(const float* taps, int64_t tap_stride, int64_t channels, float* out);
  void (*filter_grad)(const float* grad, int64_t position_stride, int64_t channels, float* out,
                      int64_t tap_stride);
};

#define FASTDET_DECLARE_ISA(name)         \
  namespace name {                        \
  template <typename T>                   \
  const BoxLoops<T>& box_loops();         \
  template <typename T>                   \
  const FeatureLoops<T>& feature_loops(); \
  template <typename S>                   \
  const MaskLoops<S>& mask_loops();       \
  const WinogradLoops& winograd_loops();  \
  }

FASTDET_DECLARE_ISA(baseline)
FASTDET_DECLARE_ISA(avx2)
FASTDET_DECLARE_ISA(avx512)
#undef FASTDET_DECLARE_ISA

// The tables of the current ISA.
template <typename T>
const BoxLoops<T>& box_loops();
template <typename T>
const FeatureLoops<T>& feature_loops();
template <typename S>
const MaskLoops<S>& mask_loops();
const WinogradLoops& winograd_loops();

}  // namespace fastdet::cpu
