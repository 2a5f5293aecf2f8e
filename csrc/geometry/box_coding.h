// SPDX-License-Identifier: BSD-3-Clause
// The conversion between boxes and deltas, shared by host and device: plain C++, no torch. The
// deltas of a box relative to an anchor are the shift of its centre, in units of the anchor's
// sides, and the logarithms of the ratios of the sides, each times a weight.
#pragma once

#include "maths.h"

namespace fastdet {

template <typename T>
struct Deltas {
  T dx, dy, dw, dh;
};

// As in torchvision: a side grows by a factor of at most 1000 / 16, so exp does not overflow.
constexpr double kMaxLogRatio = 4.135166556742356;  // log(1000 / 16)

template <typename T>
FASTDET_HOST_DEVICE bool is_side(T length) {
  const bool positive = length > T(0), finite = is_finite(length);
  return positive & finite;
}

// Zeros if a side of the box or of the anchor is not positive and finite. A loss learns nothing
// from such a pair, and an infinity times a mask of 0 would make the loss NaN. There is no branch,
// so that a loop over it vectorises.
template <typename T>
FASTDET_HOST_DEVICE Deltas<T> encode(const Box<T>& box, const Box<T>& anchor,
                                     const Deltas<T>& weights) {
  const T width = box.x2 - box.x1, height = box.y2 - box.y1;
  const T anchor_width = anchor.x2 - anchor.x1, anchor_height = anchor.y2 - anchor.y1;
  const bool has_width = is_side(width), has_height = is_side(height);
  const bool anchor_has_width = is_side(anchor_width), anchor_has_height = is_side(anchor_height);
  const bool usable = has_width & has_height & anchor_has_width & anchor_has_height;
  const T shift_x = box.x1 + T(0.5) * width - (anchor.x1 + T(0.5) * anchor_width);
  const T shift_y = box.y1 + T(0.5) * height - (anchor.y1 + T(0.5) * anchor_height);
  const T dx = weights.dx * shift_x / anchor_width, dy = weights.dy * shift_y / anchor_height;
  const T dw = weights.dw * log_of(width / anchor_width);
  const T dh = weights.dh * log_of(height / anchor_height);
  return {usable ? dx : T(0), usable ? dy : T(0), usable ? dw : T(0), usable ? dh : T(0)};
}

template <typename T>
FASTDET_HOST_DEVICE Box<T> decode(const Deltas<T>& deltas, const Box<T>& anchor,
                                  const Deltas<T>& weights) {
  const T width = anchor.x2 - anchor.x1, height = anchor.y2 - anchor.y1;
  const T dw = deltas.dw / weights.dw, dh = deltas.dh / weights.dh;
  const T limit = T(kMaxLogRatio);
  const T x = deltas.dx / weights.dx * width + (anchor.x1 + T(0.5) * width);
  const T y = deltas.dy / weights.dy * height + (anchor.y1 + T(0.5) * height);
  const T half_width = T(0.5) * (exp_of(dw > limit ? limit : dw) * width);
  const T half_height = T(0.5) * (exp_of(dh > limit ? limit : dh) * height);
  return {x - half_width, y - half_height, x + half_width, y + half_height};
}

// NaN stays NaN.
template <typename T>
FASTDET_HOST_DEVICE T clip(T x, T max) {
  return x < T(0) ? T(0) : x > max ? max : x;
}

template <typename T>
FASTDET_HOST_DEVICE Box<T> clip(const Box<T>& b, T width, T height) {
  return {clip(b.x1, width), clip(b.y1, height), clip(b.x2, width), clip(b.y2, height)};
}

// The gradient that passes through clip(x, max). At the limits themselves it passes whole, as in
// torch.clamp.
template <typename T>
FASTDET_HOST_DEVICE T clip_backward(T grad, T x, T max) {
  return x >= T(0) && x <= max ? grad : T(0);
}

template <typename T>
FASTDET_HOST_DEVICE Box<T> clip_backward(const Box<T>& grad, const Box<T>& b, T width, T height) {
  return {clip_backward(grad.x1, b.x1, width), clip_backward(grad.y1, b.y1, height),
          clip_backward(grad.x2, b.x2, width), clip_backward(grad.y2, b.y2, height)};
}

// The gradient of decode with respect to the deltas; 0 for a log ratio that was clamped.
template <typename T>
FASTDET_HOST_DEVICE Deltas<T> decode_backward(const Box<T>& grad, const Deltas<T>& deltas,
                                              const Box<T>& anchor, const Deltas<T>& weights) {
  const T width = anchor.x2 - anchor.x1, height = anchor.y2 - anchor.y1;
  const T dw = deltas.dw / weights.dw, dh = deltas.dh / weights.dh;
  const T limit = T(kMaxLogRatio);
  const T grad_width = T(0.5) * (grad.x2 - grad.x1), grad_height = T(0.5) * (grad.y2 - grad.y1);
  return {(grad.x1 + grad.x2) * width / weights.dx, (grad.y1 + grad.y2) * height / weights.dy,
          dw <= limit ? grad_width * exp_of(dw > limit ? limit : dw) * width / weights.dw : T(0),
          dh <= limit ? grad_height * exp_of(dh > limit ? limit : dh) * height / weights.dh : T(0)};
}

}  // namespace fastdet
