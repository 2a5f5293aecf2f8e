// SPDX-License-Identifier: BSD-3-Clause
// The IoU of every pair of boxes, in four kinds (geometry/box_iou.h), and its gradient with respect
// to both arguments.
//
// Forward writes the matrix once, in stores of 16 bytes. A thread keeps the boxes of a few columns,
// as many as one store holds, while it goes over the rows. If the length of a row is not a multiple
// of a store, the rows begin at different offsets within a store. So a block takes only rows with
// the same offset, and its columns are the same in all of them. 100 x 267k floats are 107 MB, 32 us
// at 3.35 TB/s. The plain kind takes about 20 instructions for each pair, 18 us. Reading the boxes
// adds a tenth to the bytes.
//
// Backward computes each pair once and reads its gradient once. A block sums the derivatives of its
// tile by columns in registers and by rows across each warp. A second kernel sums the tiles in
// order, without atomics, so every run gives the same result. A pair takes 100 to 200 instructions,
// so arithmetic is the limit. For large inputs the sums of the tiles take about a seventh of the
// gradient's size.
#include <bit>

#include "../device/packs.cuh"
#include "../device/warp.cuh"
#include "contract.h"

namespace fastdet::cuda {

namespace {

constexpr int64_t kMaxGridY = 65535;

// boxes1 (B, N, 4) and boxes2 (B, M, 4); without a batch dimension, B is 1.
struct PairSizes {
  int64_t num_batches, n, m;

  PairSizes(const Tensor& boxes1, const Tensor& boxes2)
      : num_batches(boxes1.dim() == 3 ? boxes1.size(0) : 1),
        n(boxes1.size(boxes1.dim() - 2)),
        m(boxes2.size(boxes2.dim() - 2)) {}
};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- forward ------------------------------------------------------------------------------------

// The plain kind calls iou(), so that it has the same bits as in NMS. Most pairs do not overlap and
// need no division.
template <IouKind kind, typename T>
__device__ T similarity_of(const IouBox<T>& a, const IouBox<T>& b, const IouEps<T>& eps) {
  if constexpr (kind != IouKind::kIou) return similarity<kind>(a, b, eps);
  return intersection(a.box, b.box) > T(0) ? iou(a.box, a.area, b.box, b.area) : T(0);
}

// How the matrix is divided. All rows of one phase begin at the same offset within a pack.
template <typename T>
struct RowPhases {
  static constexpr int kWidth = kPackWidth<T>;
  int num_phases;
  int64_t packs;            // the largest number of packs that the columns of a row touch
  dim3 block;               // columns by rows
  int64_t rows_per_thread;  // a compromise: fill the GPU, and load the columns only rarely
  int64_t chunks;           // of the rows of a phase

  explicit RowPhases(const PairSizes& s) : num_phases(1), packs(s.m / kWidth + 2), block(1) {
    while (s.m * num_phases % kWidth != 0) num_phases *= 2;
    if (num_phases == 1) packs = s.m / kWidth;
    while (block.x < packs && block.x < kThreads) block.x *= 2;
    block.y = kThreads / block.x;
    constexpr int64_t kFull = 1 << 18;  // threads
    rows_per_thread = std::clamp<int64_t>(s.num_batches * s.n * packs / kFull, 1, 32);
    chunks = ceil_div(ceil_div(s.n, num_phases), rows_per_thread * block.y);
  }
};

// Stores 16 bytes that are not read soon, in one instruction. The compiler would split store_pack,
// to share its code with the stores of single values.
template <typename T>
__device__ void stream_pack(T* p, const Pack<T, kPackWidth<T>>& pack) {
#ifdef __CUDA_ARCH__
  __stcs(reinterpret_cast<uint4*>(p), std::bit_cast<uint4>(pack));
#else
  store_pack(p, pack);
#endif
}

template <IouKind kind, typename T>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(PairSizes sizes, RowPhases<T> cut, const Box<T>* boxes1, const Box<T>* boxes2,
                   IouEps<T> eps, T* out) {
  constexpr int kWidth = RowPhases<T>::kWidth;
  const int64_t n = sizes.n, m = sizes.m, blocks = sizes.num_batches * cut.chunks * cut.num_phases;
  for (int64_t y = blockIdx.y; y < blocks; y += gridDim.y) {
    const int64_t step = cut.num_phases, phase = y % step, chunk = y / step % cut.chunks;
    const int64_t batch = y / step / cut.chunks;
    const int64_t first_row = (phase + step - batch * n % step) % step;
    const int64_t pack = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int64_t column = pack * kWidth - phase * m % kWidth;
    if (column >= m) continue;
    IouBox<T> b[kWidth];
    for (int k = 0; k < kWidth; ++k)
      b[k] = iou_box<kind>(
          load_box(boxes2 + batch * m + max_of<int64_t>(0, min_of(column + k, m - 1))));
    const int64_t stride = step * blockDim.y;
    const int64_t first = first_row + step * threadIdx.y + chunk * cut.rows_per_thread * stride;
    const int64_t last = min_of(n, first + cut.rows_per_thread * stride);
    for (int64_t i = first; i < last; i += stride) {
      const IouBox<T> a = iou_box<kind>(load_box(boxes1 + batch * n + i));
      Pack<T, kWidth> values;
      for (int k = 0; k < kWidth; ++k) values[k] = similarity_of<kind>(a, b[k], eps);
      T* const p = out + (batch * n + i) * m + column;
      if (column >= 0 && column + kWidth <= m) {
        stream_pack(p, values);
      } else {
        for (int k = 0; k < kWidth; ++k)
          if (column + k >= 0 && column + k < m) p[k] = values[k];
      }
    }
  }
}

template <IouKind kind, typename T>
void forward(const PairSizes& sizes, const Box<T>* boxes1, const Box<T>* boxes2,
             const IouEps<T>& eps, T* out, cudaStream_t stream) {
  if (sizes.m == 0) return;
  const RowPhases<T> cut(sizes);
  const int64_t blocks = sizes.num_batches * cut.chunks * cut.num_phases;
  const dim3 grid(static_cast<unsigned>(ceil_div(cut.packs, cut.block.x)),
                  static_cast<unsigned>(std::min(blocks, kMaxGridY)));
  launch(forward_kernel<kind, T>, grid, cut.block, 0, stream, sizes, cut, boxes1, boxes2, eps, out);
}

// ---- backward -----------------------------------------------------------------------------------

constexpr int kTileRows = 32, kTileColumns = kThreads;

template <typename T>
__device__ void add(Box<T>& sum, const Box<T>& d) {
  sum = {sum.x1 + d.x1, sum.y1 + d.y1, sum.x2 + d.x2, sum.y2 + d.y2};
}

template <typename T>
__device__ Box<T> sum_of_warp(Box<T> b) {
  for (int d = kWarp / 2; d > 0; d /= 2)
    add(b, {__shfl_xor_sync(kAllLanes, b.x1, d), __shfl_xor_sync(kAllLanes, b.y1, d),
            __shfl_xor_sync(kAllLanes, b.x2, d), __shfl_xor_sync(kAllLanes, b.y2, d)});
  return b;
}

template <typename T>
struct BackwardArguments {
  PairSizes sizes;
  int64_t row_tiles, column_tiles;
  const T* grad;
  const Box<T>* boxes1;
  const Box<T>* boxes2;
  IouEps<T> eps;
  Box<T>* rows;     // sums of (column_tiles, B, N)
  Box<T>* columns;  // sums of (row_tiles, B, M)
};

// One tile: each thread has one column and goes over the rows.
template <IouKind kind, typename T>
__device__ void sum_tile(const BackwardArguments<T>& in, int64_t batch, int64_t row_tile) {
  __shared__ Box<T> of_warps[kTileRows][kThreads / kWarp];
  const int64_t n = in.sizes.n, m = in.sizes.m,
                j = int64_t(blockIdx.x) * kTileColumns + threadIdx.x;
  const int64_t first = row_tile * kTileRows;
  const int num_rows = static_cast<int>(min_of<int64_t>(kTileRows, n - first));
  const IouBox<T> b = iou_box<kind>(load_box(in.boxes2 + batch * m + min_of(j, m - 1)));
  Box<T> of_column = {0, 0, 0, 0};
  for (int r = 0; r < num_rows; ++r) {
    const int64_t row = batch * n + first + r;
    Box<T> d1 = {0, 0, 0, 0}, d2;
    if (j < m) {
      similarity_backward<kind>(iou_box<kind>(load_box(in.boxes1 + row)), b, in.eps,
                                in.grad[row * m + j], d1, d2);
      add(of_column, d2);
    }
    const Box<T> of_row = sum_of_warp(d1);
    if (lane() == 0) of_warps[r][warp()] = of_row;
  }
  if (j < m) store_box(in.columns + (row_tile * in.sizes.num_batches + batch) * m + j, of_column);
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < num_rows) {
    Box<T> of_row = {0, 0, 0, 0};
    for (const Box<T>& of_warp : of_warps[threadIdx.x]) add(of_row, of_warp);
    store_box(in.rows + (blockIdx.x * in.sizes.num_batches + batch) * n + first + threadIdx.x,
              of_row);
  }
  __syncthreads();  // the next tile overwrites this one
}

template <IouKind kind, typename T>
__global__ void __launch_bounds__(kThreads) backward_kernel(BackwardArguments<T> in) {
  for (int64_t y = blockIdx.y; y < in.sizes.num_batches * in.row_tiles; y += gridDim.y)
    sum_tile<kind>(in, y / in.row_tiles, y % in.row_tiles);
}

// One warp for each box, if there are too many tiles for one thread to sum quickly.
template <typename T>
__global__ void sum_many_tiles_kernel(int64_t n, int64_t tiles, const Box<T>* sums, Box<T>* out) {
  const int64_t step = int64_t(gridDim.x) * (blockDim.x / kWarp);
  for (int64_t i = int64_t(blockIdx.x) * (blockDim.x / kWarp) + warp(); i < n; i += step) {
    Box<T> sum = {0, 0, 0, 0};
    for (int64_t tile = lane(); tile < tiles; tile += kWarp)
      add(sum, load_box(sums + tile * n + i));
    sum = sum_of_warp(sum);
    if (lane() == 0) store_box(out + i, sum);
  }
}

// out[i] is the sum of sums[tile][i].
template <typename T>
void sum_tiles(int64_t n, int64_t tiles, const Box<T>* sums, Box<T>* out, cudaStream_t stream) {
  if (tiles > kWarp) {
    const int64_t blocks = std::min<int64_t>(ceil_div(n, kThreads / kWarp), 1 << 16);
    launch(sum_many_tiles_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream,
           n, tiles, sums, out);
    return;
  }
  for_each(n, stream, [=] __device__(int64_t i) {
    Box<T> sum = {0, 0, 0, 0};
    for (int64_t tile = 0; tile < tiles; ++tile) add(sum, load_box(sums + tile * n + i));
    store_box(out + i, sum);
  });
}

template <IouKind kind, typename T>
void backward(const PairSizes& sizes, const Tensor& grad, const Tensor& boxes1,
              const Tensor& boxes2, const IouEps<T>& eps, Box<T>* grad1, Box<T>* grad2) {
  const int64_t num_rows = sizes.num_batches * sizes.n, num_columns = sizes.num_batches * sizes.m;
  const int64_t row_tiles = ceil_div(sizes.n, kTileRows);
  const int64_t column_tiles = ceil_div(sizes.m, kTileColumns);
  const Tensor rows = empty(grad, {column_tiles, num_rows, 4}, scalar_type_of<T>());
  const Tensor columns = empty(grad, {row_tiles, num_columns, 4}, scalar_type_of<T>());
  const BackwardArguments<T> arguments = {sizes,
                                          row_tiles,
                                          column_tiles,
                                          data<T>(grad),
                                          data<Box<T>>(boxes1),
                                          data<Box<T>>(boxes2),
                                          eps,
                                          mutable_data<Box<T>>(rows),
                                          mutable_data<Box<T>>(columns)};
  const dim3 grid(static_cast<unsigned>(column_tiles),
                  static_cast<unsigned>(std::min(sizes.num_batches * row_tiles, kMaxGridY)));
  const cudaStream_t stream = current_stream(grad);
  launch(backward_kernel<kind, T>, grid, dim3(kThreads), 0, stream, arguments);
  sum_tiles(num_rows, column_tiles, arguments.rows, grad1, stream);
  sum_tiles(num_columns, row_tiles, arguments.columns, grad2, stream);
}

Tensor box_iou_of(const char* op, IouKind kind, const Tensor& boxes1, const Tensor& boxes2,
                  double eps) {
  check_box_iou(op, boxes1, boxes2);
  const DeviceGuard guard(boxes1.get_device_index());
  const auto dtype = box_dtype(boxes1, boxes2);
  const PairSizes sizes(boxes1, boxes2);
  const Tensor in1 = aligned(box_input(boxes1, dtype)), in2 = aligned(box_input(boxes2, dtype));
  const Tensor out = boxes1.dim() == 2
                         ? empty(boxes1, {sizes.n, sizes.m}, dtype)
                         : empty(boxes1, {sizes.num_batches, sizes.n, sizes.m}, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    dispatch_kind(kind, [&]<IouKind k>() {
      forward<k>(sizes, data<Box<T>>(in1), data<Box<T>>(in2), pairwise_eps<T>(eps),
                 mutable_data<T>(out), current_stream(boxes1));
    });
  });
  return out;
}

}  // namespace

Tensor box_iou(const Tensor& boxes1, const Tensor& boxes2) {
  return box_iou_of("box_iou", IouKind::kIou, boxes1, boxes2, 0);
}

Tensor generalized_box_iou(const Tensor& boxes1, const Tensor& boxes2) {
  return box_iou_of("generalized_box_iou", IouKind::kGeneralized, boxes1, boxes2, 0);
}

Tensor distance_box_iou(const Tensor& boxes1, const Tensor& boxes2, double eps) {
  return box_iou_of("distance_box_iou", IouKind::kDistance, boxes1, boxes2, eps);
}

Tensor complete_box_iou(const Tensor& boxes1, const Tensor& boxes2, double eps) {
  return box_iou_of("complete_box_iou", IouKind::kComplete, boxes1, boxes2, eps);
}

std::tuple<Tensor, Tensor> box_iou_backward(const Tensor& grad, const Tensor& boxes1,
                                            const Tensor& boxes2, double eps,
                                            const std::string& kind_name) {
  const char* const op = "box_iou_backward";
  check_box_iou_backward(op, grad, boxes1, boxes2);
  const IouKind kind = iou_kind(op, kind_name);
  const DeviceGuard guard(boxes1.get_device_index());
  const auto dtype = box_dtype(boxes1, boxes2);
  const Tensor in1 = aligned(box_input(boxes1, dtype)), in2 = aligned(box_input(boxes2, dtype));
  const Tensor grad_in = torch::stable::contiguous(grad);
  const Tensor grad1 = empty_like(boxes1, dtype), grad2 = empty_like(boxes2, dtype);
  dispatch_box(dtype, [&]<typename T>() {
    dispatch_kind(kind, [&]<IouKind k>() {
      backward<k>(PairSizes(boxes1, boxes2), grad_in, in1, in2, pairwise_eps<T>(eps),
                  mutable_data<Box<T>>(grad1), mutable_data<Box<T>>(grad2));
    });
  });
  return {cast(grad1, boxes1.scalar_type()), cast(grad2, boxes2.scalar_type())};
}

STABLE_TORCH_LIBRARY_IMPL(fastdet, CUDA, m) {
  m.impl("box_iou", TORCH_BOX(&box_iou));
  m.impl("generalized_box_iou", TORCH_BOX(&generalized_box_iou));
  m.impl("distance_box_iou", TORCH_BOX(&distance_box_iou));
  m.impl("complete_box_iou", TORCH_BOX(&complete_box_iou));
  m.impl("box_iou_backward", TORCH_BOX(&box_iou_backward));
}

}  // namespace fastdet::cuda
