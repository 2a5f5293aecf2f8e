// SPDX-License-Identifier: BSD-3-Clause
// The dense assigners for NumPy arrays: the code of the torch operators, on the calling thread.
#include <utility>
#include <vector>

#include "../python/arrays.h"
#include "atss.h"
#include "contract.h"
#include "simota.h"
#include "task_aligned.h"

namespace fastdet::python {

namespace {

using Ints = Array<int64_t>;

template <typename T>
std::pair<Ints, Array<T>> assign_task_aligned(const Array<T>& scores, const Array<T>& boxes,
                                              const Array<T>& points, const Ints& gt_labels,
                                              const Array<T>& gt_boxes, const Ints& gt_counts,
                                              int64_t topk, double alpha, double beta,
                                              double min_side) {
  check_assign_task_aligned(scores, boxes, points, gt_labels, gt_boxes, gt_counts, topk, alpha,
                            beta, min_side);
  const int64_t num_images = scores.shape(0), num_anchors = scores.shape(1);
  const int64_t num_classes = scores.shape(2);
  Ints index({num_images, num_anchors});
  Array<T> metric({num_images, num_anchors});
  const cpu::TaskAlignedInput<T> in = {
      scores.data(),
      num_anchors * num_classes,
      num_classes,
      1,
      boxes_of(boxes),
      points.data(),
      {gt_labels.data(), boxes_of(gt_boxes), gt_counts.data(), gt_labels.shape(1), scores.shape(2)},
      num_images,
      num_anchors,
      topk,
      task_alignment<T>(alpha, beta, min_side)};
  int64_t* const index_out = index.mutable_data();
  T* const metric_out = metric.mutable_data();
  {
    const py::gil_scoped_release no_gil;
    cpu::assign_task_aligned_batch(in, index_out, metric_out, kSerial);
  }
  return {std::move(index), std::move(metric)};
}

template <typename T>
std::pair<Ints, Array<T>> assign_atss(const Array<T>& anchors,
                                      const std::vector<int64_t>& level_sizes,
                                      const Array<T>& gt_boxes, const Ints& gt_counts,
                                      int64_t topk) {
  check_assign_atss(anchors, level_sizes, gt_boxes, gt_counts, topk);
  const int64_t num_images = gt_boxes.shape(0), num_anchors = anchors.shape(0);
  Ints index({num_images, num_anchors});
  Array<T> iou({num_images, num_anchors});
  const cpu::AtssInput<T> in = {boxes_of(anchors), level_sizes, boxes_of(gt_boxes),
                                gt_counts.data(),  num_images,  num_anchors,
                                gt_boxes.shape(1), topk};
  int64_t* const index_out = index.mutable_data();
  T* const iou_out = iou.mutable_data();
  {
    const py::gil_scoped_release no_gil;
    cpu::assign_atss_batch(in, index_out, iou_out, kSerial);
  }
  return {std::move(index), std::move(iou)};
}

template <typename T>
std::pair<Ints, Array<T>> assign_simota(const Array<T>& scores, const Array<T>& boxes,
                                        const Array<T>& points, const Array<T>& strides,
                                        const Ints& gt_labels, const Array<T>& gt_boxes,
                                        const Ints& gt_counts, double center_radius,
                                        int64_t candidate_topk, double cls_weight,
                                        double iou_weight) {
  check_assign_simota(scores, boxes, points, strides, gt_labels, gt_boxes, gt_counts, center_radius,
                      candidate_topk, cls_weight, iou_weight);
  const int64_t num_images = scores.shape(0), num_anchors = scores.shape(1);
  Ints index({num_images, num_anchors});
  Array<T> iou({num_images, num_anchors});
  const cpu::SimotaInput<T> in = {
      scores.data(),
      boxes_of(boxes),
      points.data(),
      strides.data(),
      {gt_labels.data(), boxes_of(gt_boxes), gt_counts.data(), gt_labels.shape(1), scores.shape(2)},
      num_images,
      num_anchors,
      candidate_topk,
      {static_cast<T>(center_radius), static_cast<T>(cls_weight), static_cast<T>(iou_weight)}};
  int64_t* const index_out = index.mutable_data();
  T* const iou_out = iou.mutable_data();
  {
    const py::gil_scoped_release no_gil;
    cpu::assign_simota_batch(in, index_out, iou_out, kSerial);
  }
  return {std::move(index), std::move(iou)};
}

template <typename T>
void bind_type(py::module_& m) {
  m.def("assign_task_aligned", assign_task_aligned<T>, py::arg("scores").noconvert(),
        py::arg("boxes").noconvert(), py::arg("points").noconvert(),
        py::arg("gt_labels").noconvert(), py::arg("gt_boxes").noconvert(),
        py::arg("gt_counts").noconvert(), py::arg("topk"), py::arg("alpha"), py::arg("beta"),
        py::arg("min_side"));
  m.def("assign_simota", assign_simota<T>, py::arg("scores").noconvert(),
        py::arg("boxes").noconvert(), py::arg("points").noconvert(), py::arg("strides").noconvert(),
        py::arg("gt_labels").noconvert(), py::arg("gt_boxes").noconvert(),
        py::arg("gt_counts").noconvert(), py::arg("center_radius"), py::arg("candidate_topk"),
        py::arg("cls_weight"), py::arg("iou_weight"));
  m.def("assign_atss", assign_atss<T>, py::arg("anchors").noconvert(), py::arg("level_sizes"),
        py::arg("gt_boxes").noconvert(), py::arg("gt_counts").noconvert(), py::arg("topk"));
}

void bind(py::module_& m) {
  bind_type<float>(m);
  bind_type<double>(m);
}

const Entries entries(bind);

}  // namespace

}  // namespace fastdet::python
