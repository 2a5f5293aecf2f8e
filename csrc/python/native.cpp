// SPDX-License-Identifier: BSD-3-Clause
// fastdet._native: what Python reaches without torch's dispatcher. Needs no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../isa/isa.h"
#include "arrays.h"

namespace py = pybind11;

PYBIND11_MODULE(_native, m) {
  m.doc() = "fastdet's native side beyond the torch ops: build info, ISA control, fastdet.numpy.";
  m.def("cpu_isa", fastdet::cpu::isa_name, "The instruction set that the CPU kernels run on.");
  m.def("usable_cpu_isas", fastdet::cpu::usable_isas,
        "The instruction sets of this build and processor, in ascending order.");
  m.def("set_cpu_isa", fastdet::cpu::set_isa, py::arg("name"),
        "Makes the CPU kernels run on the named instruction set. Raises ValueError for an unusable "
        "one.");
  m.attr("cuda_archs") = FASTDET_CUDA_ARCHS_BUILT;
  m.attr("compiler") = FASTDET_COMPILER;
  fastdet::python::bind_box_iou(m);
  fastdet::python::bind_box_coding(m);
  fastdet::python::bind_match_anchors(m);
  fastdet::python::bind_mask_rle(m);
  fastdet::python::bind_nms(m);
  fastdet::python::bind_multiclass_nms(m);
  fastdet::python::bind_retinanet_detections(m);
}
