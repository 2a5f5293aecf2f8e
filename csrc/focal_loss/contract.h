// SPDX-License-Identifier: BSD-3-Clause
// The arguments that the focal loss operators accept.
#pragma once

#include "../expect.h"

namespace fastdet {

constexpr int64_t kIgnoredLabel = -2;

inline void check_sigmoid_focal_loss(const char* op, const Argument& inputs,
                                     const Argument& targets) {
  expect(is_floating(inputs), op, "inputs", "floating of any shape", inputs);
  bool labels = targets.scalar_type() == kInt64 && targets.dim() + 1 == inputs.dim();
  for (int64_t d = 0; labels && d < targets.dim(); ++d) labels = targets.size(d) == inputs.size(d);
  expect(labels || (is_floating(targets) && same_shape(targets, inputs)), op, "targets",
         "floating with the shape of inputs, or int64 with that shape without its last dimension",
         targets);
  expect_same_device(op, "targets", targets, inputs);
}

inline void check_sigmoid_focal_loss_backward(const char* op, const Argument& grad,
                                              const Argument& inputs, const Argument& targets) {
  check_sigmoid_focal_loss(op, inputs, targets);
  expect(grad.scalar_type() == box_dtype(inputs.scalar_type()) && same_shape(grad, inputs), op,
         "grad", "one number for each logit, of the dtype of the loss", grad);
  expect_same_device(op, "grad", grad, inputs);
}

// Of a sum: its gradient, or what it is divided by.
inline void check_number(const char* op, const char* argument, const Argument& number,
                         const Argument& inputs) {
  expect(number.scalar_type() == box_dtype(inputs.scalar_type()) && number.dim() == 0, op, argument,
         "one number of the dtype of the loss", number);
  expect_same_device(op, argument, number, inputs);
}

inline void check_written(const char* op, const Argument& written, const Argument& inputs) {
  expect(written.scalar_type() == inputs.scalar_type() && same_shape(written, inputs), op,
         "written", "the shape and dtype of inputs", written);
  expect_same_device(op, "written", written, inputs);
}

}  // namespace fastdet
