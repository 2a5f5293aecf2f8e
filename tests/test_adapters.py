# SPDX-License-Identifier: BSD-3-Clause
"""fastdet's operators under SAHI, supervision and Ultralytics: the same results, then undone."""

import importlib
import itertools
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdet
from fastdet import adapters
from fastdet.adapters import sahi_postprocess, supervision_boxes

NAN = float("nan")
WAYS: dict[str, Callable[[], Any]] = {
    "sahi": adapters.sahi,
    "supervision": adapters.supervision,
    "ultralytics": adapters.ultralytics,
}


def needs(package: str) -> Any:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


def every_package(*more: str) -> Any:
    return pytest.mark.parametrize(
        "name", [pytest.param(name, marks=needs(name)) for name in (*WAYS, *more)]
    )


def replaced(name: str) -> dict[str, Any]:
    """What each adapter replaces, as it is now."""
    paths = {
        "sahi": [
            "sahi.postprocess.combine:_dispatch",
            "sahi.postprocess.utils:object_prediction_list_to_numpy",
        ],
        "supervision": [
            f"{module}:box_non_max_suppression"
            for module in (
                "supervision",
                "supervision.detection.core",
                "supervision.detection.utils.iou_and_nms",
                "supervision.key_points.core",
            )
        ]
        + ["supervision.detection.utils.iou_and_nms:_group_overlapping_boxes"],
        "ultralytics": ["ultralytics.utils.nms:sys", "ultralytics.utils.nms:TorchNMS.nms"],
    }
    found = {}
    for path in paths[name]:
        module, _, attributes = path.partition(":")
        owner: Any = importlib.import_module(module)
        for attribute in attributes.split("."):
            owner, value = vars(owner)[attribute], vars(owner)[attribute]
            found[path] = value
    return found


# The rules of all adapters.


@every_package()
def test_undo_leaves_no_trace(name: str) -> None:
    before = replaced(name)
    first, second = WAYS[name](), WAYS[name]()
    assert all(value is not before[path] for path, value in replaced(name).items())
    first.undo()
    first.undo()
    assert all(value is not before[path] for path, value in replaced(name).items())
    second.undo()
    assert all(value is before[path] for path, value in replaced(name).items())


@every_package()
def test_an_exception_undoes_it(name: str) -> None:
    before = replaced(name)
    with pytest.raises(ZeroDivisionError), WAYS[name]():
        raise ZeroDivisionError
    assert all(value is before[path] for path, value in replaced(name).items())


@pytest.mark.parametrize("name", WAYS)
def test_without_the_package_it_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"^fastdet.adapters.{name}: expected {name} \(tested "):
        WAYS[name]()


@every_package()
@pytest.mark.parametrize("how", ["other parameters", "absent"])
def test_another_version_is_refused_and_left_alone(
    name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = list(replaced(name))[-1]
    module, _, attributes = path.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, function = attributes.split(".")
    for part in classes:
        owner = getattr(owner, part)
    if how == "absent":
        monkeypatch.delattr(owner, function)
    else:
        monkeypatch.setattr(owner, function, lambda boxes: boxes)
    rest = {key: value for key, value in vars(owner).items() if key != "__builtins__"}
    with pytest.raises(RuntimeError) as raised:
        WAYS[name]()
    message = str(raised.value)
    assert message.startswith(f"fastdet.adapters.{name}: expected {path.replace(':', '.')}(")
    assert "\n" not in message
    assert {key: value for key, value in vars(owner).items() if key != "__builtins__"} == rest


@every_package()
def test_a_module_that_moved_is_another_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = list(replaced(name))[-1].partition(":")[0]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RuntimeError, match=f"^fastdet.adapters.{name}: expected {module}."):
        WAYS[name]()


def test_torch_and_the_packages_are_not_imported() -> None:
    code = (
        "import sys, fastdet.adapters\n"
        "assert not {'torch', 'sahi', 'supervision', 'ultralytics'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Boxes.


def random_boxes(n: int, seed: int = 0) -> np.ndarray:
    """(n, 6): boxes that overlap, scores without ties, one of three classes."""
    rng = np.random.default_rng(seed)
    corner, side = rng.random((n, 2)) * 6 * np.sqrt(n + 1), 4 + rng.random((n, 2)) * 20
    scores = (rng.permutation(n) + 1) / (n + 1)
    return np.c_[corner, corner + side, scores, rng.integers(0, 3, n)]


def boxes_of_tiles(n: int, seed: int = 0) -> np.ndarray:
    """(n, 6): whole and cut boxes of objects, in whole pixels."""
    rng = np.random.default_rng(seed)
    objects = rng.integers(0, 8, (n, 2)) * 24
    low, high = rng.integers(0, 3, (n, 2)), rng.integers(8, 12, (n, 2)) * 2
    scores = (rng.permutation(n) + 1) / (n + 1)
    return np.c_[objects + low, objects + high, scores, rng.integers(0, 3, n)].astype(float)


def with_ties(rows: np.ndarray) -> np.ndarray:
    rows = rows.copy()
    rows[:, 4] = np.round(rows[:, 4], 1)
    return rows


BOXES: dict[str, Callable[[], np.ndarray]] = {
    "none": lambda: np.zeros((0, 6)),
    "one": lambda: random_boxes(1),
    "two": lambda: np.array([[0, 0, 10, 10, 0.5, 0], [1, 0, 10, 10, 0.75, 0]]),
    "random": lambda: random_boxes(150),
    "tiles": lambda: boxes_of_tiles(200),
    "many": lambda: random_boxes(2500),  # SAHI computes them by a tree
    "crowded": lambda: boxes_of_tiles(2500),
    "a chain": lambda: np.c_[
        np.arange(40.0), np.zeros(40), np.arange(40) + 3.0, np.ones(40), 1 - np.arange(40) / 50,
        np.zeros(40),
    ],
    "without area": lambda: np.array(
        [[0, 0, 9, 9, 0.9, 0], [3, 3, 3, 8, 0.8, 0], [3, 3, 3, 8, 0.7, 0], [4, 4, 4, 4, 0.6, 0]]
    ),
}  # fmt: skip

every_boxes = pytest.mark.parametrize("boxes", BOXES)
every_metric = pytest.mark.parametrize("metric", ["IOU", "IOS"])
# 0.6 is rounded up to float32, 0.7 down.
THRESHOLDS = (0.0, 0.05, 0.5, 0.6, 0.7, 1.0)
every_threshold = pytest.mark.parametrize("threshold", THRESHOLDS)


class Spy:
    """Counts the calls of an operator."""

    def __init__(self, module: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls, self._nmm = 0, fastdet.numpy.nmm
        monkeypatch.setattr(module, "nmm", self)

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        return self._nmm(*arguments)


# SAHI.


@pytest.fixture
def combine() -> Iterator[Any]:
    """SAHI's module, with its NumPy backend."""
    if find_spec("sahi") is None:
        pytest.skip("sahi is not installed")
    backends = importlib.import_module("sahi.postprocess.backends")
    backends.set_postprocess_backend("numpy")
    yield importlib.import_module("sahi.postprocess.combine")
    backends.set_postprocess_backend("auto")


def listed(found: Any) -> Any:
    """With the order of a dictionary, which decides the order of the results."""
    return list(found.items()) if isinstance(found, dict) else found


FUNCTIONS = ("nms", "greedy_nmm", "nmm", "batched_nms", "batched_greedy_nmm", "batched_nmm")


@pytest.mark.slow
@every_boxes
@every_metric
@every_threshold
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sahi_finds_the_same_groups(
    combine: Any, boxes: str, metric: str, threshold: float, dtype: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows = BOXES[boxes]().astype(dtype)
    spy = Spy(sahi_postprocess, monkeypatch)
    for name in FUNCTIONS:
        function = getattr(combine, name)  # as other modules have it, that imported it by name
        expected = function(rows, metric, threshold)
        assert spy.calls == 0
        with adapters.sahi():
            assert listed(function(rows, metric, threshold)) == listed(expected), name
        if len(rows):
            assert (spy.calls > 0) == (threshold > 0)
        spy.calls = 0


@every_metric
@pytest.mark.parametrize("name", ["nms", "greedy_nmm", "batched_nms", "batched_greedy_nmm"])
@pytest.mark.parametrize("boxes", ["random", "tiles", "many", "crowded"])
def test_sahi_visits_ties_in_the_same_order(
    combine: Any, boxes: str, name: str, metric: str
) -> None:
    rows = with_ties(BOXES[boxes]()).astype(np.float32)
    expected = getattr(combine, name)(rows, metric, 0.5)
    with adapters.sahi():
        assert listed(getattr(combine, name)(rows, metric, 0.5)) == listed(expected)


def test_sahis_nmm_does_not_merge_boxes_of_equal_scores(combine: Any) -> None:
    rows = np.array([[0, 0, 9, 9, 0.5, 0], [1, 0, 10, 9, 0.5, 0]], dtype=np.float32)
    assert combine.nmm(rows, "IOU", 0.5) == {0: [], 1: []}
    assert combine.greedy_nmm(rows, "IOU", 0.5) == {0: [1]}
    with adapters.sahi():
        assert combine.nmm(rows, "IOU", 0.5) == combine.greedy_nmm(rows, "IOU", 0.5) == {0: [1]}
        assert combine.nmm(rows[[0, 0]], "IOU", 0.5) == {0: [1]}
    assert combine.nmm(rows[[0, 0]], "IOU", 0.5) == {0: [1]}


@pytest.mark.parametrize("boxes", ["a chain", "random"])
def test_sahis_chains_that_take_too_many_turns_are_sahis(
    combine: Any, boxes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = BOXES[boxes]().astype(np.float32)
    expected = combine.nmm(rows, "IOU", 0.3)
    monkeypatch.setattr(sahi_postprocess, "_MOST_TURNS", 2)
    seen: list[bool] = []
    claimers = sahi_postprocess._claimers

    def watched(*arguments: Any) -> Any:
        found = claimers(*arguments)
        seen.append(found is None)
        return found

    monkeypatch.setattr(sahi_postprocess, "_claimers", watched)
    with adapters.sahi():
        assert listed(combine.nmm(rows, "IOU", 0.3)) == listed(expected)
    assert seen == [True]


@pytest.mark.parametrize("backend", ["numba", "torchvision"])
@every_metric
@pytest.mark.parametrize("boxes", ["none", "random", "many"])
def test_sahis_other_backends_find_the_same(
    combine: Any, backend: str, metric: str, boxes: str
) -> None:
    pytest.importorskip(backend, exc_type=ImportError)
    importlib.import_module("sahi.postprocess.backends").set_postprocess_backend(backend)
    rows = BOXES[boxes]().astype(np.float32)
    for name in FUNCTIONS:
        if len(rows) == 0 and not name.endswith("nms"):
            continue  # these backends fail
        expected = getattr(combine, name)(rows, metric, 0.5)
        with adapters.sahi():
            assert listed(getattr(combine, name)(rows, metric, 0.5)) == listed(expected), name


@pytest.mark.parametrize(
    ("column", "value", "metric", "threshold"),
    [(0, NAN, "IOU", 0.5), (4, NAN, "IOU", 0.5), (2, np.inf, "IOS", 0.5), (0, 0.0, "IOU", 1.5)],
)
def test_what_ours_does_not_take_is_sahis(
    combine: Any, column: int, value: float, metric: str, threshold: float
) -> None:
    rows = random_boxes(60).astype(np.float32)
    rows[7, column] = value
    for name in FUNCTIONS:
        with np.errstate(invalid="ignore"):
            expected = getattr(combine, name)(rows, metric, threshold)
            with adapters.sahi():
                assert listed(getattr(combine, name)(rows, metric, threshold)) == listed(expected)


def sahi_predictions(rows: np.ndarray, masks: bool) -> list[Any]:
    new = importlib.import_module("sahi.prediction").ObjectPrediction
    predictions = []
    for x1, y1, x2, y2, score, label in rows.tolist():
        box: dict[str, Any] = {"bbox": [x1, y1, x2, y2]}
        if masks:
            box = {"segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]], "full_shape": [400, 400]}
        named = {"category_id": int(label), "category_name": f"class {label}"}
        predictions.append(new(**box, **named, score=score))
    return predictions


def described(predictions: list[Any]) -> list[Any]:
    return [
        (p.bbox.to_xyxy(), p.score.value, p.category.id, p.mask and p.mask.segmentation)
        for p in predictions
    ]


@every_metric
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("kind", ["NMSPostprocess", "GreedyNMMPostprocess", "NMMPostprocess"])
def test_sahis_postprocess_gives_the_same_predictions(
    combine: Any, kind: str, masks: bool, agnostic: bool, metric: str
) -> None:
    rows = boxes_of_tiles(60) if masks else random_boxes(150)
    merge = getattr(combine, kind)(0.5, metric, agnostic)
    expected = described(merge(sahi_predictions(rows, masks)))
    with adapters.sahi():
        assert described(merge(sahi_predictions(rows, masks))) == expected
        assert merge([]) == []
    assert 0 < len(expected) < len(rows)


# supervision.


@pytest.fixture
def sv() -> Any:
    if find_spec("supervision") is None:
        pytest.skip("supervision is not installed")
    return importlib.import_module("supervision")


LAYOUTS = ((6, np.float64), (5, np.float64), (5, np.float32))  # columns and their type


@pytest.mark.slow
@every_boxes
@every_metric
@every_threshold
@pytest.mark.parametrize("ties", [False, True])
def test_supervision_keeps_and_groups_the_same(
    sv: Any, boxes: str, metric: str, threshold: float, ties: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows = BOXES[boxes]()
    rows = with_ties(rows) if ties else rows
    spy = Spy(supervision_boxes, monkeypatch)
    group = sv.box_non_max_merge  # as other modules have it, that imported it by name
    ways = list(itertools.product(LAYOUTS, (sv.OverlapMetric(metric), metric.lower())))
    if len(rows) > 1000:  # seconds of supervision's: two ways, so that each meets each other value
        first = THRESHOLDS.index(threshold) + (metric == "IOS") + 2 * ties
        ways = [ways[first % 6], ways[(first + 3) % 6]]
    for (columns, dtype), overlap_metric in ways:
        some = rows[:, :columns].astype(dtype)
        options = {"iou_threshold": threshold, "overlap_metric": overlap_metric}
        expected = sv.box_non_max_suppression(some, **options)
        groups = group(some, **options)
        assert spy.calls == 0
        with adapters.supervision():
            found = sv.box_non_max_suppression(some, **options)
            assert (spy.calls > 0) == (threshold < 1)
            spy.calls = 0
            assert group(some, **options) == groups
            if len(rows):
                assert (spy.calls > 0) == (threshold > 0)
            spy.calls = 0
        assert found.dtype == expected.dtype
        assert np.array_equal(found, expected)


def test_supervision_rounds_overlaps_to_float32(sv: Any) -> None:
    rows = np.array([[0, 0, 10, 10, 0.9], [0, 0, 10, 6, 0.8], [0, 0, 10, 7, 0.7]])
    for rival, threshold, drops in ((1, 0.6, True), (2, 0.7, False)):
        some = rows[[0, rival]]
        assert sv.box_non_max_suppression(some, threshold).tolist() == [True, not drops]
        with adapters.supervision():
            assert sv.box_non_max_suppression(some, threshold).tolist() == [True, not drops]


@every_metric
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("method", ["with_nms", "with_nmm"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_supervisions_detections_are_the_same(
    sv: Any, method: str, agnostic: bool, metric: str, dtype: Any
) -> None:
    rows = boxes_of_tiles(80)
    detections = sv.Detections(
        rows[:, :4].astype(dtype), confidence=rows[:, 4], class_id=rows[:, 5].astype(int)
    )
    options = {"threshold": 0.5, "class_agnostic": agnostic}
    options["overlap_metric"] = sv.OverlapMetric(metric)
    expected = getattr(detections, method)(**options)
    with adapters.supervision():
        assert getattr(detections, method)(**options) == expected
        assert len(getattr(sv.Detections.empty(), method)(**options)) == 0
    assert 0 < len(expected) < len(rows)


def test_supervisions_key_points_are_reached(sv: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = boxes_of_tiles(40)
    spy = Spy(supervision_boxes, monkeypatch)
    key_points = sv.KeyPoints(
        rows[:, :4].reshape(-1, 2, 2).astype(np.float32) + 1,
        class_id=rows[:, 5].astype(int),
        detection_confidence=rows[:, 4].astype(np.float32),
    )
    expected = key_points.with_nms(0.5)
    with adapters.supervision():
        found = key_points.with_nms(0.5)
    assert spy.calls == 1
    assert np.array_equal(found.xy, expected.xy)
    assert len(found) < len(rows)


@pytest.mark.parametrize("overlap_filter", ["non_max_suppression", "non_max_merge"])
def test_supervisions_slicer_is_reached(
    sv: Any, overlap_filter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(supervision_boxes, monkeypatch)
    seeds = iter(range(100))

    def callback(image: np.ndarray) -> Any:
        rows = boxes_of_tiles(20, next(seeds))
        classes = rows[:, 5].astype(int)
        return sv.Detections(rows[:, :4], confidence=rows[:, 4], class_id=classes)

    def run() -> Any:
        nonlocal seeds
        seeds = iter(range(100))
        slicer = sv.InferenceSlicer(
            callback, slice_wh=(200, 200), overlap_wh=(50, 50), overlap_filter=overlap_filter
        )
        return slicer(np.zeros((300, 300, 3), np.uint8))

    expected = run()
    assert spy.calls == 0
    with adapters.supervision():
        assert run() == expected
    assert spy.calls > 0


@pytest.mark.parametrize(("column", "value"), [(0, NAN), (4, NAN), (2, np.inf)])
def test_what_ours_does_not_take_is_supervisions(sv: Any, column: int, value: float) -> None:
    rows = random_boxes(60)
    rows[7, column] = value
    with np.errstate(invalid="ignore"):
        expected = sv.box_non_max_suppression(rows), sv.box_non_max_merge(rows)
        with adapters.supervision():
            assert np.array_equal(sv.box_non_max_suppression(rows), expected[0])
            assert sv.box_non_max_merge(rows) == expected[1]


def test_supervisions_errors_stay(sv: Any) -> None:
    rows = random_boxes(9)
    with adapters.supervision():
        for function in (sv.box_non_max_suppression, sv.box_non_max_merge):
            with pytest.raises(ValueError, match="iou_threshold"):
                function(rows, 1.5)
            with pytest.raises(ValueError, match="Invalid value: GIOU"):
                function(rows, 0.5, "giou")


@pytest.mark.parametrize("threshold", [0.0, 1e-45, 0.1, 0.45, 0.5, 0.6, 0.7, 0.9999999, 1.0])
def test_the_least_number_that_supervision_accepts(threshold: float) -> None:
    above = supervision_boxes._least_rounded_above(threshold)
    assert float(np.float32(above)) > threshold
    assert float(np.float32(np.nextafter(above, 0))) <= threshold
    if threshold > 0:
        value = np.float32(threshold)
        least = supervision_boxes._least_rounded_to(value)
        assert np.float32(least) >= value > np.float32(np.nextafter(least, 0))


# Ultralytics.


@pytest.fixture(params=["with torchvision", "without torchvision"])
def nms(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ultralytics' module, which looks whether torchvision has been imported."""
    if find_spec("ultralytics") is None:
        pytest.skip("ultralytics is not installed")
    module = importlib.import_module("ultralytics.utils.nms")
    if request.param == "with torchvision":
        pytest.importorskip("torchvision", exc_type=ImportError)
    else:
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    return module


def yolo_output(extra: int = 0) -> Tensor:
    """(2, 4 + 3 + extra, 300): xywh, scores of three classes, and other values."""
    outputs = []
    for seed in range(2):
        rows = torch.from_numpy(random_boxes(300, seed)).float()
        xywh = torch.cat([(rows[:, :2] + rows[:, 2:4]) / 2, rows[:, 2:4] - rows[:, :2]], 1)
        scores = torch.rand(300, 3 + extra, generator=torch.Generator().manual_seed(seed))
        outputs.append(torch.cat([xywh, scores], 1).T)
    return torch.stack(outputs)


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "agnostic": {"agnostic": True},
    "several labels": {"multi_label": True, "iou_thres": 0.7},
    "few": {"max_det": 7},
    "two classes": {"classes": [0, 2]},
    "threshold 0": {"iou_thres": 0.0},
    "threshold 1": {"iou_thres": 1.0},
    "no boxes": {"conf_thres": 1.0},
    "the best": {"max_nms": 50},
    "masks": {"nc": 3},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_ultralytics_finds_the_same(nms: Any, options: str) -> None:
    chosen = {"conf_thres": 0.1, **OPTIONS[options], "return_idxs": True}
    output = yolo_output(extra=4 if options == "masks" else 0)
    expected = nms.non_max_suppression(output.clone(), **chosen)
    with adapters.ultralytics():
        found = nms.non_max_suppression(output.clone(), **chosen)
    for ours, theirs in zip(found, expected, strict=True):
        assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))
    assert (len(found[0][0]) == 0) == (options == "no boxes")


def in_force(nms: Any) -> bool:
    """fastdet's nms drops a NaN score."""
    boxes, scores = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6]]), torch.tensor([NAN, 0.5])
    return nms.TorchNMS.nms(boxes, scores, 0.5).tolist() == [1]


def test_ultralytics_runs_ours(nms: Any) -> None:
    assert not in_force(nms)
    output = yolo_output()
    output[0, 0, :] = NAN  # xywh of the first image: torchvision and Ultralytics keep these
    expected = nms.non_max_suppression(output.clone())
    assert len(expected[0]) > 0
    with adapters.ultralytics():
        assert in_force(nms)
        found = nms.non_max_suppression(output.clone())
    assert (len(found[0]), len(found[1])) == (0, len(expected[1]))
    assert not in_force(nms)


def test_torchvision_itself_is_not_reached(nms: Any) -> None:
    ops = pytest.importorskip("torchvision.ops", exc_type=ImportError)
    boxes, scores = torch.tensor([[0.0, 0, 1, 1], [5, 5, 6, 6]]), torch.tensor([NAN, 0.5])
    with adapters.ultralytics():
        assert ops.nms(boxes, scores, 0.5).tolist() == [0, 1]


def test_where_torch_nms_differs_from_torchvision(nms: Any) -> None:
    ops = pytest.importorskip("torchvision.ops", exc_type=ImportError)
    scores = torch.tensor([0.9, 0.8])
    at_threshold = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6]])
    # Their IoU is 0.28, but the intersection overflows in float16.
    large = torch.tensor([[0.0, 0, 400, 400], [0, 225, 400, 625]]).half()
    assert nms.TorchNMS.nms(at_threshold, scores, 0.6).tolist() == [0, 1]
    assert nms.TorchNMS.nms(large, scores.half(), 0.5).tolist() == [0]
    with adapters.ultralytics():
        assert nms.TorchNMS.nms(at_threshold, scores, 0.6).tolist() == [0]
        assert nms.TorchNMS.nms(large, scores.half(), 0.5).tolist() == [0, 1]
    assert ops.nms(at_threshold, scores, 0.6).tolist() == [0]
    assert ops.nms(large.float(), scores, 0.5).tolist() == [0, 1]


def test_what_ours_does_not_take_is_ultralytics(nms: Any) -> None:
    boxes, scores = torch.tensor([[0, 0, 9, 9], [1, 0, 9, 9]]), torch.tensor([0.5, 0.9])
    expected = nms.TorchNMS.nms(boxes, scores, 0.5)
    with adapters.ultralytics():
        if "torchvision" not in sys.modules:
            assert nms.TorchNMS.nms(boxes, scores, 0.5).equal(expected)
        else:
            with pytest.raises(RuntimeError, match="not implemented for 'Long'"):
                nms.TorchNMS.nms(boxes, scores, 0.5)


def test_rotated_boxes_stay_ultralytics(nms: Any) -> None:
    output = torch.cat([yolo_output(), torch.rand(2, 1, 300)], 1)
    options = {"nc": 3, "rotated": True}
    expected = nms.non_max_suppression(output.clone(), **options)
    with adapters.ultralytics():
        found = nms.non_max_suppression(output.clone(), **options)
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))
