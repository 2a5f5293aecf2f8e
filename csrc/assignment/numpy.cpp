// SPDX-License-Identifier: BSD-3-Clause
// Assignment and query matching for NumPy arrays: the code of the torch operators, on the calling
// thread.
#include <optional>
#include <vector>

#include "../python/arrays.h"
#include "contract.h"
#include "linear_assignment.h"
#include "query_matcher.h"

namespace fastdet::python {

namespace {

using Ints = Array<int64_t>;

// An array with the shape of `array` without its last dimension.
template <typename T>
Ints index_of_rows(const Array<T>& array) {
  return Ints(std::vector<py::ssize_t>(array.shape(), array.shape() + array.ndim() - 1));
}

template <typename T>
Ints linear_assignment(const Array<T>& cost, const std::optional<Ints>& row_counts,
                       const std::optional<Ints>& col_counts) {
  check_linear_assignment(cost, row_counts, col_counts);
  Ints index = index_of_rows(cost);
  const int64_t num_rows = cost.shape(cost.ndim() - 2), num_columns = cost.shape(cost.ndim() - 1);
  const cpu::AssignmentBatch<T> in = {cost.data(),
                                      row_counts ? row_counts->data() : nullptr,
                                      col_counts ? col_counts->data() : nullptr,
                                      num_rows > 0 ? index.size() / num_rows : 0,
                                      num_rows,
                                      num_columns};
  int64_t* const out = index.mutable_data();
  {
    const py::gil_scoped_release no_gil;
    cpu::assign_batch(in, out, kSerial);
  }
  return index;
}

template <typename T>
Ints match_queries(const Array<T>& logits, const Array<T>& boxes, const Ints& gt_labels,
                   const Array<T>& gt_boxes, const Ints& gt_counts, double cost_class,
                   double cost_bbox, double cost_giou, double alpha, double gamma, ClassCost kind,
                   int64_t groups) {
  const QueryWeights weights = {cost_class, cost_bbox, cost_giou, alpha, gamma};
  check_match_queries(logits, boxes, gt_labels, gt_boxes, gt_counts, weights, groups);
  Ints index = index_of_rows(logits);
  if (index.size() == 0) return index;
  const auto boxes_of = [](const Array<T>& array) {
    return reinterpret_cast<const CentredBox<T>*>(array.data());
  };
  const int64_t num_images = gt_labels.shape(0), num_queries = logits.shape(logits.ndim() - 2);
  const cpu::QueryBatch<T> in = {logits.data(),
                                 boxes_of(boxes),
                                 gt_labels.data(),
                                 boxes_of(gt_boxes),
                                 gt_counts.data(),
                                 index.size() / (num_images * num_queries),
                                 num_images,
                                 num_queries,
                                 logits.shape(logits.ndim() - 1),
                                 gt_labels.shape(1),
                                 groups,
                                 weights,
                                 kind};
  int64_t* const out = index.mutable_data();
  {
    const py::gil_scoped_release no_gil;
    cpu::match_query_batch(in, out, kSerial);
  }
  return index;
}

template <typename T>
void bind_type(py::module_& m) {
  m.def("linear_assignment", linear_assignment<T>, py::arg("cost").noconvert(),
        py::arg("row_counts").noconvert(), py::arg("col_counts").noconvert());
  m.def("match_queries", match_queries<T>, py::arg("logits").noconvert(),
        py::arg("boxes").noconvert(), py::arg("gt_labels").noconvert(),
        py::arg("gt_boxes").noconvert(), py::arg("gt_counts").noconvert(), py::arg("cost_class"),
        py::arg("cost_bbox"), py::arg("cost_giou"), py::arg("alpha"), py::arg("gamma"),
        py::arg("kind"), py::arg("groups"));
}

void bind(py::module_& m) {
  py::enum_<ClassCost>(m, "ClassCost")
      .value("focal", ClassCost::kFocal)
      .value("softmax", ClassCost::kSoftmax);
  bind_type<float>(m);
  bind_type<double>(m);
}

const Entries entries(bind);

}  // namespace

}  // namespace fastdet::python
