// SPDX-License-Identifier: BSD-3-Clause
// Converts boxes to deltas and back in one pass over the rows, a block of rows at a time; the
// threads share the rows. Rows that are not contiguous or are of a half type are copied through a
// block that stays in the L1 cache. Half types are computed in float32 and rounded once.
#include "../geometry/box_coding.h"

#include <algorithm>

#include "../host/parallel.h"
#include "../tensors/rows.h"
#include "box_coding.loops.h"
#include "contract.h"

namespace fastdet::cpu {

namespace {

constexpr int64_t kGrain = 4096;  // the least number of rows of a thread
constexpr int64_t kBlockRows = 256;

// Reads blocks of rows: in place, or copied to the block.
template <typename Row, typename T>
struct Reader {
  Rows<T> rows;
  Row block[kBlockRows];

  explicit Reader(const Rows<T>& rows) : rows(rows) {}

  const Row* read(int64_t begin, int64_t n) {
    if (const Sum<T>* p = rows.in_place(begin, n)) return reinterpret_cast<const Row*>(p);
    for (int64_t i = 0; i < n; ++i) block[i] = rows.template read<Row>(begin + i);
    return block;
  }
};

// Writes blocks of rows, one after another: in place, or through the block.
template <typename Row, typename T>
struct Writer {
  static constexpr bool kInPlace = std::is_same_v<T, Sum<T>>;
  T* out;
  Row block[kInPlace ? 1 : kBlockRows];

  explicit Writer(const Tensor& tensor) : out(mutable_data<T>(tensor)) {}

  Row* place(int64_t begin) {
    if constexpr (kInPlace)
      return reinterpret_cast<Row*>(out) + begin;
    else
      return block;
  }

  void flush(int64_t begin, int64_t n) {
    if constexpr (!kInPlace) {
      const auto* p = reinterpret_cast<const Sum<T>*>(block);
      for (int64_t i = 0; i < 4 * n; ++i) out[4 * begin + i] = static_cast<T>(p[i]);
    }
  }
};

// The sizes of the images that the rows belong to, if given.
struct Images {
  const int64_t* sizes;  // height and width of each, or null
  int64_t rows_per_image;

  Images(const std::optional<Tensor>& sizes, const Tensor& rows)
      : sizes(sizes ? data<int64_t>(*sizes) : nullptr),
        rows_per_image(sizes && rows.numel() > 0 ? rows.numel() / 4 / rows.size(0) : 0) {}

  // Calls body(begin, n, size) for blocks of [begin, end), each within one image.
  template <typename M, typename Body>
  void for_each_block(int64_t begin, int64_t end, const Body& body) const {
    while (begin < end) {
      int64_t n = std::min(kBlockRows, end - begin);
      if (!sizes) {
        body(begin, n, static_cast<const ImageSize<M>*>(nullptr));
      } else {
        const int64_t image = begin / rows_per_image;
        n = std::min(n, (image + 1) * rows_per_image - begin);
        const ImageSize<M> size = {static_cast<M>(sizes[2 * image + 1]),
                                   static_cast<M>(sizes[2 * image])};
        body(begin, n, &size);
      }
      begin += n;
    }
  }
};

}  // namespace

Tensor encode_boxes(const Tensor& boxes, const Tensor& anchors, double wx, double wy, double ww,
                    double wh) {
  check_encode_boxes(boxes, anchors);
  const Tensor deltas = torch::stable::new_empty(boxes, boxes.sizes());
  dispatch_floating(boxes.scalar_type(), [&]<typename T>() {
    using M = Sum<T>;
    const Rows<T> box_rows = rows<T>(boxes), anchor_rows = rows<T>(anchors);
    const Deltas<M> weights = {M(wx), M(wy), M(ww), M(wh)};
    const auto run = current_loops<BoxCodingLoops<M>>().encode_boxes;
    parallel_for(boxes.numel() / 4, kGrain, [&](int64_t first, int64_t last) {
      Reader<Box<M>, T> box_reader(box_rows), anchor_reader(anchor_rows);
      Writer<Deltas<M>, T> out(deltas);
      for (int64_t i = first; i < last; i += kBlockRows) {
        const int64_t n = std::min(kBlockRows, last - i);
        run(box_reader.read(i, n), anchor_reader.read(i, n), n, weights, out.place(i));
        out.flush(i, n);
      }
    });
  });
  return deltas;
}

Tensor decode_boxes(const Tensor& deltas, const Tensor& anchors, double wx, double wy, double ww,
                    double wh, const std::optional<Tensor>& sizes) {
  check_decode_boxes("decode_boxes", deltas, anchors, sizes);
  const std::optional<Tensor> sizes_in = contiguous(sizes);
  const Images images(sizes_in, deltas);
  const Tensor boxes = torch::stable::new_empty(deltas, deltas.sizes());
  dispatch_floating(deltas.scalar_type(), [&]<typename T>() {
    using M = Sum<T>;
    const Rows<T> delta_rows = rows<T>(deltas), anchor_rows = rows<T>(anchors);
    const Deltas<M> weights = {M(wx), M(wy), M(ww), M(wh)};
    const auto run = current_loops<BoxCodingLoops<M>>().decode_boxes;
    parallel_for(deltas.numel() / 4, kGrain, [&](int64_t first, int64_t last) {
      Reader<Deltas<M>, T> delta_reader(delta_rows);
      Reader<Box<M>, T> anchor_reader(anchor_rows);
      Writer<Box<M>, T> out(boxes);
      images.for_each_block<M>(first, last, [&](int64_t i, int64_t n, const ImageSize<M>* size) {
        run(delta_reader.read(i, n), anchor_reader.read(i, n), n, weights, size, out.place(i));
        out.flush(i, n);
      });
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
  const Images images(sizes_in, deltas);
  const Tensor grad_deltas = torch::stable::new_empty(deltas, deltas.sizes());
  dispatch_floating(deltas.scalar_type(), [&]<typename T>() {
    using M = Sum<T>;
    const Rows<T> grad_rows = rows<T>(grad), delta_rows = rows<T>(deltas);
    const Rows<T> anchor_rows = rows<T>(anchors);
    const Deltas<M> weights = {M(wx), M(wy), M(ww), M(wh)};
    const auto run = current_loops<BoxCodingLoops<M>>().decode_boxes_backward;
    parallel_for(deltas.numel() / 4, kGrain, [&](int64_t first, int64_t last) {
      Reader<Box<M>, T> grad_reader(grad_rows), anchor_reader(anchor_rows);
      Reader<Deltas<M>, T> delta_reader(delta_rows);
      Writer<Deltas<M>, T> out(grad_deltas);
      images.for_each_block<M>(first, last, [&](int64_t i, int64_t n, const ImageSize<M>* size) {
        run(grad_reader.read(i, n), delta_reader.read(i, n), anchor_reader.read(i, n), n, weights,
            size, out.place(i));
        out.flush(i, n);
      });
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
