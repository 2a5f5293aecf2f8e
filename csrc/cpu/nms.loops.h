// SPDX-License-Identifier: BSD-3-Clause
// Included by loops.cpp inside the namespace of an ISA.
// A filter without a division, `intersection > filter * union`, rejects most vectors of kept boxes;
// the IoU itself is computed where it lets one through. Vector extensions, because a run of kept
// boxes is often shorter than what GCC unrolls a plain loop to.

// The lanes from kept box i on that pass the filter. A negative height needs no clamp: it makes
// the product negative or 0, which the filter rejects too.
template <typename T>
__attribute__((always_inline)) inline LaneMask<T> passes_filter(const BoxPlanes<T>& kept, int64_t i,
                                                                const Box<T>& box, T box_area,
                                                                T filter) {
  const Lanes<T> zero = {}, left = all_lanes(box.x1), top = all_lanes(box.y1);
  const Lanes<T> right = all_lanes(box.x2), bottom = all_lanes(box.y2);
  const Lanes<T> x1 = load_lanes(kept.x1 + i), y1 = load_lanes(kept.y1 + i);
  const Lanes<T> x2 = load_lanes(kept.x2 + i), y2 = load_lanes(kept.y2 + i);
  const Lanes<T> width = (x2 < right ? x2 : right) - (x1 > left ? x1 : left);
  const Lanes<T> height = (y2 < bottom ? y2 : bottom) - (y1 > top ? y1 : top);
  const Lanes<T> inter = (width > zero ? width : zero) * height;
  return inter > (load_lanes(kept.area + i) + box_area - inter) * filter;
}

template <typename T>
bool overlaps_one_of(const BoxPlanes<T>& kept, int64_t begin, int64_t end, const Box<T>& box,
                     T box_area, T iou_threshold) {
  int hits = 0;
  for (int64_t i = begin; i < end; ++i) {
    const Box<T> other = {kept.x1[i], kept.y1[i], kept.x2[i], kept.y2[i]};
    hits |= iou(other, kept.area[i], box, box_area) > iou_threshold;
  }
  return hits;
}

template <typename T>
bool overlaps_any(const BoxPlanes<T>& kept, const KeptRun* runs, int64_t num_runs,
                  const Box<T>& box, T box_area, const NmsThreshold<T>& threshold) {
  static_assert(kLanesOf<T> <= kNmsOverread);
  LaneMask<T> lane = {};
  for (int i = 0; i < kLanesOf<T>; ++i) lane[i] = i;
  for (int64_t r = 0; r < num_runs; ++r) {
    const int64_t end = runs[r].begin + runs[r].count;
    for (int64_t i = runs[r].begin; i < end; i += kLanesOf<T>) {
      LaneMask<T> mask = passes_filter(kept, i, box, box_area, threshold.filter);
      if (end - i < kLanesOf<T>) mask &= lane < static_cast<int>(end - i);
      if (!any_lane(mask)) continue;
      const int64_t stop = i + kLanesOf<T> < end ? i + kLanesOf<T> : end;
      if (overlaps_one_of(kept, i, stop, box, box_area, threshold.iou)) return true;
    }
  }
  return false;
}
