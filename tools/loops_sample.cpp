// SPDX-License-Identifier: BSD-3-Clause
// Runs the CPU loops of the ISA "baseline" on fixed inputs and prints each result, a line each:
// "name i index" or "name f value", values in hexadecimal. tools/aarch64.py compares the lines of
// two processors. No torch and no random number of the standard library, so that the inputs are the
// same everywhere.
#include <cmath>
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

#include "../csrc/assignment/linear_assignment.h"
#include "../csrc/assignment/query_matcher.h"
#include "../csrc/box_coding/box_coding.loops.h"
#include "../csrc/box_iou/box_iou_loss.loops.h"
#include "../csrc/box_iou/iou_planes.h"
#include "../csrc/deform_attention/ms_deform_attn.loops.h"
#include "../csrc/deform_conv/deform_conv2d.loops.h"
#include "../csrc/dense_assignment/atss.h"
#include "../csrc/dense_assignment/simota.h"
#include "../csrc/dense_assignment/task_aligned.h"
#include "../csrc/detections/multiclass_nms.h"
#include "../csrc/detections/pyramid_detections.h"
#include "../csrc/detections/softmax.loops.h"
#include "../csrc/focal_loss/sigmoid_focal_loss.loops.h"
#include "../csrc/geometry/bilinear.h"
#include "../csrc/geometry/threshold.h"
#include "../csrc/masks/mask_rcnn_loss.loops.h"
#include "../csrc/masks/paste_masks.loops.h"
#include "../csrc/matching/anchor_matcher.h"
#include "../csrc/matching/sample_matches.loops.h"
#include "../csrc/network/winograd.loops.h"
#include "../csrc/network/winograd_filters_grad.loops.h"
#include "../csrc/nms/greedy_nms.h"
#include "../csrc/nms/soft_nms.h"
#include "../csrc/roi_align/roi_align.loops.h"
#include "../csrc/roi_align/tap_list.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kBoxes = 333;  // no multiple of a vector

constexpr auto kSerial = [](int64_t n, int64_t, const auto& body) {
  if (n > 0) body(int64_t(0), n);
};

// ---- inputs -------------------------------------------------------------------------------------

class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed) {}

  uint32_t integer() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 33);
  }

  // Of 24 bits, exact in float.
  double between(double low, double high) {
    return low + (high - low) * static_cast<double>(integer() >> 7) / (1 << 24);
  }

 private:
  uint64_t state_;
};

template <typename T>
std::vector<T> values(int64_t n, double low, double high, uint64_t seed) {
  Numbers numbers(seed);
  std::vector<T> out(n);
  for (T& value : out) value = static_cast<T>(static_cast<float>(numbers.between(low, high)));
  return out;
}

// Partly outside of [0, 100), some without area; equal for float and double.
template <typename T>
std::vector<Box<T>> boxes(int64_t n, uint64_t seed) {
  Numbers numbers(seed);
  std::vector<Box<T>> out(n);
  for (Box<T>& box : out) {
    const float x = static_cast<float>(numbers.between(-10, 90));
    const float y = static_cast<float>(numbers.between(-10, 90));
    const bool flat = numbers.integer() % 16 == 0;
    const float width = flat ? 0.f : static_cast<float>(numbers.between(1, 40));
    box = {T(x), T(y), T(x + width), T(y + static_cast<float>(numbers.between(1, 40)))};
  }
  return out;
}

// ---- results ------------------------------------------------------------------------------------

void print_value(const std::string& name, double value) {
  if (std::isnan(value))  // whose sign is the processor's choice
    std::printf("%s f nan\n", name.c_str());
  else
    std::printf("%s f %a\n", name.c_str(), value);
}

void print(const std::string& name, const std::vector<int64_t>& indices) {
  for (const int64_t index : indices)
    std::printf("%s i %lld\n", name.c_str(), static_cast<long long>(index));
}

template <typename T>
  requires std::is_convertible_v<T, float>
void print(const std::string& name, const std::vector<T>& numbers) {
  for (const T& value : numbers) print_value(name, static_cast<Sum<T>>(value));
}

template <typename T>
void print(const std::string& name, const std::vector<Box<T>>& rows) {
  for (const Box<T>& box : rows)
    for (const T value : {box.x1, box.y1, box.x2, box.y2}) print_value(name, value);
}

template <typename T>
void print(const std::string& name, const std::vector<Deltas<T>>& rows) {
  for (const Deltas<T>& row : rows)
    for (const T value : {row.dx, row.dy, row.dw, row.dh}) print_value(name, value);
}

// ---- one function for each family of csrc -------------------------------------------------------

template <typename T>
void box_coding(const std::string& type) {
  const auto& loops = current_loops<BoxCodingLoops<T>>();
  const auto a = boxes<T>(kBoxes, 1), b = boxes<T>(kBoxes, 2);
  const Deltas<T> weights = {T(10), T(10), T(5), T(5)};
  const ImageSize<T> size = {T(80), T(60)};
  std::vector<Deltas<T>> deltas(kBoxes), grad(kBoxes);
  std::vector<Box<T>> decoded(kBoxes);
  loops.encode_boxes(a.data(), b.data(), kBoxes, weights, deltas.data());
  loops.decode_boxes(deltas.data(), b.data(), kBoxes, weights, &size, decoded.data());
  loops.decode_boxes_backward(a.data(), deltas.data(), b.data(), kBoxes, weights, &size,
                              grad.data());
  print(type + " encode_boxes", deltas);
  print(type + " decode_boxes", decoded);
  print(type + " decode_boxes_backward", grad);
}

template <typename T>
void box_iou(const std::string& type) {
  const auto& pairs = current_loops<BoxIouLoops<T>>();
  const auto& rows = current_loops<BoxIouLossLoops<T>>();
  const auto a = boxes<T>(kBoxes, 3), b = boxes<T>(kBoxes, 4);
  const auto grad = values<T>(kBoxes, -1, 1, 5);
  for (const IouKind kind :
       {IouKind::kIou, IouKind::kGeneralized, IouKind::kDistance, IouKind::kComplete}) {
    const std::string name = type + " iou " + std::to_string(static_cast<int>(kind));
    std::vector<T> planes(kIouPlanes * kBoxes), iou(kBoxes);
    load_iou_planes(kind, b.data(), 0, kBoxes, planes.data(), kBoxes);
    const IouPlanes<T> others = iou_planes_from(planes.data(), kBoxes, 0);
    const IouEps<T> eps = pairwise_eps<T>(1e-7), loss = loss_eps<T>(kind, 1e-7);
    std::vector<Box<T>> sums, grad1(kBoxes), grad2(kBoxes);
    std::vector<T> sum(4 * kBoxes);
    const BoxPlanes<T> columns = {&sum[0], &sum[kBoxes], &sum[2 * kBoxes], &sum[3 * kBoxes],
                                  nullptr};
    for (int64_t i = 0; i < 3; ++i) {
      const IouBox<T> box = iou_box(kind, a[i]);
      pairs.box_iou_row(kind, box, others, kBoxes, eps, iou.data());
      print(name, iou);
      sums.push_back(pairs.box_iou_backward_row(kind, box, others, kBoxes, eps, grad.data()));
      pairs.box_iou_backward_columns(kind, box, others, kBoxes, eps, grad.data(), columns);
    }
    print(name + " backward", sums);
    print(name + " backward", sum);
    rows.box_iou_loss(kind, a.data(), b.data(), kBoxes, loss, iou.data());
    rows.box_iou_loss_backward(kind, a.data(), b.data(), kBoxes, loss, grad.data(), grad1.data(),
                               grad2.data());
    print(name + " loss", iou);
    print(name + " loss backward", grad1);
    print(name + " loss backward", grad2);
  }
}

template <typename T>
void focal_loss(const std::string& type) {
  using S = Sum<T>;
  const auto& loops = current_loops<FocalLossLoops<T>>();
  const auto logits = values<T>(kBoxes, -30, 30, 6);
  const auto targets = values<S>(kBoxes, 0, 1, 7), grad = values<S>(kBoxes, -1, 1, 8);
  for (const double gamma : {0., 1.5, 2.}) {
    const auto weights = focal_weights<S>(0.25, gamma);
    for (const S* target : {static_cast<const S*>(nullptr), targets.data()}) {
      std::vector<S> loss(kBoxes);
      std::vector<T> grad_logits(kBoxes);
      loops.sigmoid_focal_loss(logits.data(), target, kBoxes, weights, loss.data());
      loops.sigmoid_focal_loss_backward(logits.data(), target, kBoxes, weights, grad.data(),
                                        grad_logits.data());
      print(type + " focal_loss", loss);
      print(type + " focal_loss backward", grad_logits);
    }
  }
}

template <typename T>
void nms(const std::string& type) {
  const auto rows = boxes<T>(kBoxes, 9);
  const auto scores = values<T>(kBoxes, 0, 1, 10);
  std::vector<int64_t> groups(kBoxes);
  for (int64_t i = 0; i < kBoxes; ++i) groups[i] = i % 3;
  for (const int64_t* ids : {static_cast<int64_t*>(nullptr), groups.data()}) {
    const NmsInput<T> in = {rows.data(), scores.data(), ids, kBoxes};
    std::vector<int64_t> keep(kBoxes);
    keep.resize(greedy_nms(in, round_down<T>(0.4), kBoxes, keep.data(), kSerial));
    print(type + " nms", keep);
  }
  for (const SoftNmsMethod method : {SoftNmsMethod::kLinear, SoftNmsMethod::kGaussian}) {
    const SoftNmsRule<T> rule = {method, T(0.3), T(0.5), T(0.001)};
    std::vector<int64_t> keep;
    std::vector<T> kept_scores;
    SoftNms<T>(rows.data(), scores.data(), nullptr, kBoxes, rule).run([&](int64_t i, T score) {
      keep.push_back(i);
      kept_scores.push_back(score);
    });
    print(type + " soft_nms", keep);
    print(type + " soft_nms scores", kept_scores);
  }
}

template <typename T>
void matching(const std::string& type) {
  const auto anchors = boxes<T>(2 * kBoxes, 11), gts = boxes<T>(20, 12);
  const std::vector<int64_t> counts = {10, 7};
  for (const LowQuality rule : {LowQuality::kNone, LowQuality::kAnchorBest, LowQuality::kGtBest}) {
    const MatchInput<T> in = {
        anchors.data(), 0, gts.data(), counts.data(), 2, 2 * kBoxes, 10, {T(0.5), T(0.3), rule}};
    std::vector<int64_t> index(4 * kBoxes);
    std::vector<T> iou(4 * kBoxes);
    match_batch(in, index.data(), iou.data(), kSerial);
    print(type + " match_anchors", index);
    print(type + " match_anchors iou", iou);
  }
}

template <typename T>
void dense_assignment(const std::string& type) {
  constexpr int64_t kClasses = 5, kGts = 10;
  const auto predicted = boxes<T>(2 * kBoxes, 26), gts = boxes<T>(2 * kGts, 27);
  const auto scores = values<T>(2 * kBoxes * kClasses, 0, 1, 28);
  const auto points = values<T>(2 * kBoxes, 0, 100, 29);
  const std::vector<int64_t> labels = {0, 1, 2, 3, 4, 0, 1, 2, 5, 4, 3, 2, 1, 0, 4, 3, 2, 1, 0, 4};
  const std::vector<int64_t> counts = {kGts, 7};
  for (const double beta : {6., 2.5}) {
    const TaskAlignedInput<T> in = {scores.data(),
                                    kBoxes * kClasses,
                                    kClasses,
                                    1,
                                    predicted.data(),
                                    points.data(),
                                    {labels.data(), gts.data(), counts.data(), kGts, kClasses},
                                    2,
                                    kBoxes,
                                    5,
                                    task_alignment<T>(0.5, beta, 8)};
    std::vector<int64_t> index(2 * kBoxes);
    std::vector<T> metric(2 * kBoxes);
    assign_task_aligned_batch(in, index.data(), metric.data(), kSerial);
    print(type + " assign_task_aligned", index);
    print(type + " assign_task_aligned metric", metric);
  }
  std::vector<int64_t> index(4 * kBoxes);
  std::vector<T> overlap(4 * kBoxes);
  const auto strides = values<T>(kBoxes, 4, 20, 30);
  const SimotaInput<T> in = {scores.data(),
                             predicted.data(),
                             points.data(),
                             strides.data(),
                             {labels.data(), gts.data(), counts.data(), kGts, kClasses},
                             2,
                             kBoxes,
                             10,
                             {T(2.5), T(1), T(3)}};
  assign_simota_batch(in, index.data(), overlap.data(), kSerial);
  index.resize(2 * kBoxes), overlap.resize(2 * kBoxes);
  print(type + " assign_simota", index);
  print(type + " assign_simota iou", overlap);
  index.resize(4 * kBoxes), overlap.resize(4 * kBoxes);
  assign_atss_batch<T>({predicted.data(),
                        {kBoxes + 9, kBoxes - 9},
                        gts.data(),
                        counts.data(),
                        2,
                        2 * kBoxes,
                        kGts,
                        9},
                       index.data(), overlap.data(), kSerial);
  print(type + " assign_atss", index);
  print(type + " assign_atss iou", overlap);
}

template <typename T>
void assignment(const std::string& type) {
  const auto cost = values<T>(3 * 40 * 27, 0, 10, 22);
  std::vector<int64_t> index(3 * 40);
  assign_batch<T>({cost.data(), nullptr, nullptr, 3, 40, 27}, index.data(), kSerial);
  print(type + " linear_assignment", index);

  constexpr int64_t kQueries = 61, kClasses = 5, kGts = 9;
  const auto logits = values<T>(2 * kQueries * kClasses, -9, 9, 23);
  const auto centred = values<T>(2 * kQueries * 4, 0, 1, 24),
             gts = values<T>(2 * kGts * 4, 0, 1, 25);
  const std::vector<int64_t> labels = {0, 1, 2, 3, 4, 0, 1, 2, 5, 4, 3, 2, 1, 0, 4, 3, 2, 1};
  const std::vector<int64_t> counts = {kGts, 7};
  std::vector<int64_t> matched(2 * kQueries);
  for (const ClassCost kind : {ClassCost::kFocal, ClassCost::kSoftmax}) {
    const QueryBatch<T> in = {logits.data(),
                              reinterpret_cast<const CentredBox<T>*>(centred.data()),
                              labels.data(),
                              reinterpret_cast<const CentredBox<T>*>(gts.data()),
                              counts.data(),
                              1,
                              2,
                              kQueries,
                              kClasses,
                              kGts,
                              1,
                              {2, 5, 2, 0.25, 1.5},
                              kind};
    match_query_batch(in, matched.data(), kSerial);
    print(type + " match_queries", matched);
  }
}

template <typename T>
void detections(const std::string& type) {
  constexpr int64_t kClasses = 5, kRows = 50;
  const auto anchors = boxes<T>(kBoxes, 13);
  const auto logits = values<T>(kBoxes * kClasses, -4, 2, 14);
  const auto deltas = values<T>(kBoxes * 4, -1, 1, 15);
  const std::vector<int64_t> sizes = {60, 80};
  const PyramidHead<T> head = {
      {{logits.data(), deltas.data(), kBoxes, 0, 0}}, anchors.data(), sizes.data(), 1, kClasses};
  std::vector<Box<T>> kept(kRows);
  std::vector<T> scores(kRows);
  std::vector<int64_t> labels(kRows), counts(1);
  const auto rule = retinanet_rule<T>(0.05, 200, 0.5, kRows);
  PyramidDetections(head, rule, kSerial)
      .write({kept.data(), scores.data(), labels.data(), counts.data()});
  print(type + " retinanet_detections labels", labels);
  print(type + " retinanet_detections counts", counts);
  print(type + " retinanet_detections boxes", kept);
  print(type + " retinanet_detections scores", scores);
  std::vector<Sum<T>> probabilities(kBoxes);
  current_loops<SoftmaxLoops<T>>().softmax(logits.data(), kBoxes, probabilities.data());
  print(type + " softmax", probabilities);
}

// Of a map of 24 x 40 pixels with 5 channels, in either layout.
template <typename T>
void roi_align(const std::string& type) {
  using S = Sum<T>;
  constexpr int64_t kHeight = 24, kWidth = 40, kChannels = 5, kBins = 3;
  const auto& loops = current_loops<RoiAlignLoops<T>>();
  const auto map = values<T>(kChannels * kHeight * kWidth, -1, 1, 16);
  const FeatureMap<const T> planes = {map.data(), kChannels, kHeight * kWidth, kWidth, 1};
  const FeatureMap<const T> pixels = {map.data(), kChannels, 1, kWidth * kChannels, kChannels};
  for (const Box<float>& box : boxes<float>(20, 17)) {
    TapList<S> row_list, column_list;
    row_list.build(roi_axis_in_float64<S>(box.y1, box.y2, S(0.25), true, kBins, 2), kBins, kHeight);
    column_list.build(roi_axis_in_float64<S>(box.x1, box.x2, S(0.25), true, kBins, 2), kBins,
                      kWidth);
    const Taps<S> rows = row_list.taps(kHeight), columns = column_list.taps(kWidth);
    std::vector<T> out(kChannels * kBins * kBins);
    std::vector<S> grad(map.size()), merged(kMergedRows * merged_stride(columns.span));
    const FeatureMap<T> pooled = {out.data(), kChannels, kBins * kBins, kBins, 1};
    const FeatureMap<const T> given = {out.data(), kChannels, kBins * kBins, kBins, 1};
    loops.pool_planes(planes, rows, columns, pooled, merged.data());
    print(type + " roi_align planes", out);
    loops.pool_pixels(pixels, rows, columns, pooled);
    print(type + " roi_align pixels", out);
    loops.spread_planes(given, rows, columns, {grad.data(), kChannels, kHeight * kWidth, kWidth, 1},
                        merged.data());
    loops.spread_pixels(given, rows, columns,
                        {grad.data(), kChannels, 1, kWidth * kChannels, kChannels});
    print(type + " roi_align backward", grad);
  }
}

template <typename T>
void deform_attention(const std::string& type) {
  using S = Sum<T>;
  constexpr int64_t kHeight = 6, kWidth = 10, kChannels = 7, kPoints = 21;
  const auto& loops = current_loops<MsDeformAttnLoops<T>>();
  const auto value = values<T>(kHeight * kWidth * kChannels, -1, 1, 22);
  const auto locations = values<S>(2 * kPoints, -0.2, 1.2, 23);
  const auto weights = values<S>(kPoints, 0, 1, 24);
  const std::vector<S> height(kPoints, kHeight), width(kPoints, kWidth);
  const std::vector<int32_t> rows(kPoints, kHeight), columns(kPoints, kWidth), start(kPoints);
  const AttentionPoints<S> points = {kPoints,     height.data(),  width.data(),
                                     rows.data(), columns.data(), start.data()};
  const AttentionMap<const T> map = {value.data(), kChannels, kChannels};
  std::vector<T> out(kChannels);
  std::vector<S> sums(kChannels), grad_value(value.size()), grad_locations(2 * kPoints),
      grad_weights(kPoints);
  loops.attend(map, points, 1, locations.data(), weights.data(), out.data(), sums.data());
  print(type + " ms_deform_attn", out);
  loops.attend_backward(map, points, locations.data(), weights.data(), out.data(),
                        {grad_value.data(), kChannels, kChannels}, grad_locations.data(),
                        grad_weights.data());
  print(type + " ms_deform_attn backward, value", grad_value);
  print(type + " ms_deform_attn backward, locations", grad_locations);
  print(type + " ms_deform_attn backward, weights", grad_weights);
  loops.softmax_backward(weights.data(), kPoints, grad_weights.data());
  print(type + " ms_deform_attn backward, logits", grad_weights);
}

template <typename T>
void deform_conv(const std::string& type) {
  using S = Sum<T>;
  constexpr int64_t kHeight = 6, kWidth = 10, kChannels = 37, kPositions = kHeight * kWidth;
  const auto& loops = current_loops<DeformConvLoops<T>>();
  const auto input = values<T>(kPositions * kChannels, -1, 1, 25);
  const auto offset = values<S>(2 * kPositions, -3, 3, 26), mask = values<S>(kPositions, 0, 1, 27);
  const std::vector<S> zeros(kChannels);
  std::vector<S> pixels(input.size()), columns(input.size()), grad_pixels(input.size()),
      grad_offset(2 * kPositions), grad_mask(kPositions);
  loops.load_rows(input.data(), 1, kPositions, kPositions, kChannels, {pixels.data(), kChannels});
  const DeformMap<S> map = {pixels.data(), kChannels, kChannels, zeros.data()};
  const DeformTap<S> tap = {
      kHeight, kWidth, kWidth, 1, 1, -1, 0, offset.data(), offset.data() + kPositions, mask.data()};
  loops.sample(map, tap, 0, kPositions, {columns.data(), kChannels});
  print(type + " deform_conv2d columns", columns);
  const DeformRows<const S> grad = {pixels.data(), kChannels};
  loops.sample_backward(map, tap, 0, kPositions, grad, {columns.data(), kChannels},
                        {grad_offset.data(), grad_offset.data() + kPositions, grad_mask.data()});
  print(type + " deform_conv2d backward, offset", grad_offset);
  print(type + " deform_conv2d backward, mask", grad_mask);
  loops.scatter(tap, 0, kPositions, grad, kChannels, {grad_pixels.data(), kChannels});
  print(type + " deform_conv2d backward, input", grad_pixels);
}

template <typename S>
void masks(const std::string& type) {
  const auto logits = values<S>(kBoxes, -20, 20, 18), targets = values<S>(kBoxes, 0, 1, 19);
  std::vector<S> residual(kBoxes), pasted(kBoxes);
  const S loss = current_loops<MaskLossLoops<S>>().mask_loss(logits.data(), targets.data(), kBoxes,
                                                             residual.data());
  print(type + " mask_loss", std::vector<S>{loss});
  print(type + " mask_loss residual", residual);
  const auto& paste = current_loops<PasteLoops<S>>();
  paste.paste_row(targets.data(), logits.data(), S(0.3), kBoxes, pasted.data());
  print(type + " paste_row", pasted);
}

template <typename T, int kTile>
void winograd(const std::string& tile) {
  constexpr int64_t kDepth = 37, kRows = 5;
  const auto left = values<float>(kRows * kDepth, -1, 1, 20);
  const auto taps = values<T>(kDepth * kWinogradTaps * kWinogradPanel, -1, 1, 21);
  std::vector<T> laid_out(taps.size());
  current_loops<WinogradFilterLoops<T>>().lay_out(
      taps.data(), kDepth * kWinogradTaps, kWinogradPanel - 3, left.data(), kDepth * kWinogradTaps,
      laid_out.data(), kWinogradPanel);
  print("winograd lay_out " + tile, laid_out);
  std::vector<float> panels(winograd_side(kTile) * kDepth * kWinogradPanel);
  current_loops<WinogradMapLoops<T, kTile>>().filters(taps.data(), kDepth, 2, panels.data());
  print("winograd filters " + tile, panels);
  std::vector<float> out(kRows * kWinogradPanel);
  current_loops<WinogradLoops>().multiply(left.data(), kDepth, kRows, panels.data(), kDepth,
                                          out.data(), kWinogradPanel);
  print("winograd multiply " + tile, out);
}

void winograd_filters_grad() {
  const auto& loops = current_loops<FiltersGradLoops>();
  const auto positions = values<float>(kGradPositions * kPanel, -1, 1, 28);
  constexpr int64_t kChannels = kPanel - 3;
  std::vector<float> taps(9 * kChannels);
  loops.taps(positions.data(), kPanel, kChannels, taps.data(), kChannels);
  print("winograd filters_grad taps", taps);
}

void sampling() {
  std::vector<int64_t> index(kBoxes);
  for (int64_t i = 0; i < kBoxes; ++i) index[i] = i % 5 - 2;
  std::vector<SampleCandidate> found(kBoxes);
  found.resize(current_loops<SampleLoops>().find_candidates(
      index.data(), 0, kBoxes, SampleSeed(0.3), {kSampleKeys / 3, kSampleKeys / 2}, found.data()));
  std::vector<int64_t> anchors;
  for (const SampleCandidate& candidate : found) anchors.push_back(candidate.anchor);
  print("sample_matches candidates", anchors);
}

template <typename T>
void all_of_a_box_type(const std::string& type) {
  box_coding<T>(type);
  box_iou<T>(type);
  nms<T>(type);
  matching<T>(type);
  dense_assignment<T>(type);
  assignment<T>(type);
  detections<T>(type);
  masks<T>(type);
}

void all() {
  all_of_a_box_type<float>("float");
  all_of_a_box_type<double>("double");
  focal_loss<float>("float");
  focal_loss<double>("double");
  focal_loss<Half>("half");
  roi_align<float>("float");
  deform_attention<float>("float");
  deform_conv<float>("float");
  roi_align<Half>("half");
  deform_attention<Half>("half");
  deform_conv<Half>("half");
  winograd<float, 4>("4x4");
  winograd<BFloat16, 6>("6x6");
  winograd_filters_grad();
  sampling();
}

}  // namespace

}  // namespace fastdet::cpu

int main() { fastdet::cpu::all(); }
