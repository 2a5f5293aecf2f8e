# SPDX-License-Identifier: BSD-3-Clause
"""The sentences say what is wrong, from planted errors; nothing of them is fixed text."""

from pathlib import Path

from fastdet.analysing.analysis import Analysis, AnalysisOptions, analyse_side, compare
from fastdet.analysing.sentences import sentences, weak_classes
from tests.analysing.problems import annotations_of, found_of

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "analysis.md"
CLASSES = ["Metal", "Battery", "person"]
# In each of ten pictures a Metal; in the first eight a Battery; a person in the first seven.
OBJECTS = [
    *((i, 1, 0, 0, 20, 20, 0) for i in range(10)),
    *((i, 2, 40, 0, 20, 20, 0) for i in range(8)),
    *((i, 3, 0, 50, 40, 40, 0) for i in range(7)),
]


def analysis_of(*sides: list, **options) -> Analysis:
    annotations = annotations_of(OBJECTS, 10, CLASSES)
    chosen = AnalysisOptions(resamplings=200, **options)
    found = [analyse_side(annotations, found_of(rows, annotations), chosen) for rows in sides]
    beside = compare(annotations, found[0], found[1], 200) if len(found) == 2 else None
    return Analysis(annotations, "val", chosen, found, beside)


def perfect(*without: int) -> list:
    return [(*one[:6], 0.9) for one in OBJECTS if one[1] not in without]


def test_confusion_background_and_missed() -> None:
    rows = [
        *perfect(2, 3),
        *((i, 1, 40, 0, 20, 20, 0.8) for i in range(6)),  # six Batteries are found as Metal
        (6, 2, 40, 0, 20, 20, 0.7),
        *((i, 3, 60, 60, 30, 30, 0.95) for i in range(4, 10)),  # hard negatives
        *((i, 3, 0, 50, 40, 40, 0.85) for i in range(6)),
    ]
    analysis = analysis_of(rows, score_threshold=0.5)
    said = sentences(analysis, weakest=3)
    battery = next(text for text in said if text.startswith("Battery"))
    assert battery.startswith("Battery: AP 0.129, 8 objects. 97 % of its loss is classification")
    assert battery in GUIDE.read_text()
    assert "(6 of its objects are found as Metal)" in battery
    person = next(text for text in said if text.startswith("person"))
    assert person in GUIDE.read_text()
    assert "(6 detections where nothing is, 3 of them in pictures without person)" in person
    # Six wrong detections with lower scores than all correct ones cost Metal nothing.
    metal = next(text for text in said if text.startswith("Metal"))
    assert metal == "Metal: AP 1.000, 10 objects. No kind of error costs it AP at IoU 0.5."
    assert "on 10 pictures with 25 objects." in said[0]
    assert weak_classes(analysis.annotations, analysis.sides[0], 1) == [2]
    missed = sentences(analysis_of(perfect(3)), 1)[-1]
    assert missed == (
        "person: AP 0.000, 7 objects. 100 % of its loss is missed (7 objects without a detection "
        "at any score: 0 small, 7 medium, 0 large)."
    )


def test_other_kinds() -> None:
    twice = [
        *perfect(2),
        *((i, 2, 40 + n, 0, 20, 20, 0.9 - i / 20 - n / 50) for i in range(8) for n in (0, 1)),
    ]
    assert "8 second detections of an object that is found" in _of(
        twice, "Battery", score_threshold=0.1
    )
    shifted = [*perfect(2), *((i, 2, 52, 0, 20, 20, 0.9) for i in range(8))]
    assert "localisation (8 detections badly placed)" in _of(shifted, "Battery")
    loose = [*perfect(2), *((i, 2, 43, 0, 20, 20, 0.9) for i in range(8))]
    assert "at IoU 0.5, where its AP is 1.000: what it lacks is tighter boxes" in _of(
        loose, "Battery"
    )
    assert "of an object that is found, all below score 0.95)" in _of(
        twice, "Battery", score_threshold=0.95
    )
    nothing = sentences(analysis_of([]), 1)
    assert "No detection finds an object of its class at IoU 0.5." in nothing
    assert analysis_of([]).sides[0].score_threshold == 0.5
    both = [*perfect(), *((i, 3, 52, 0, 20, 20, 0.95) for i in range(8))]
    assert "both (8 detections of another class and badly placed)" in _of(both, "person")
    low = [*perfect(2), *((i, 1, 40, 0, 20, 20, 0.1) for i in range(8))]
    assert "(by detections with scores below 0.50)" in _of(low, "Battery", score_threshold=0.5)


def _of(rows: list, name: str, **options) -> str:
    return next(t for t in sentences(analysis_of(rows, **options), 3) if t.startswith(name))


def test_two_sides() -> None:
    analysis = analysis_of(perfect(2), perfect(3))
    said = sentences(analysis, 1)
    only = "The second finds 8 objects that the first misses, and misses 7 that the first finds"
    assert f"{only}, of 25." in said
    assert analysis.beside is not None
    assert analysis.beside.only_second.sum() == 8
    assert "The second finds 1 more objects than the first" in "".join(said)
    assert "it may be chance" in "".join(said)
    assert "The second gains most AP at Battery (+1.000) and loses most at person (-1.000)." in said
    better = sentences(analysis_of(perfect(2, 3), perfect()), 1)
    assert any("has 0.667 more AP at IoU 0.5" in t and "more than chance" in t for t in better)
