// SPDX-License-Identifier: BSD-3-Clause
// Predictions are gathered in runs, as arrays, so that the arithmetic fills vectors: about 60
// operations a pair, six of them divisions.
#include "task_aligned.loops.h"

#include "gathered.h"

namespace fastdet::cpu::FASTDET_ISA {

namespace {

template <typename S>
void overlaps_of(const Gathered<S>& run, int64_t n, const IouBox<S>& gt, S* overlap) {
  FASTDET_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) overlap[i] = overlap_of(gt, run.box(i));
}

template <Powers powers, typename S>
void alignments_of(const S* score, const S* overlap, int64_t n, const TaskAlignment<S>& rule,
                   S* alignment) {
  const TaskAlignment<S> r = rule;
  FASTDET_INDEPENDENT_ITERATIONS
  for (int64_t i = 0; i < n; ++i) alignment[i] = alignment_of<powers>(score[i], overlap[i], r);
}

template <typename T>
void align(const Predictions<T>& in, const int32_t* anchors, int64_t n, const Box<Sum<T>>& gt,
           int64_t label, const TaskAlignment<Sum<T>>& rule, Sum<T>* alignment, Sum<T>* overlap) {
  const auto target = iou_box<IouKind::kComplete>(gt);
  const auto alignments =
      rule.powers == Powers::kHalfAndSix  ? alignments_of<Powers::kHalfAndSix, Sum<T>>
      : rule.powers == Powers::kOneAndSix ? alignments_of<Powers::kOneAndSix, Sum<T>>
                                          : alignments_of<Powers::kGeneral, Sum<T>>;
  Gathered<Sum<T>> run;
  for (int64_t begin = 0; begin < n; begin += kGathered) {
    const int64_t length = min_of(kGathered, n - begin);
    gather(in, anchors + begin, length, label, run);
    overlaps_of(run, length, target, overlap + begin);
    alignments(run.score, overlap + begin, length, rule, alignment + begin);
  }
}

template <typename T>
constexpr TaskAlignedLoops<T> kLoops = {.align = align<T>};

}  // namespace

FASTDET_LOOPS(TaskAlignedLoops<float>) { return kLoops<float>; }
FASTDET_LOOPS(TaskAlignedLoops<double>) { return kLoops<double>; }
FASTDET_LOOPS(TaskAlignedLoops<Half>) { return kLoops<Half>; }
FASTDET_LOOPS(TaskAlignedLoops<BFloat16>) { return kLoops<BFloat16>; }

}  // namespace fastdet::cpu::FASTDET_ISA
