// SPDX-License-Identifier: BSD-3-Clause
// The types of numbers that the operators take, and the type that each is computed in. Host and
// device; of torch only its header-only half types.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <type_traits>

namespace fastdet {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// What values of type T are computed and summed in: double for double, float for every other type.
template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace fastdet
