// SPDX-License-Identifier: BSD-3-Clause
// The layout of a convolution's filters for winograd_conv: the 9 taps of each input channel, in
// panels of kWinogradPanel outputs: (panels, C, kWinogradTaps, kWinogradPanel).
#pragma once

#include <cstdint>

namespace fastdet {

constexpr int64_t kWinogradTaps = 9;
constexpr int64_t kWinogradPanel = 32;
constexpr int64_t kWinogradInt8Positions = 16;  // of winograd_conv_int8's tiles

constexpr int64_t winograd_panels(int64_t outputs) {
  return (outputs + kWinogradPanel - 1) / kWinogradPanel;
}

// What winograd_conv computes last.
enum class Activation : int64_t { kNone, kRelu, kSilu };

}  // namespace fastdet
