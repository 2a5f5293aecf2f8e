// SPDX-License-Identifier: BSD-3-Clause
// The rows of four numbers of a tensor (..., 4), read through its strides, so that an expanded view
// is not copied. For host and device. Each row costs one integer division for each dimension that
// does not merge with its neighbour, none for a contiguous tensor.
#pragma once

#include <type_traits>

#include "../geometry/box.h"
#include "../geometry/numbers.h"
#include "../torch.h"

namespace fastdet {

constexpr int kMaxRowDims = 8;

template <typename T>
struct Rows {
  const T* data;
  int64_t element_stride;
  int dims;
  int64_t sizes[kMaxRowDims], strides[kMaxRowDims];  // innermost first

  // The offset of row `row`; rows count in the order of the leading dimensions.
  FASTDET_HOST_DEVICE int64_t offset(int64_t row) const {
    int64_t offset = 0;
    for (int d = 0; d + 1 < dims; ++d) {
      const int64_t outer = row / sizes[d];
      offset += (row - outer * sizes[d]) * strides[d];
      row = outer;
    }
    return dims > 0 ? offset + row * strides[dims - 1] : offset;
  }

  // The row at that offset.
  template <typename Row>
  FASTDET_HOST_DEVICE Row read_at(int64_t offset) const {
    using M = Sum<T>;
    const T* p = data + offset;
    return {static_cast<M>(p[0]), static_cast<M>(p[element_stride]),
            static_cast<M>(p[2 * element_stride]), static_cast<M>(p[3 * element_stride])};
  }

  template <typename Row>
  FASTDET_HOST_DEVICE Row read(int64_t row) const {
    return read_at<Row>(offset(row));
  }

  // Pointer to rows [row, row + n) of the tensor itself if they are contiguous and of the type that
  // is computed in; else null.
  const Sum<T>* in_place(int64_t row, int64_t n) const {
    if constexpr (std::is_same_v<T, Sum<T>>) {
      if (element_stride != 1 || (dims > 0 && strides[0] != 4)) return nullptr;
      const int64_t first = dims > 0 ? row % sizes[0] : 0;
      if (first + n > (dims > 0 ? sizes[0] : 1)) return nullptr;
      int64_t offset = first * 4;
      if (dims > 0) row /= sizes[0];
      for (int d = 1; d < dims; ++d) {
        offset += row % sizes[d] * strides[d];
        row /= sizes[d];
      }
      return data + offset;
    }
    return nullptr;
  }
};

// `tensor` has at most kMaxRowDims + 1 dimensions, the last of size 4, as the contract says.
template <typename T>
Rows<T> rows(const Tensor& tensor) {
  Rows<T> r = {data<T>(tensor), tensor.stride(tensor.dim() - 1), 0, {}, {}};
  for (int64_t d = tensor.dim() - 2; d >= 0; --d) {
    const int64_t size = tensor.size(d), stride = tensor.stride(d);
    if (size == 1) continue;
    if (r.dims > 0 && stride == r.strides[r.dims - 1] * r.sizes[r.dims - 1]) {
      r.sizes[r.dims - 1] *= size;
    } else {
      r.sizes[r.dims] = size;
      r.strides[r.dims++] = stride;
    }
  }
  return r;
}

}  // namespace fastdet
