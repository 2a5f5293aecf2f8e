// SPDX-License-Identifier: BSD-3-Clause
// The place of a box's mask in its image, and the mask's value at a pixel. Shared by host and
// device: plain C++, no torch. As in torchvision: the mask gets a border of zeros, the box grows by
// the same factor and is cut to whole pixels, and the mask is resized to it bilinearly, with pixel
// centres at +0.5.
//
// A value is interpolated along x first and then along y, each time as a + f (b - a). Even after
// rounding this is monotonic in f, and so along y between two rows of the mask. So between two rows
// a column crosses a threshold at most once. Bisection finds the pixel, and the result is the same
// as that of a search pixel by pixel.
#pragma once

#include <cstdint>

#include "../geometry/box.h"

namespace fastdet {

// The pixels of an axis that a box covers, visible or not, including the last one. Empty if the box
// is not finite.
struct PixelRange {
  int64_t low, high;
};

template <typename S>
FASTDET_HOST_DEVICE PixelRange grown_range(S low, S high, S growth) {
  const S half = ((high - low) * S(0.5)) * growth, center = (high + low) * S(0.5);
  const S first = center - half, last = center + half;
  constexpr S kFarthest = S(1 << 30);  // no image reaches there
  const bool near = first > -kFarthest && first < kFarthest && last > -kFarthest &&
                    last < kFarthest;  // false for NaN
  return near ? PixelRange{static_cast<int64_t>(first), static_cast<int64_t>(last)}
              : PixelRange{0, -1};
}

// As in torchvision, the width of the mask decides the growth of both sides of a box.
template <typename S>
S paste_growth(int64_t mask_width) {
  return static_cast<S>(static_cast<double>(mask_width + 2) / static_cast<double>(mask_width));
}

struct PasteBox {
  PixelRange x, y;
};

// growth: the factor by which the border widens the mask.
template <typename S>
FASTDET_HOST_DEVICE PasteBox paste_box(const Box<S>& box, S growth) {
  return {grown_range(box.x1, box.x2, growth), grown_range(box.y1, box.y2, growth)};
}

// One axis of a pasted mask: the mask is visible in image pixels [begin, end).
template <typename S>
struct PasteAxis {
  int64_t begin, end, low;
  S scale;  // mask pixels per image pixel

  // `source` is the number of mask pixels, `range` where the box lies, `size` the image's size.
  FASTDET_HOST_DEVICE PasteAxis(const PixelRange& range, int64_t source, int64_t size)
      : begin(max_of<int64_t>(range.low, 0)),
        end(max_of(min_of(range.high + 1, size), begin)),
        low(range.low),
        scale(static_cast<S>(source + 2) /
              static_cast<S>(max_of<int64_t>(range.high - range.low + 1, 1))) {}

  FASTDET_HOST_DEVICE bool shows(int64_t pixel) const { return pixel >= begin && pixel < end; }
};

// A pixel lies between pixels `index` and `index` + 1 of the mask with its border, at `fraction` of
// the way.
template <typename S>
struct PasteTap {
  int64_t index;
  S fraction;
};

template <typename S>
FASTDET_HOST_DEVICE PasteTap<S> paste_tap(const PasteAxis<S>& axis, int64_t pixel) {
  const S position = axis.scale * (static_cast<S>(pixel - axis.low) + S(0.5)) - S(0.5);
  const S inside = max_of(position, S(0));
  const int64_t index = static_cast<int64_t>(inside);
  return {index, inside - static_cast<S>(index)};
}

template <typename S>
FASTDET_HOST_DEVICE S between(S a, S b, S fraction) {
  return a + fraction * (b - a);
}

// A mask (height, width) with its border of zeros. Rows and columns beyond the border are 0 too.
template <typename S>
struct BorderedMask {
  const S* data;
  int64_t height, width;

  FASTDET_HOST_DEVICE S at(int64_t i, int64_t j) const {
    return i >= 1 && i <= height && j >= 1 && j <= width ? data[(i - 1) * width + j - 1] : S(0);
  }

  // Row i of the mask at a column of the image.
  FASTDET_HOST_DEVICE S along(int64_t i, const PasteTap<S>& column) const {
    return between(at(i, column.index), at(i, column.index + 1), column.fraction);
  }

  FASTDET_HOST_DEVICE S at(const PasteTap<S>& row, const PasteTap<S>& column) const {
    return between(along(row.index, column), along(row.index + 1, column), row.fraction);
  }
};

// N masks of one size, each with its box, in images of one size.
template <typename S>
struct PastedMasks {
  const S* data;
  const PasteBox* boxes;
  int64_t count, height, width, image_height, image_width;

  FASTDET_HOST_DEVICE BorderedMask<S> mask(int64_t n) const {
    return {data + n * height * width, height, width};
  }
  FASTDET_HOST_DEVICE PasteAxis<S> rows(int64_t n) const {
    return {boxes[n].y, height, image_height};
  }
  FASTDET_HOST_DEVICE PasteAxis<S> columns(int64_t n) const {
    return {boxes[n].x, width, image_width};
  }
};

// ---- where a column crosses the threshold -------------------------------------------------------

// The first of the pixels [begin, end) for which `holds` is true, or end. `holds` must stay true
// for all later pixels.
template <typename Holds>
FASTDET_HOST_DEVICE int64_t first_pixel(int64_t begin, int64_t end, Holds holds) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (holds(middle))
      end = middle;
    else
      begin = middle + 1;
  }
  return begin;
}

// Whether a column's last visible pixel comes just before the next column's first one in memory.
template <typename S>
FASTDET_HOST_DEVICE bool runs_on(const PasteAxis<S>& rows, int64_t image_height) {
  return rows.begin == 0 && rows.end == image_height;
}

// The first pixel whose tap is beyond row i of the mask.
template <typename S>
FASTDET_HOST_DEVICE int64_t end_of_row(const PasteAxis<S>& rows, int64_t i) {
  return first_pixel(rows.begin, rows.end,
                     [&](int64_t pixel) { return paste_tap(rows, pixel).index > i; });
}

}  // namespace fastdet
