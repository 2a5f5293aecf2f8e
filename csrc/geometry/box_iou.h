// SPDX-License-Identifier: BSD-3-Clause
// The similarity of two boxes, in four kinds, and its derivative. Shared by host and device: plain
// C++, no torch.
//
//   iou          inter / union
//   generalized  iou - (hull - union) / hull,  hull = area of the smallest enclosing box
//   distance     iou - (distance of the centres)^2 / (diagonal of the enclosing box)^2
//   complete     distance - alpha v,  v = (2/pi (angle1 - angle2))^2,  alpha = v / (1 - iou + v)
//
// A quotient is 0 if its denominator is not positive, and so is its derivative. The derivative is
// torchvision's: alpha is a constant, min and max of equal numbers share it evenly, and the
// intersection of boxes that touch without overlapping has no derivative.
#pragma once

#include "maths.h"

namespace fastdet {

enum class IouKind { kIou, kGeneralized, kDistance, kComplete };

// The numbers that torchvision adds to the denominators. The pairwise operators add nothing to an
// area.
template <typename T>
struct IouEps {
  T area, diagonal, alpha;
};

template <typename T>
FASTDET_HOST_DEVICE IouEps<T> pairwise_eps(double eps) {
  return {T(0), static_cast<T>(eps), static_cast<T>(eps)};
}

// torchvision's complete loss uses its eps only for alpha.
template <typename T>
FASTDET_HOST_DEVICE IouEps<T> loss_eps(IouKind kind, double eps) {
  const T overlap = static_cast<T>(kind == IouKind::kComplete ? 1e-7 : eps);
  return {overlap, overlap, static_cast<T>(eps)};
}

// A box with the values that depend only on it. The angle of its diagonal is only set for
// kComplete.
template <typename T>
struct IouBox {
  Box<T> box;
  T area, angle;
};

template <IouKind kind, typename T>
FASTDET_HOST_DEVICE IouBox<T> iou_box(const Box<T>& b) {
  T angle = T(0);
  if constexpr (kind == IouKind::kComplete) angle = atan_of_ratio(b.x2 - b.x1, b.y2 - b.y1);
  return {b, area(b), angle};
}

// n / (d + eps) if d is positive, else 0; a NaN stays NaN.
template <typename T>
FASTDET_HOST_DEVICE T quotient(T n, T d, T eps) {
  const T q = n / (d <= T(0) ? T(1) : d + eps);
  return d <= T(0) ? T(0) : q;
}

template <typename T>
struct Hull {
  T width, height;
};

template <typename T>
FASTDET_HOST_DEVICE Hull<T> hull_of(const Box<T>& a, const Box<T>& b) {
  const T width = max_of_numbers(a.x2, b.x2) - min_of_numbers(a.x1, b.x1);
  const T height = max_of_numbers(a.y2, b.y2) - min_of_numbers(a.y1, b.y1);
  return {max_of(width, T(0)), max_of(height, T(0))};
}

template <typename T>
FASTDET_HOST_DEVICE T alpha_of(T v, T overlap, T eps) {
  return quotient(v, T(1) - overlap + v + eps, T(0));
}

template <IouKind kind, typename T>
FASTDET_HOST_DEVICE T similarity(const IouBox<T>& a, const IouBox<T>& b, const IouEps<T>& eps) {
  const T inter = intersection(a.box, b.box);
  const T united = a.area + b.area - inter;
  const T overlap = quotient(inter, united, eps.area);
  if constexpr (kind == IouKind::kIou) return overlap;
  const Hull<T> hull = hull_of(a.box, b.box);
  if constexpr (kind == IouKind::kGeneralized) {
    const T hull_area = hull.width * hull.height;
    return overlap - quotient(hull_area - united, hull_area, eps.area);
  }
  const T dx = ((a.box.x1 + a.box.x2) - (b.box.x1 + b.box.x2)) / 2;
  const T dy = ((a.box.y1 + a.box.y2) - (b.box.y1 + b.box.y2)) / 2;
  const T diagonal = hull.width * hull.width + hull.height * hull.height;
  const T near = overlap - quotient(dx * dx + dy * dy, diagonal, eps.diagonal);
  if constexpr (kind == IouKind::kDistance) return near;
  const T turn = T(0.63661977236758134) * (a.angle - b.angle);
  const T v = turn * turn;
  return near - alpha_of(v, overlap, eps.alpha) * v;
}

// 1 if x is the smaller one, 1/2 if they are equal.
template <typename T>
FASTDET_HOST_DEVICE T share_of_min(T x, T y) {
  return x < y ? T(1) : x == y ? T(0.5) : T(0);
}

// Adds the derivative with respect to the four ends of two intervals. It is given the derivatives
// with respect to the length of their intersection and of their hull.
template <typename T>
FASTDET_HOST_DEVICE void ends_backward(T a1, T a2, T b1, T b2, T by_inter, T by_hull, T& da1,
                                       T& da2, T& db1, T& db2) {
  const T low = share_of_min(a1, b1), high = share_of_min(a2, b2);
  da1 -= by_inter * (1 - low) + by_hull * low;
  db1 -= by_inter * low + by_hull * (1 - low);
  da2 += by_inter * high + by_hull * (1 - high);
  db2 += by_inter * (1 - high) + by_hull * high;
}

template <typename T>
FASTDET_HOST_DEVICE void area_backward(const Box<T>& box, T by_area, Box<T>& d) {
  const T by_width = by_area * (box.y2 - box.y1), by_height = by_area * (box.x2 - box.x1);
  d.x1 -= by_width;
  d.x2 += by_width;
  d.y1 -= by_height;
  d.y2 += by_height;
}

// angle = atan(width / height)
template <typename T>
FASTDET_HOST_DEVICE void angle_backward(const Box<T>& box, T by_angle, Box<T>& d) {
  const T width = box.x2 - box.x1, height = box.y2 - box.y1;
  const T square = width * width + height * height;
  const T by_width = by_angle * quotient(height, square, T(0));
  const T by_height = -by_angle * quotient(width, square, T(0));
  d.x1 -= by_width;
  d.x2 += by_width;
  d.y1 -= by_height;
  d.y2 += by_height;
}

// `grad` times the derivative of similarity() with respect to both boxes.
template <IouKind kind, typename T>
FASTDET_HOST_DEVICE void similarity_backward(const IouBox<T>& a, const IouBox<T>& b,
                                             const IouEps<T>& eps, T grad, Box<T>& da, Box<T>& db) {
  da = db = {T(0), T(0), T(0), T(0)};
  const T inter_width = min_of(a.box.x2, b.box.x2) - max_of(a.box.x1, b.box.x1);
  const T inter_height = min_of(a.box.y2, b.box.y2) - max_of(a.box.y1, b.box.y1);
  const bool meet = inter_width > T(0) && inter_height > T(0);
  const T inter = meet ? inter_width * inter_height : T(0);
  const T united = a.area + b.area - inter;
  const T overlap = quotient(inter, united, eps.area);
  const T per_union = quotient(T(1), united, eps.area);
  // With respect to the two areas, to the intersection (which the union loses) and to the sides of
  // the hull.
  T by_area = -overlap * per_union;
  T by_hull_width = T(0), by_hull_height = T(0);
  T by_inter = per_union - by_area;
  if constexpr (kind != IouKind::kIou) {
    const Hull<T> hull = hull_of(a.box, b.box);
    if constexpr (kind == IouKind::kGeneralized) {
      const T hull_area = hull.width * hull.height;
      const T per_hull = quotient(T(1), hull_area, eps.area);
      const T by_hull = (quotient(hull_area - united, hull_area, eps.area) - 1) * per_hull;
      by_area += per_hull;
      by_inter -= per_hull;
      by_hull_width = by_hull * hull.height;
      by_hull_height = by_hull * hull.width;
    } else {
      const T dx = ((a.box.x1 + a.box.x2) - (b.box.x1 + b.box.x2)) / 2;
      const T dy = ((a.box.y1 + a.box.y2) - (b.box.y1 + b.box.y2)) / 2;
      const T diagonal = hull.width * hull.width + hull.height * hull.height;
      const T per_diagonal = quotient(T(1), diagonal, eps.diagonal);
      const T by_diagonal = (dx * dx + dy * dy) * per_diagonal * per_diagonal;
      by_hull_width = 2 * hull.width * by_diagonal;
      by_hull_height = 2 * hull.height * by_diagonal;
      const T by_x = -grad * dx * per_diagonal, by_y = -grad * dy * per_diagonal;
      da = {by_x, by_y, by_x, by_y};
      db = {-by_x, -by_y, -by_x, -by_y};
    }
    if constexpr (kind == IouKind::kComplete) {
      constexpr T kScale = T(0.63661977236758134);
      const T turn = kScale * (a.angle - b.angle);
      const T by_angle = -2 * alpha_of(turn * turn, overlap, eps.alpha) * kScale * turn * grad;
      angle_backward(a.box, by_angle, da);
      angle_backward(b.box, -by_angle, db);
    }
  }
  const T by_inter_width = meet ? grad * by_inter * inter_height : T(0);
  const T by_inter_height = meet ? grad * by_inter * inter_width : T(0);
  ends_backward(a.box.x1, a.box.x2, b.box.x1, b.box.x2, by_inter_width, grad * by_hull_width, da.x1,
                da.x2, db.x1, db.x2);
  ends_backward(a.box.y1, a.box.y2, b.box.y1, b.box.y2, by_inter_height, grad * by_hull_height,
                da.y1, da.y2, db.y1, db.y2);
  area_backward(a.box, grad * by_area, da);
  area_backward(b.box, grad * by_area, db);
}

// Calls body<kind>().
template <typename Body>
FASTDET_HOST_DEVICE auto dispatch_kind(IouKind kind, Body body) {
  switch (kind) {
    case IouKind::kGeneralized:
      return body.template operator()<IouKind::kGeneralized>();
    case IouKind::kDistance:
      return body.template operator()<IouKind::kDistance>();
    case IouKind::kComplete:
      return body.template operator()<IouKind::kComplete>();
    default:
      return body.template operator()<IouKind::kIou>();
  }
}

}  // namespace fastdet
