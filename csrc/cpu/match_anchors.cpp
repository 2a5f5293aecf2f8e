// SPDX-License-Identifier: BSD-3-Clause
// Each anchor's gt. Pass 1 finds each anchor's best gt and each gt's best IoU; pass 2 labels the
// anchors and, for the low-quality rules, computes the IoUs again instead of keeping a matrix:
// anchors x gts IoUs twice, O(anchors + gts) memory. A maximum does not depend on the order in
// which threads contribute to it, so neither does the result.
#include <algorithm>
#include <mutex>
#include <string>
#include <vector>

#include "../checks.h"
#include "loops.h"
#include "parallel.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kBlock = 256;  // anchors whose planes and results stay in the first-level cache
constexpr int64_t kChunk = 16 * kBlock;  // anchors per piece of work

// A block of anchors as planes.
template <typename T>
struct Planes {
  T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];

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
struct Gts {
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

template <typename T>
class Matcher {
 public:
  Matcher(const Tensor& anchors, const Tensor& gt_boxes, const Tensor& gt_counts,
          const MatchRule<T>& rule, const Tensor& index, const Tensor& iou)
      : anchors_(data<Box<T>>(anchors)),
        image_stride_(anchors.dim() == 3 ? index.size(1) : 0),
        num_images_(index.size(0)),
        num_anchors_(index.size(1)),
        rule_(rule),
        index_(mutable_data<int64_t>(index)),
        iou_(mutable_data<T>(iou)),
        gts_(num_images_) {
    const int64_t num_gts = gt_boxes.size(1);
    for (int64_t b = 0; b < num_images_; ++b) {
      const Box<T>* boxes = data<Box<T>>(gt_boxes) + b * num_gts;
      const int64_t count = std::clamp<int64_t>(data<int64_t>(gt_counts)[b], 0, num_gts);
      for (int64_t g = 0; g < count; ++g)
        if (is_finite(boxes[g])) gts_[b].append(boxes[g], g);
    }
  }

  void run() {
    for_each_chunk([this](int64_t b, int64_t begin, int64_t end) { find_best(b, begin, end); });
    for (Gts<T>& gts : gts_)
      for (T& best : gts.best_iou) best = rule_.rescue_iou(best);
    for_each_chunk([this](int64_t b, int64_t begin, int64_t end) { label(b, begin, end); });
  }

 private:
  // body(image, begin, end) over pieces of every image's anchors.
  template <typename Body>
  void for_each_chunk(const Body& body) {
    const int64_t chunks = (num_anchors_ + kChunk - 1) / kChunk;
    parallel_for(num_images_ * chunks, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t begin = i % chunks * kChunk;
        body(i / chunks, begin, std::min(begin + kChunk, num_anchors_));
      }
    });
  }

  // Leaves in index_ the position among the image's usable gts, or -1.
  void find_best(int64_t b, int64_t begin, int64_t end) {
    Gts<T>& gts = gts_[b];
    std::vector<T> gt_best_iou(gts.size(), T(0));
    Planes<T> planes;
    int32_t best_gt[kBlock];
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t n = std::min(kBlock, end - i), out = b * num_anchors_ + i;
      planes.load(anchors_ + b * image_stride_ + i, n);
      box_loops<T>().best_matches(planes.view(), n, gts.view(), gts.size(), iou_ + out, best_gt,
                                  gt_best_iou.data());
      std::copy(best_gt, best_gt + n, index_ + out);
    }
    const std::lock_guard lock(mutex_);
    for (int64_t g = 0; g < gts.size(); ++g)
      gts.best_iou[g] = max_of(gts.best_iou[g], gt_best_iou[g]);
  }

  void label(int64_t b, int64_t begin, int64_t end) {
    Gts<T>& gts = gts_[b];
    Planes<T> planes;
    int32_t rescuer[kBlock];
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t n = std::min(kBlock, end - i);
      const Box<T>* anchors = anchors_ + b * image_stride_ + i;
      if (rule_.low_quality == LowQuality::kNone) {
        std::fill(rescuer, rescuer + n, -1);
      } else {
        planes.load(anchors, n);
        box_loops<T>().find_rescuers(planes.view(), n, gts.view(), gts.size(), gts.best_iou.data(),
                                     rescuer);
      }
      for (int64_t k = 0; k < n; ++k) {
        int64_t& index = index_[b * num_anchors_ + i + k];
        T& iou = iou_[b * num_anchors_ + i + k];
        const bool usable = is_finite(anchors[k]);
        if (!usable || index < 0) {
          index = usable ? -1 : -2;
          iou = T(0);
          continue;
        }
        const int64_t rescuer_row = rescuer[k] < 0 ? -1 : gts.row[rescuer[k]];
        index = rule_.label(iou, gts.row[index], rescuer_row);
      }
    }
  }

  const Box<T>* anchors_;
  int64_t image_stride_, num_images_, num_anchors_;
  MatchRule<T> rule_;
  int64_t* index_;
  T* iou_;
  std::vector<Gts<T>> gts_;
  std::mutex mutex_;
};

}  // namespace

std::tuple<Tensor, Tensor> match_anchors(const Tensor& anchors, const Tensor& gt_boxes,
                                         const Tensor& gt_counts, double high, double low,
                                         const std::string& low_quality) {
  check_match_anchors(anchors, gt_boxes, gt_counts);
  const LowQuality rule = parse_low_quality(low_quality);
  const auto dtype = box_dtype(anchors, gt_boxes);
  const int64_t num_anchors = anchors.size(anchors.dim() - 2);
  const Tensor index = empty(anchors, {gt_boxes.size(0), num_anchors}, kInt64);
  const Tensor iou = empty(anchors, {gt_boxes.size(0), num_anchors}, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    // As torch compares: the threshold is rounded to the type of the IoUs.
    Matcher<T>(box_input(anchors, dtype), box_input(gt_boxes, dtype),
               torch::stable::contiguous(gt_counts),
               MatchRule<T>{static_cast<T>(high), static_cast<T>(low), rule}, index, iou)
        .run();
  });
  return {index, iou};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) { m.impl("match_anchors", TORCH_BOX(&match_anchors)); }

}  // namespace fastdet::cpu
