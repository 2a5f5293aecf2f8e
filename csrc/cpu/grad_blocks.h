// SPDX-License-Identifier: BSD-3-Clause
// The gradient that arrives at the backward of a loss, block by block. That of a mean or a sum is
// one number expanded to the shape of the loss: it fills one block, again and again, and is never
// copied out to full size.
#pragma once

#include <algorithm>
#include <array>

#include "../torch.h"

namespace fastdet::cpu {

template <typename T>
class GradBlocks {
 public:
  explicit GradBlocks(const Tensor& grad)
      : is_uniform_(is_uniform(grad)),
        grad_(is_uniform_ ? grad : torch::stable::contiguous(grad)),
        data_(data<T>(grad_)) {
    if (is_uniform_) repeated_.fill(*data_);
  }

  // body(i, count, grad): grad[0, count) belongs to the elements [i, i + count) of [begin, end).
  template <typename Body>
  void for_each(int64_t begin, int64_t end, const Body& body) const {
    for (int64_t i = begin; i < end; i += kBlock)
      body(i, std::min(kBlock, end - i), is_uniform_ ? repeated_.data() : data_ + i);
  }

 private:
  static constexpr int64_t kBlock = 1024;

  bool is_uniform_;
  Tensor grad_;
  const T* data_;
  std::array<T, kBlock> repeated_;
};

}  // namespace fastdet::cpu
