// SPDX-License-Identifier: BSD-3-Clause
// The layout of filters transformed for Winograd's F(2x2, 3x3): one matrix for each of the 16
// positions of a tile, divided into panels of kWinogradPanel outputs: (kWinogradPositions, panels,
// C, kWinogradPanel).
#pragma once

#include <cstdint>

namespace fastdet {

constexpr int64_t kWinogradPositions = 16;
constexpr int64_t kWinogradPanel = 32;

constexpr int64_t winograd_panels(int64_t outputs) {
  return (outputs + kWinogradPanel - 1) / kWinogradPanel;
}

}  // namespace fastdet
