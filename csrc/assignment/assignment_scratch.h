// SPDX-License-Identifier: BSD-3-Clause
// Assignment problems on the CPU: the memory of a thread, which solves one problem after another.
// Plain C++ over pointers, without torch. A problem's costs are copied, in float64, to where its
// rows are at most as many as its columns and fill whole vectors.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "assignment.loops.h"

namespace fastdet::cpu {

// A team of one thread.
class ScanningThread {
 public:
  ScanningThread(const AssignmentLoops& loops, int64_t num_columns)
      : loops_(loops), n_(num_columns) {}

  TwoSmallest two_smallest(const double* cost, const double* price) const {
    return loops_.two_smallest(cost, price, n_);
  }
  Nearest relax(const double* cost, const double* price, double offset, int64_t row,
                const int64_t* owner, double* distance, int64_t* path) const {
    Nearest nearest = loops_.relax(cost, price, offset, row, n_, distance, path);
    if (nearest.distance < kForbidden && owner[nearest.column] >= 0) {
      const int64_t free = first_free(distance, nearest.distance, owner);
      if (free >= 0) nearest.column = free;
    }
    return nearest;
  }
  int64_t first_free(const double* values, double value, const int64_t* owner) const {
    return loops_.first_free(values, value, owner, n_);
  }
  template <typename F>
  void once(const F& f) const {
    f();
  }
  template <typename F>
  void for_each(int64_t n, const F& f) const {
    for (int64_t k = 0; k < n; ++k) f(k);
  }

 private:
  const AssignmentLoops& loops_;
  int64_t n_;
};

class AssignmentScratch {
 public:
  // Room for the costs of `rows` x `columns`, rows <= columns. The caller writes row i to row(i);
  // what lies beyond the columns is kForbidden.
  void resize(int64_t rows, int64_t columns) {
    transposed_ = false;
    num_rows_ = rows;
    num_columns_ = columns;
    stride_ = (columns + kAssignmentLanes - 1) / kAssignmentLanes * kAssignmentLanes;
    cost_.resize(std::max<size_t>(cost_.size(), rows * stride_));
    for (int64_t i = 0; i < rows; ++i) std::fill(row(i) + columns, row(i) + stride_, kForbidden);
  }
  double* row(int64_t i) { return cost_.data() + i * stride_; }

  // Costs (rows, columns), with `stride` between rows; transposed if rows > columns.
  template <typename T>
  void load(const T* cost, int64_t rows, int64_t columns, int64_t stride) {
    resize(std::min(rows, columns), std::max(rows, columns));
    transposed_ = rows > columns;
    const int64_t across = transposed_ ? stride_ : 1, down = transposed_ ? 1 : stride_;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) {
        const double value = static_cast<double>(cost[r * stride + c]);
        cost_[r * down + c * across] = is_finite(value) ? value : kForbidden;
      }
  }

  // Solves what was loaded. index[r] becomes the column of row r, or -1.
  void solve(int64_t* index) {
    solve_rows();
    if (!transposed_) {
      std::copy_n(column_.begin(), num_rows_, index);
      return;
    }
    std::fill_n(index, num_columns_, int64_t(-1));
    for (int64_t i = 0; i < num_rows_; ++i)
      if (column_[i] >= 0) index[column_[i]] = i;
  }

 private:
  void solve_rows() {
    for (auto* of_columns : {&price_, &distance_}) of_columns->resize(stride_);
    for (auto* of_columns : {&path_, &owner_}) of_columns->resize(stride_);
    for (auto* of_rows : {&reached_distance_, &reached_price_}) of_rows->resize(num_rows_);
    for (auto* of_rows : {&reached_, &column_}) of_rows->resize(num_rows_);
    const ScanningThread team(current_loops<AssignmentLoops>(), stride_);
    const AssignmentSolver<ScanningThread, int64_t> solver = {
        team,
        cost_.data(),
        stride_,
        num_rows_,
        stride_,
        {price_.data(), distance_.data(), path_.data(), owner_.data(), column_.data(),
         reached_.data(), reached_distance_.data(), reached_price_.data()}};
    solver.solve();
  }

  int64_t num_rows_ = 0, num_columns_ = 0, stride_ = 0;
  bool transposed_ = false;
  std::vector<double> cost_, price_, distance_, reached_distance_, reached_price_;
  std::vector<int64_t> path_, owner_, column_, reached_;
};

}  // namespace fastdet::cpu
