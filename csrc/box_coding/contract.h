// SPDX-License-Identifier: BSD-3-Clause
// The arguments that encode_boxes, decode_boxes and their gradient accept.
#pragma once

#include <optional>

#include "../expect.h"

namespace fastdet {

// Shape, dtype and device of `like`, with any strides: an expanded view is fine.
inline void check_rows_like(const char* op, const char* argument, const Argument& rows,
                            const Argument& like) {
  expect(rows.scalar_type() == like.scalar_type() && same_shape(rows, like), op, argument,
         "the shape and dtype of the first argument", rows);
  expect_same_device(op, argument, rows, like);
}

inline void check_rows(const char* op, const char* argument, const Argument& rows) {
  expect(rows.dim() >= 1 && rows.dim() <= 9 && is_boxes(rows, rows.dim()), op, argument,
         "floating (..., 4) of at most 9 dimensions", rows);
}

inline void check_encode_boxes(const Argument& boxes, const Argument& anchors) {
  check_rows("encode_boxes", "boxes", boxes);
  check_rows_like("encode_boxes", "anchors", anchors, boxes);
}

// The sizes of the images that deltas (B, ..., 4) belong to.
inline void check_sizes(const char* op, const Argument& sizes, const Argument& deltas) {
  expect(deltas.dim() >= 2 && is_sizes(sizes, deltas.size(0)), op, "sizes",
         "int64 (B, 2) with the B of deltas (B, ..., 4)", sizes);
  expect_same_device(op, "sizes", sizes, deltas);
}

// Anchors that repeat over the leading dimensions of `rows`, as fastdet.numpy passes them.
inline void check_repeated_anchors(const char* op, const char* argument, const Argument& rows,
                                   const Argument& anchors) {
  check_rows(op, argument, rows);
  bool fits = anchors.dim() >= 1 && anchors.dim() <= rows.dim();
  for (int64_t d = 1; fits && d <= anchors.dim(); ++d)
    fits = anchors.size(anchors.dim() - d) == rows.size(rows.dim() - d);
  expect(fits, op, "anchors", "the last dimensions of the first argument", anchors);
}

inline void check_decode_boxes(const char* op, const Argument& deltas, const Argument& anchors,
                               const std::optional<Argument>& sizes) {
  check_rows(op, "deltas", deltas);
  check_rows_like(op, "anchors", anchors, deltas);
  if (sizes) check_sizes(op, *sizes, deltas);
}

}  // namespace fastdet
