// SPDX-License-Identifier: BSD-3-Clause
// Included by loops.cpp inside the namespace of an ISA.

// Blocks of a few cache lines: long enough to fill the vectors, short enough that a box that is
// suppressed early costs little.
constexpr int64_t kNmsBlock = 64;

template <typename T>
bool overlaps_any(const BoxPlanes<T>& kept, int64_t n, const Box<T>& box, T box_area,
                  T iou_threshold) {
  for (int64_t begin = 0; begin < n; begin += kNmsBlock) {
    const int64_t end = begin + kNmsBlock < n ? begin + kNmsBlock : n;
    int hits = 0;
    for (int64_t i = begin; i < end; ++i) {
      const Box<T> other = {kept.x1[i], kept.y1[i], kept.x2[i], kept.y2[i]};
      hits |= iou(other, kept.area[i], box, box_area) > iou_threshold;
    }
    if (hits) return true;
  }
  return false;
}
