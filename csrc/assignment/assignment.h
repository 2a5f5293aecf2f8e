// SPDX-License-Identifier: BSD-3-Clause
// The linear assignment problem: each row gets at most one column, and the total cost is minimal.
// Shared by host and device, which differ in how a team of threads scans a row (the host's team is
// one thread with vectors, the device's is a block). Every scan gives the same bits on both, so the
// result is the same, ties included.
//
// The method is that of Jonker and Volgenant (Computing 38, 1987) for rows <= columns. Columns have
// prices <= 0, 0 while a column is free. First the rows bid in turn, as in an auction: a row takes
// the column with the smallest cost - price and lowers its price until the row's second choice is
// as good; the column's former owner bids next. The number of bids is limited. Then each row that
// has no column is added along the shortest alternating path to a free column (Dijkstra), which
// keeps the assignment optimal for the rows so far.
//
// A cost of +infinity forbids its pair. If no path from a new row leads to a free column, none ever
// will. Then some row of the path tree stays without a column: the one for which the total is
// smallest. So the result has as many pairs as possible and the least total of all such
// assignments. O(rows^2 columns) time, less in practice.
#pragma once

#include <cstdint>
#include <limits>

#include "../geometry/box.h"

namespace fastdet {

// Bids before the shortest paths, per row. It bounds price wars, which bids cannot end.
constexpr int64_t kBidsPerRow = 4;

constexpr double kForbidden = std::numeric_limits<double>::infinity();

// Of a row's costs minus the prices: the smallest, its lowest column, and the second smallest,
// which is equal to the smallest if two columns have it.
struct TwoSmallest {
  double smallest, second;
  int64_t column;
};

// Of the distances of a search: the smallest, and its column. Of several, the lowest one without an
// owner, or the lowest one if all have owners.
struct Nearest {
  double distance;
  int64_t column;
};

// The memory of one problem. Index is the integer type of the team's scans.
template <typename Index>
struct AssignmentState {
  // For each column. `path` is the row before the column on the shortest path to it, `owner` its
  // row or -1.
  double *price, *distance;
  Index *path, *owner;
  // For each row: its column or -1.
  Index* column;
  // The columns that a search has reached, nearest first, at most one for each row. Their prices
  // are kept here; meanwhile `price` is -infinity, which puts them out of reach.
  Index* reached;
  double *reached_distance, *reached_price;
};

// `Team` has the scans `two_smallest`, `relax` and `first_free`, `once(f)`, which runs f on one
// thread between two barriers, and `for_each(n, f)`, which runs f(k) for each k between barriers.
template <typename Team, typename Index>
struct AssignmentSolver {
  const Team& team;
  const double* cost;  // (rows, stride), each finite or kForbidden
  int64_t stride;
  int64_t num_rows, num_columns;  // rows <= columns
  AssignmentState<Index> state;

  FASTDET_HOST_DEVICE void solve() const {
    team.for_each(num_columns, [&](int64_t j) {
      state.price[j] = 0;
      state.owner[j] = -1;
    });
    team.for_each(num_rows, [&](int64_t i) { state.column[i] = -1; });
    int64_t bids = kBidsPerRow * num_rows;
    for (int64_t first = 0; first < num_rows; ++first)
      for (int64_t i = first; i >= 0 && bids > 0; --bids) i = bid(i);
    for (int64_t i = 0; i < num_rows; ++i)
      if (state.column[i] < 0) add_row(i);
  }

 private:
  FASTDET_HOST_DEVICE const double* row(int64_t i) const { return cost + i * stride; }

  // Returns the row that lost its column by this, or -1. The row may stay without a column.
  FASTDET_HOST_DEVICE int64_t bid(int64_t i) const {
    const TwoSmallest two = team.two_smallest(row(i), state.price);
    if (!(two.second < kForbidden)) return -1;
    int64_t j = two.column, loser = state.owner[j];
    double price = state.price[j] - (two.second - two.smallest);
    if (loser >= 0 && !(price < state.price[j])) {  // a tie
      j = team.first_free(row(i), two.smallest, state.owner);
      if (j < 0) return -1;
      price = 0;
      loser = -1;
    }
    team.once([&] {
      state.price[j] = price;
      state.owner[j] = static_cast<Index>(i);
      state.column[i] = static_cast<Index>(j);
      if (loser >= 0) state.column[loser] = -1;
    });
    return loser;
  }

  // Dijkstra's search from a row without a column; `distance` is relative to the prices.
  FASTDET_HOST_DEVICE void add_row(int64_t new_row) const {
    team.for_each(num_columns, [&](int64_t j) { state.distance[j] = kForbidden; });
    double offset = 0;
    int64_t num_reached = 0;
    for (int64_t i = new_row;;) {
      const Nearest nearest =
          team.relax(row(i), state.price, offset, i, state.owner, state.distance, state.path);
      if (!(nearest.distance < kForbidden)) return leave_one_out(new_row, num_reached);
      const int64_t j = nearest.column;
      i = state.owner[j];
      if (i < 0) {
        settle(num_reached, nearest.distance);
        return assign_path(new_row, j);
      }
      offset = row(i)[j] - state.price[j] - nearest.distance;
      team.once([&] {
        state.reached[num_reached] = static_cast<Index>(j);
        state.reached_distance[num_reached] = nearest.distance;
        state.reached_price[num_reached] = state.price[j];
        state.price[j] = -kForbidden;
        state.distance[j] = kForbidden;
      });
      ++num_reached;
    }
  }

  // Ends a search that found no free column.
  FASTDET_HOST_DEVICE void leave_one_out(int64_t new_row, int64_t num_reached) const {
    if (num_reached == 0) return;
    double least = 0;  // of the changes of the total; that for the new row itself
    int64_t left_out = -1;
    for (int64_t k = 0; k < num_reached; ++k) {
      const int64_t j = state.reached[k];
      const double change =
          state.reached_distance[k] + state.reached_price[k] - row(state.owner[j])[j];
      if (change < least) {
        least = change;
        left_out = j;
      }
    }
    settle(num_reached, state.reached_distance[num_reached - 1]);
    if (left_out < 0) return;
    team.once([&] { state.column[state.owner[left_out]] = -1; });
    assign_path(new_row, left_out);
  }

  // New prices of the reached columns: every step of every shortest path now costs its price.
  FASTDET_HOST_DEVICE void settle(int64_t num_reached, double distance) const {
    team.for_each(num_reached, [&](int64_t k) {
      state.price[state.reached[k]] =
          state.reached_price[k] + (state.reached_distance[k] - distance);
    });
  }

  // Each row on the path to column j takes the next column on it.
  FASTDET_HOST_DEVICE void assign_path(int64_t new_row, int64_t j) const {
    team.once([&] {
      for (int64_t i = -1; i != new_row;) {
        i = state.path[j];
        const int64_t before = state.column[i];
        state.owner[j] = static_cast<Index>(i);
        state.column[i] = static_cast<Index>(j);
        j = before;
      }
    });
  }
};

}  // namespace fastdet
