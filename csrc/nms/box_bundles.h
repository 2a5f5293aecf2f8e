// SPDX-License-Identifier: BSD-3-Clause
// Bundles of 32 boxes that lie close together, and bales of 32 bundles: a search for the boxes that
// overlap a given box tests the hulls of the bales, then those of the bundles of the bales that
// pass, then the boxes of the bundles that pass. The CPU's form of box_bundles.cuh, which says why
// skipping never changes a result. Boxes that were taken are not found again, and bundles without
// boxes are not tested.
//
// Cost of a search among n boxes spread over an image: n / 32^3 vectors of bales and a few bundles.
// Memory O(n).
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "nmm.loops.h"
#include "nmm_rule.h"
#include "score_order.h"

namespace fastdet::cpu {

// Arrays of the same size, which is a multiple of kBundle.
template <typename T, int kPlanes>
class PlaneStore {
 public:
  explicit PlaneStore(int64_t n)
      : stride_((n + kBundle - 1) / kBundle * kBundle),
        values_(std::make_unique_for_overwrite<T[]>(kPlanes * stride_)) {}

  int64_t size() const { return stride_; }
  T* plane(int p) const { return values_.get() + p * stride_; }

 private:
  int64_t stride_;
  std::unique_ptr<T[]> values_;
};

template <typename T>
class HullStore {
 public:
  explicit HullStore(int64_t n) : store_(n) {
    for (int64_t i = 0; i < store_.size(); ++i) put(i, of_none());
  }

  HullPlanes<T> planes() const {
    return {store_.plane(0), store_.plane(1), store_.plane(2),
            store_.plane(3), store_.plane(4), store_.plane(5)};
  }

  void include(int64_t i, const Box<T>& box, T least, T most) {
    const Hull own = at(i);
    put(i, {enclosing(own.box, box), min_of(own.least, least), max_of(own.most, most)});
  }

  // Makes hull i of `into` include all hulls of a bale.
  void include_bale(int64_t bale, HullStore& into) const {
    for (int64_t i = bale * kBundle; i < (bale + 1) * kBundle; ++i)
      into.include(bale, at(i).box, at(i).least, at(i).most);
  }

 private:
  struct Hull {
    Box<T> box;
    T least, most;  // areas
  };

  static Hull of_none() {
    constexpr T kFar = std::numeric_limits<T>::infinity();
    return {{kFar, kFar, -kFar, -kFar}, kFar, -kFar};
  }

  Hull at(int64_t i) const {
    const HullPlanes<T> p = planes();
    return {{p.x1[i], p.y1[i], p.x2[i], p.y2[i]}, p.least[i], p.most[i]};
  }

  void put(int64_t i, const Hull& hull) {
    const HullPlanes<T> p = planes();
    p.x1[i] = hull.box.x1, p.y1[i] = hull.box.y1, p.x2[i] = hull.box.x2, p.y2[i] = hull.box.y2;
    p.least[i] = hull.least, p.most[i] = hull.most;
  }

  PlaneStore<T, 6> store_;
};

// Boxes by size class, the largest first, then along a Z curve of their centres.
template <typename T>
class PlaceKeys {
 public:
  explicit PlaceKeys(const std::vector<Box<T>>& boxes) {
    float right = -kFar, bottom = -kFar;
    for (const Box<T>& box : boxes) {
      const float x = centre(box.x1, box.x2), y = centre(box.y1, box.y2);
      left_ = min_of(left_, x), right = max_of(right, x);
      top_ = min_of(top_, y), bottom = max_of(bottom, y);
      largest_ = max_of(largest_, area(box));
    }
    per_x_ = kCells / (right - left_);
    per_y_ = kCells / (bottom - top_);
  }

  uint32_t of(const Box<T>& box) const {
    return size_class(box) << 2 * kBits |
           spread(cell((centre(box.x1, box.x2) - left_) * per_x_)) << 1 |
           spread(cell((centre(box.y1, box.y2) - top_) * per_y_));
  }

 private:
  static constexpr int kBits = 10;
  static constexpr float kCells = 1 << kBits;
  static constexpr uint32_t kClasses = 8;  // the areas of each differ by up to a factor of 16

  static float centre(T low, T high) { return static_cast<float>(low / 2 + high / 2); }

  uint32_t size_class(const Box<T>& box) const {
    const uint32_t bits = std::bit_cast<uint32_t>(static_cast<float>(largest_ / area(box)));
    return min_of<uint32_t>((bits >> 23) / 4 - 127 / 4, kClasses - 1);
  }

  // If all centres are equal, or not finite in float, the position is NaN and the cell is 0.
  static uint32_t cell(float position) {
    return position > 0 ? static_cast<uint32_t>(min_of(position, kCells - 1)) : 0;
  }

  // Puts 10 bits into every second place of 20.
  static uint32_t spread(uint32_t x) {
    x = (x | x << 8) & 0x00FF00FF;
    x = (x | x << 4) & 0x0F0F0F0F;
    x = (x | x << 2) & 0x33333333;
    return (x | x << 1) & 0x55555555;
  }

  static constexpr float kFar = std::numeric_limits<float>::infinity();
  float left_ = kFar, top_ = kFar;  // of the centres
  float per_x_, per_y_;             // cells per pixel
  T largest_ = 0;                   // area
};

// All boxes can overlap others. They are known by their places from now on.
template <typename T>
class BoxBundles {
 public:
  BoxBundles(const std::vector<Box<T>>& boxes, const NmmRule<T>& rule)
      : size_(static_cast<int64_t>(boxes.size())),
        rule_(rule),
        planes_(size_),
        hulls_(num_bundles()),
        bales_(num_bales()),
        waiting_(num_bundles()),
        open_(num_bales()) {
    for (int64_t p = 0; p < size_; ++p) put(p, boxes[p]);
    for (int64_t p = size_; p < planes_.size(); ++p) put_none(p);
    for (int64_t bale = 0; bale < num_bales(); ++bale) hulls_.include_bale(bale, bales_);
  }

  Box<T> at(int64_t p) const {
    const BoxPlanes<T> b = planes();
    return {b.x1[p], b.y1[p], b.x2[p], b.y2[p]};
  }

  // Makes the box at a place no longer be found.
  void remove(int64_t p) { take(p / kBundle, uint32_t(1) << p % kBundle); }

  // Calls on_box(place) for each box that overlaps `box` and was not taken, and takes it.
  template <typename OnBox>
  void take_overlapping(const Box<T>& box, const OnBox& on_box) {
    const Seeker<T> seeker = seeker_of(box);
    for (int64_t first = 0; first < num_bales(); first += kBundle)
      for_each_bit(loops_.near(bales_.planes(), first, seeker), [&](int own_bale) {
        const int64_t bale = first + own_bale;
        if (!open_[bale]) return;
        const uint32_t near = loops_.near(hulls_.planes(), bale * kBundle, seeker);
        for_each_bit(near & open_[bale], [&](int own_bundle) {
          const int64_t bundle = bale * kBundle + own_bundle;
          const uint32_t found =
              loops_.overlapping(rule_.metric, planes(), bundle * kBundle, seeker) &
              waiting_[bundle];
          if (!found) return;
          take(bundle, found);
          for_each_bit(found, [&](int i) { on_box(bundle * kBundle + i); });
        });
      });
  }

 private:
  template <typename Body>
  static void for_each_bit(uint32_t bits, const Body& body) {
    for (; bits; bits &= bits - 1) body(std::countr_zero(bits));
  }

  int64_t num_bundles() const { return (size_ + kBundle - 1) / kBundle; }
  int64_t num_bales() const { return (num_bundles() + kBundle - 1) / kBundle; }

  BoxPlanes<T> planes() const {
    return {planes_.plane(0), planes_.plane(1), planes_.plane(2), planes_.plane(3),
            planes_.plane(4)};
  }

  void put(int64_t p, const Box<T>& box) {
    const BoxPlanes<T> planes = this->planes();
    const T box_area = area(box);
    planes.x1[p] = box.x1, planes.y1[p] = box.y1, planes.x2[p] = box.x2, planes.y2[p] = box.y2;
    planes.area[p] = box_area;
    any_tiny_ = any_tiny_ || min_of(box_area, min_of(box.x2 - box.x1, box.y2 - box.y1)) < kTiny<T>;
    const int64_t bundle = p / kBundle;
    hulls_.include(bundle, box, box_area, box_area);
    waiting_[bundle] |= uint32_t(1) << p % kBundle;
    open_[bundle / kBundle] |= uint32_t(1) << bundle % kBundle;
  }

  void put_none(int64_t p) {
    const BoxPlanes<T> planes = this->planes();
    planes.x1[p] = planes.y1[p] = planes.x2[p] = planes.y2[p] = planes.area[p] = T(0);
  }

  void take(int64_t bundle, uint32_t boxes) {
    waiting_[bundle] &= ~boxes;
    if (!waiting_[bundle]) open_[bundle / kBundle] &= ~(uint32_t(1) << bundle % kBundle);
  }

  // The margins cover the rounding errors of products, unless an area or a side has lost digits.
  Seeker<T> seeker_of(const Box<T>& box) const {
    constexpr T kShrink = T(1) - 16 * std::numeric_limits<T>::epsilon();
    const T filter = any_tiny_ || rule_.above <= T(1e-6) ? T(0) : rule_.above * kShrink;
    // The sides of boxes whose IoS is high may differ by any factor.
    const T share = rule_.metric == OverlapMetric::kIos ? T(0) : filter;
    return {box,
            area(box),
            rule_.above,
            filter,
            share,
            share * (box.x2 - box.x1),
            share * (box.y2 - box.y1)};
  }

  int64_t size_;
  NmmRule<T> rule_;
  const NmmLoops<T>& loops_ = current_loops<NmmLoops<T>>();
  PlaneStore<T, 5> planes_;
  HullStore<T> hulls_, bales_;
  std::vector<uint32_t> waiting_;  // of each bundle, its boxes that were not taken
  std::vector<uint32_t> open_;     // of each bale, its bundles that have such boxes
  bool any_tiny_ = false;
};

}  // namespace fastdet::cpu
