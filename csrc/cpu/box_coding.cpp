// SPDX-License-Identifier: BSD-3-Clause
// Boxes to deltas and back, one pass over the rows, threads over pieces of them. Half types are
// computed in float32 and rounded once.
#include "../box_coding.h"

#include "../checks.h"
#include "../rows.h"
#include "parallel.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kGrain = 4096;  // rows a thread takes at least

template <typename T, typename M>
void write(T* p, M a, M b, M c, M d) {
  p[0] = static_cast<T>(a);
  p[1] = static_cast<T>(b);
  p[2] = static_cast<T>(c);
  p[3] = static_cast<T>(d);
}

}  // namespace

Tensor encode_boxes(const Tensor& boxes, const Tensor& anchors, double wx, double wy, double ww,
                    double wh) {
  check_encode_boxes(boxes, anchors);
  const Tensor deltas = torch::stable::new_empty(boxes, boxes.sizes());
  dispatch_floating(boxes.scalar_type(), [&]<typename T>() {
    using M = RowMaths<T>;
    const Rows<T> box_rows = rows<T>(boxes), anchor_rows = rows<T>(anchors);
    const Deltas<M> weights = {M(wx), M(wy), M(ww), M(wh)};
    T* out = mutable_data<T>(deltas);
    parallel_for(boxes.numel() / 4, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const Deltas<M> d = encode(box_rows.template read<Box<M>>(i),
                                   anchor_rows.template read<Box<M>>(i), weights);
        write(out + 4 * i, d.dx, d.dy, d.dw, d.dh);
      }
    });
  });
  return deltas;
}

Tensor decode_boxes(const Tensor& deltas, const Tensor& anchors, double wx, double wy, double ww,
                    double wh, const std::optional<Tensor>& sizes) {
  check_decode_boxes("decode_boxes", deltas, anchors, sizes);
  const std::optional<Tensor> sizes_in = contiguous(sizes);
  const Tensor boxes = torch::stable::new_empty(deltas, deltas.sizes());
  const int64_t n = deltas.numel() / 4;
  dispatch_floating(deltas.scalar_type(), [&]<typename T>() {
    using M = RowMaths<T>;
    const Rows<T> delta_rows = rows<T>(deltas), anchor_rows = rows<T>(anchors);
    const Deltas<M> weights = {M(wx), M(wy), M(ww), M(wh)};
    const int64_t* size = sizes_in ? data<int64_t>(*sizes_in) : nullptr;
    const int64_t rows_per_image = sizes_in && n > 0 ? n / deltas.size(0) : 1;
    T* out = mutable_data<T>(boxes);
    parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Box<M> b = decode(delta_rows.template read<Deltas<M>>(i),
                          anchor_rows.template read<Box<M>>(i), weights);
        if (size) {
          const int64_t* s = size + 2 * (i / rows_per_image);
          b = clip(b, M(s[1]), M(s[0]));
        }
        write(out + 4 * i, b.x1, b.y1, b.x2, b.y2);
      }
    });
  });
  return boxes;
}

Tensor decode_boxes_backward(const Tensor& grad, const Tensor& deltas, const Tensor& anchors,
                             double wx, double wy, double ww, double wh,
                             const std::optional<Tensor>& sizes) {
  check_decode_boxes("decode_boxes_backward", deltas, anchors, sizes);
  check_rows_like("decode_boxes_backward", "grad", grad, deltas);
  const std::optional<Tensor> sizes_in = contiguous(sizes);
  const Tensor grad_deltas = torch::stable::new_empty(deltas, deltas.sizes());
  const int64_t n = deltas.numel() / 4;
  dispatch_floating(deltas.scalar_type(), [&]<typename T>() {
    using M = RowMaths<T>;
    const Rows<T> grad_rows = rows<T>(grad), delta_rows = rows<T>(deltas);
    const Rows<T> anchor_rows = rows<T>(anchors);
    const Deltas<M> weights = {M(wx), M(wy), M(ww), M(wh)};
    const int64_t* size = sizes_in ? data<int64_t>(*sizes_in) : nullptr;
    const int64_t rows_per_image = sizes_in && n > 0 ? n / deltas.size(0) : 1;
    T* out = mutable_data<T>(grad_deltas);
    parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const auto row = delta_rows.template read<Deltas<M>>(i);
        const auto anchor = anchor_rows.template read<Box<M>>(i);
        auto g = grad_rows.template read<Box<M>>(i);
        if (size) {
          const int64_t* s = size + 2 * (i / rows_per_image);
          g = clip_backward(g, decode(row, anchor, weights), M(s[1]), M(s[0]));
        }
        const Deltas<M> d = decode_backward(g, row, anchor, weights);
        write(out + 4 * i, d.dx, d.dy, d.dw, d.dh);
      }
    });
  });
  return grad_deltas;
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CPU, m) {
  m.impl("encode_boxes", TORCH_BOX(&encode_boxes));
  m.impl("decode_boxes", TORCH_BOX(&decode_boxes));
  m.impl("decode_boxes_backward", TORCH_BOX(&decode_boxes_backward));
}

}  // namespace fastdet::cpu
