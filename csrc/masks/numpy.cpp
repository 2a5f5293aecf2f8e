// SPDX-License-Identifier: BSD-3-Clause
// COCO's strings of run lengths. The first three counts are stored as they are, every other count
// as its difference from the count two before. Each number is stored in groups of five bits, the
// lowest first, as characters from '0' on.
#include <string>

#include "../python/arrays.h"

namespace fastdet::python {

namespace {

void add_number(int64_t number, std::string& text) {
  bool more = true;
  while (more) {
    int64_t group = number & 31;
    number >>= 5;
    more = group & 16 ? number != -1 : number != 0;
    text.push_back(static_cast<char>((more ? group | 32 : group) + 48));
  }
}

// The string of a mask of `pixels` pixels that changes at the edges.
std::string counts_of(const int64_t* edges, int64_t num_edges, int64_t pixels) {
  std::string text;
  int64_t before = 0, counts[3] = {};  // the last three
  for (int64_t k = 0; k <= num_edges; ++k) {
    const int64_t edge = k < num_edges ? edges[k] : pixels;
    counts[k % 3] = edge - before;
    before = edge;
    add_number(k > 2 ? counts[k % 3] - counts[(k - 2) % 3] : counts[k % 3], text);
  }
  return text;
}

std::vector<py::bytes> rle_counts(const Array<int64_t>& edges, const Array<int64_t>& offsets,
                                  int64_t pixels) {
  const char* const op = "rle_counts";
  expect(edges.ndim() == 1, op, "edges", "(E,)", edges);
  const int64_t* const offset = offsets.data();
  const int64_t count = offsets.ndim() == 1 ? offsets.shape(0) - 1 : -1;
  bool rises = count >= 0 && offset[0] == 0 && offset[count] == edges.shape(0);
  for (int64_t n = 0; rises && n < count; ++n) rises = offset[n] <= offset[n + 1];
  expect(rises, op, "offsets", "(N + 1,), rising from 0 to E", offsets);
  std::vector<py::bytes> counts;
  for (int64_t n = 0; n < count; ++n)
    counts.emplace_back(counts_of(edges.data() + offset[n], offset[n + 1] - offset[n], pixels));
  return counts;
}

void bind(py::module_& m) {
  m.def("rle_counts", rle_counts, py::arg("edges").noconvert(), py::arg("offsets").noconvert(),
        py::arg("pixels"),
        "The counts of COCO's compressed RLE of each mask, by where it changes.");
}

const Entries entries(bind);

}  // namespace

}  // namespace fastdet::python
