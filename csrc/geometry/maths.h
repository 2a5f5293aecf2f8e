// SPDX-License-Identifier: BSD-3-Clause
// exp, log, log1p and atan on the ranges that losses and box coding need, shared by host and
// device: plain C++, no torch. In float they are polynomials with an error of at most 2 ulp,
// without branches, tables or calls. So loops over them vectorise, and every ISA and device gets
// the same bits. In double they are the functions of the standard library.
#pragma once

#include <cmath>
#include <cstdint>

#include "box.h"

namespace fastdet {

FASTDET_HOST_DEVICE float float_of_bits(int32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

FASTDET_HOST_DEVICE int32_t bits_of(float value) {
  int32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

// e^x for x <= 88; 0 where the result is below the smallest normal float. NaN stays NaN.
FASTDET_HOST_DEVICE float exp_of(float x) {
  constexpr float kShift = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  const float clamped = x < -88.f ? -88.f : x;
  const float shifted = clamped * 1.44269504f + kShift;
  const float n = shifted - kShift;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;  // x - n ln 2
  float p = 0.00138368456f;
  p = p * r + 0.0083748158f;
  p = p * r + 0.0416682256f;
  p = p * r + 0.166664202f;
  p = p * r + 0.499999921f;
  p = (p * (r * r) + r) + 1.f;
  // n is in the low bits of `shifted`; it is added to the exponent of 1.
  const float power = float_of_bits((bits_of(shifted) << 23) + 0x3f800000);
  return x < -87.3f ? 0.f : p * power;
}

// 2 artanh(s) for |s| <= 1/3.
FASTDET_HOST_DEVICE float twice_artanh(float s) {
  const float z = s * s;
  float p = 0.281783343f;
  p = p * z + 0.279606029f;
  p = p * z + 0.400249103f;
  p = p * z + 0.666663147f;
  return (p * z) * s + 2.f * s;
}

// log(1 + x) for x in [0, 1].
FASTDET_HOST_DEVICE float log1p_of(float x) { return twice_artanh(x / (x + 2.f)); }

// log(x) for normal x > 0; about -87 for smaller x.
FASTDET_HOST_DEVICE float log_of(float x) {
  const float normal = x > 1.17549435e-38f ? x : 1.17549435e-38f;
  // x = 2^n m with m in [2/3, 4/3)
  const int32_t n = (bits_of(normal) - 0x3f2aaaab) >> 23;
  const float m = float_of_bits(bits_of(normal) - (n << 23));
  return static_cast<float>(n) * 0.693147181f + twice_artanh((m - 1.f) / (m + 1.f));
}

// The angle of width / height in [-pi/2, pi/2]; 0 for 0 / 0.
FASTDET_HOST_DEVICE float atan_of_ratio(float width, float height) {
  const float w = width < 0.f ? -width : width, h = height < 0.f ? -height : height;
  const float longer = w > h ? w : h, shorter = w > h ? h : w;
  const float q = shorter / (longer > 0.f ? longer : 1.f);
  const float z = q * q;
  float p = 0.00284988629f;
  p = p * z - 0.0160686157f;
  p = p * z + 0.0426914977f;
  p = p * z - 0.0750429272f;
  p = p * z + 0.106409332f;
  p = p * z - 0.142036443f;
  p = p * z + 0.199926194f;
  p = p * z - 0.333330733f;
  const float small = (p * z) * q + q;
  const float angle = w > h ? 1.57079633f - small : small;
  return (width < 0.f) != (height < 0.f) ? -angle : angle;
}

FASTDET_HOST_DEVICE double exp_of(double x) { return ::exp(x); }
FASTDET_HOST_DEVICE double log1p_of(double x) { return ::log1p(x); }
FASTDET_HOST_DEVICE double log_of(double x) { return ::log(x); }
FASTDET_HOST_DEVICE double atan_of_ratio(double width, double height) {
  return width == 0 && height == 0 ? 0. : ::atan(width / height);
}

}  // namespace fastdet
