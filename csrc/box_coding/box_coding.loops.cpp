// SPDX-License-Identifier: BSD-3-Clause
// Converts boxes to deltas and back. The loops read and write single fields: GCC does not vectorise
// a loop that copies a whole struct through memory.
#include "box_coding.loops.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

template <typename T>
void encode_boxes(const Box<T>* boxes, const Box<T>* anchors, int64_t n, const Deltas<T>& weights,
                  Deltas<T>* __restrict__ out) {
  const Deltas<T> w = weights;
  for (int64_t i = 0; i < n; ++i) {
    const Box<T> box = {boxes[i].x1, boxes[i].y1, boxes[i].x2, boxes[i].y2};
    const Box<T> anchor = {anchors[i].x1, anchors[i].y1, anchors[i].x2, anchors[i].y2};
    const Deltas<T> d = encode(box, anchor, w);
    out[i].dx = d.dx;
    out[i].dy = d.dy;
    out[i].dw = d.dw;
    out[i].dh = d.dh;
  }
}

template <bool kClip, typename T>
void decode_boxes_of(const Deltas<T>* deltas, const Box<T>* anchors, int64_t n,
                     const Deltas<T>& weights, const ImageSize<T>& size, Box<T>* __restrict__ out) {
  const Deltas<T> w = weights;
  const T width = size.width, height = size.height;
  for (int64_t i = 0; i < n; ++i) {
    const Deltas<T> d = {deltas[i].dx, deltas[i].dy, deltas[i].dw, deltas[i].dh};
    const Box<T> anchor = {anchors[i].x1, anchors[i].y1, anchors[i].x2, anchors[i].y2};
    Box<T> b = decode(d, anchor, w);
    if constexpr (kClip) b = clip(b, width, height);
    out[i].x1 = b.x1;
    out[i].y1 = b.y1;
    out[i].x2 = b.x2;
    out[i].y2 = b.y2;
  }
}

template <typename T>
void decode_boxes(const Deltas<T>* deltas, const Box<T>* anchors, int64_t n,
                  const Deltas<T>& weights, const ImageSize<T>* size, Box<T>* out) {
  if (size)
    decode_boxes_of<true>(deltas, anchors, n, weights, *size, out);
  else
    decode_boxes_of<false>(deltas, anchors, n, weights, {}, out);
}

template <bool kClip, typename T>
void decode_boxes_backward_of(const Box<T>* grad, const Deltas<T>* deltas, const Box<T>* anchors,
                              int64_t n, const Deltas<T>& weights, const ImageSize<T>& size,
                              Deltas<T>* __restrict__ out) {
  const Deltas<T> w = weights;
  const T width = size.width, height = size.height;
  for (int64_t i = 0; i < n; ++i) {
    const Deltas<T> d = {deltas[i].dx, deltas[i].dy, deltas[i].dw, deltas[i].dh};
    const Box<T> anchor = {anchors[i].x1, anchors[i].y1, anchors[i].x2, anchors[i].y2};
    Box<T> g = {grad[i].x1, grad[i].y1, grad[i].x2, grad[i].y2};
    if constexpr (kClip) g = clip_backward(g, decode(d, anchor, w), width, height);
    const Deltas<T> by_deltas = decode_backward(g, d, anchor, w);
    out[i].dx = by_deltas.dx;
    out[i].dy = by_deltas.dy;
    out[i].dw = by_deltas.dw;
    out[i].dh = by_deltas.dh;
  }
}

template <typename T>
void decode_boxes_backward(const Box<T>* grad, const Deltas<T>* deltas, const Box<T>* anchors,
                           int64_t n, const Deltas<T>& weights, const ImageSize<T>* size,
                           Deltas<T>* out) {
  if (size)
    decode_boxes_backward_of<true>(grad, deltas, anchors, n, weights, *size, out);
  else
    decode_boxes_backward_of<false>(grad, deltas, anchors, n, weights, {}, out);
}

template <typename T>
constexpr BoxCodingLoops<T> kLoops = {
    .encode_boxes = encode_boxes<T>,
    .decode_boxes = decode_boxes<T>,
    .decode_boxes_backward = decode_boxes_backward<T>,
};

}  // namespace

FASTDET_LOOPS(BoxCodingLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(BoxCodingLoops<double>) { return kLoops<double>; }

}  // namespace fastdet::cpu::FASTDET_ISA
