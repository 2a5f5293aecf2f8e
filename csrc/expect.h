// SPDX-License-Identifier: BSD-3-Clause
// The functions with which each family's contract.h states what its operators accept, and the one
// form of all their error messages. A check sees an argument as an `Argument`. Torch tensors and
// NumPy arrays convert to it, so that both entries share the rules. Of torch, only the header-only
// dtypes are used.
//
// C++ checks what guards memory: shape, dtype, device. Python checks the meaning of values (ranges,
// enums), in fastdet/ops and fastdet/numpy.py.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastdet {

using torch::headeronly::ScalarType;

constexpr auto kBool = ScalarType::Bool;
constexpr auto kInt64 = ScalarType::Long;
constexpr auto kFloat32 = ScalarType::Float;
constexpr auto kFloat64 = ScalarType::Double;

// Box arithmetic is done in float64 for float64 boxes and in float32 for every other type.
constexpr ScalarType box_dtype(ScalarType boxes) { return boxes == kFloat64 ? kFloat64 : kFloat32; }

constexpr ScalarType box_dtype(ScalarType boxes1, ScalarType boxes2) {
  return box_dtype(boxes1) == kFloat64 ? kFloat64 : box_dtype(boxes2);
}

// ---- arguments ----------------------------------------------------------------------------------

enum class Place { kCpu, kCuda, kOther, kNumpy };

struct ArgumentView {
  ScalarType dtype;
  const int64_t* sizes;
  int64_t dim;
  Place place;
  int64_t device_index;
};

// Specialised for each kind of argument: `static ArgumentView view(const T&)`.
template <typename T>
struct ArgumentOf;

// A tensor or an array, valid as long as that lives. The conversion is implicit, so that a check
// takes the tensors or arrays themselves.
class Argument {
 public:
  template <typename T>
    requires requires(const T& argument) { ArgumentOf<T>::view(argument); }
  Argument(const T& argument) : view_(ArgumentOf<T>::view(argument)) {}

  ScalarType scalar_type() const { return view_.dtype; }
  int64_t dim() const { return view_.dim; }
  int64_t size(int64_t d) const { return view_.sizes[d]; }
  Place place() const { return view_.place; }
  int64_t device_index() const { return view_.device_index; }
  bool is_cpu() const { return view_.place == Place::kCpu; }

  int64_t numel() const {
    int64_t n = 1;
    for (int64_t d = 0; d < dim(); ++d) n *= size(d);
    return n;
  }

 private:
  ArgumentView view_;
};

template <typename T>
std::vector<Argument> arguments(const std::vector<T>& list) {
  return {list.begin(), list.end()};
}

// "Float (3, 5) on cpu" for a tensor, "float32 (3, 5)" for an array.
inline std::string describe(const Argument& argument) {
  const bool numpy = argument.place() == Place::kNumpy;
  std::ostringstream text;
  if (numpy)
    text << (argument.scalar_type() == kInt64     ? "int64"
             : argument.scalar_type() == kFloat64 ? "float64"
                                                  : "float32");
  else
    text << torch::headeronly::toString(argument.scalar_type());
  text << " (";
  for (int64_t d = 0; d < argument.dim(); ++d) text << (d ? ", " : "") << argument.size(d);
  if (numpy) return text.str() + (argument.dim() == 1 ? ",)" : ")");
  text << ") on ";
  if (argument.is_cpu())
    text << "cpu";
  else
    text << (argument.place() == Place::kCuda ? "cuda:" : "device ") << argument.device_index();
  return text.str();
}

// ---- error messages -----------------------------------------------------------------------------

// The torch operators raise it as RuntimeError, fastdet.numpy as ValueError.
class ContractError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// "fastdet::nms: boxes: expected floating (N, 4), got Float (3, 5) on cpu"
[[noreturn]] inline void refuse(const char* op, const char* argument, const std::string& expected,
                                const std::string& actual) {
  throw ContractError("fastdet::" + std::string(op) + ": " + argument + ": expected " + expected +
                      ", got " + actual);
}

// `expected` without the dtype at its beginning: fastdet/numpy.py has already converted the array
// to that type.
inline std::string shape_of(const std::string& expected) {
  for (const std::string dtype : {"floating ", "int64 "})
    if (expected.starts_with(dtype)) return expected.substr(dtype.size());
  return expected;
}

inline void expect(bool holds, const char* op, const char* argument, const char* expected,
                   const Argument& actual) {
  if (holds) return;
  const bool numpy = actual.place() == Place::kNumpy;
  refuse(op, argument, numpy ? shape_of(expected) : expected, describe(actual));
}

inline void expect_not_negative(const char* op, const char* argument, int64_t number) {
  if (number < 0) refuse(op, argument, "a number >= 0", std::to_string(number));
}

inline void expect_number(bool holds, const char* op, const char* argument, const char* expected,
                          double actual) {
  if (holds) return;
  std::ostringstream text;
  text << actual;
  refuse(op, argument, expected, text.str());
}

// ---- conditions on arguments --------------------------------------------------------------------

inline bool is_floating(const Argument& argument) {
  const auto dtype = argument.scalar_type();
  return dtype == kFloat32 || dtype == kFloat64 || dtype == ScalarType::Half ||
         dtype == ScalarType::BFloat16;
}

// Boxes (..., 4) with `dim` dimensions.
inline bool is_boxes(const Argument& argument, int64_t dim) {
  return is_floating(argument) && argument.dim() == dim && argument.size(dim - 1) == 4;
}

// Shape (n,), of integers.
inline bool is_integers(const Argument& argument, int64_t n) {
  return argument.scalar_type() == kInt64 && argument.dim() == 1 && argument.size(0) == n;
}

// Shape (n, 2), the height and width of each of n images.
inline bool is_sizes(const Argument& argument, int64_t n) {
  return argument.scalar_type() == kInt64 && argument.dim() == 2 && argument.size(0) == n &&
         argument.size(1) == 2;
}

inline bool same_device(const Argument& a, const Argument& b) {
  return a.place() == b.place() && a.device_index() == b.device_index();
}

inline bool same_shape(const Argument& a, const Argument& b) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d) same = a.size(d) == b.size(d);
  return same;
}

inline void expect_same_device(const char* op, const char* argument, const Argument& actual,
                               const Argument& first) {
  expect(same_device(actual, first), op, argument, "the device of the first argument", actual);
}

}  // namespace fastdet
