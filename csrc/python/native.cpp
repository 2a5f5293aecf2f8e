// SPDX-License-Identifier: BSD-3-Clause
// fastdet._native: the functions that Python calls without torch's dispatcher. It needs no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <string>
#include <vector>

#include "../isa/byte_products.h"
#include "arrays.h"

namespace py = pybind11;

namespace fastdet::python {

namespace {

std::vector<void (*)(py::module_&)>& all_entries() {
  static std::vector<void (*)(py::module_&)> entries;
  return entries;
}

}  // namespace

Entries::Entries(void (*bind)(py::module_&)) { all_entries().push_back(bind); }

}  // namespace fastdet::python

PYBIND11_MODULE(_native, m) {
  m.doc() = "fastdet's native side beyond the torch ops: build info, ISA control, fastdet.numpy.";
  m.def("cpu_isa", fastdet::cpu::isa_name, "The instruction set that the CPU kernels run on.");
  m.def("usable_cpu_isas", fastdet::cpu::usable_isas,
        "The instruction sets of this build and processor, in ascending order.");
  m.def("cpu_has_byte_products",
        py::overload_cast<const std::string&>(fastdet::cpu::has_byte_products), py::arg("isa"),
        "Whether an instruction set has sums of products of bytes (VNNI) here.");
  m.def("set_cpu_isa", fastdet::cpu::set_isa, py::arg("name"),
        "Makes the CPU kernels run on the named instruction set. Raises ValueError for an unusable "
        "one.");
  m.attr("cuda_archs") = FASTDET_CUDA_ARCHS_BUILT;
  m.attr("cuda_version") = FASTDET_CUDA_VERSION_BUILT;
  m.attr("compiler") = FASTDET_COMPILER;
  for (const auto bind : fastdet::python::all_entries()) bind(m);
  py::register_local_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const fastdet::ContractError& error) {
      const std::string message = error.what();
      py::set_error(PyExc_ValueError, message.substr(message.find("::") + 2).c_str());
    }
  });
}
