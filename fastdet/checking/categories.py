# SPDX-License-Identifier: BSD-3-Clause
"""Checks of the categories of a data set: unused, rare, in one split alone, alike by name."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from fastdet.checking.findings import Finding, Spot
from fastdet.checking.reading import CheckedSplit

RARE = 10  # objects, in a training split that has many
MANY = 500


def category_findings(splits: Sequence[CheckedSplit]) -> list[Finding]:
    """What is wrong with the categories, in each split and over the splits."""
    counts = {split.name: object_counts(split) for split in splits}
    findings = [finding for split in splits for finding in _names(split)]
    findings += _listed_in_one(splits)
    used = {name for count in counts.values() for name, number in count.items() if number}
    listed = {name: None for split in splits for name in split.annotations.names}
    unused = [Spot("", detail=name) for name in listed if name not in used]
    findings.append(Finding("category-unused", "", unused))
    train = counts.get("train")
    if train and len(splits) > 1:
        lost = [Spot("", detail=name) for name in listed if name in used and not train.get(name)]
        findings.append(Finding("category-not-trained", "train", lost))
    if train and sum(train.values()) >= MANY:
        rare = [
            Spot("train", detail=f"{name}: {number}")
            for name, number in train.items()
            if 0 < number < RARE
        ]
        findings.append(Finding("category-rare", "train", rare))
    findings += [
        Finding(_emptiness(split), split.name, count=1)
        for split in splits
        if not sum(counts[split.name].values())
    ]
    return [finding for finding in findings if finding.count]


def _emptiness(split: CheckedSplit) -> str:
    """The kind of finding that a split without objects is."""
    if not split.annotations.image_ids:
        return "split-without-pictures"
    is_learned = split.name in ("train", "default")  # of which train and val are made
    return "nothing-to-learn" if is_learned else "split-without-objects"


def object_counts(split: CheckedSplit) -> dict[str, int]:
    """How many annotations without crowds each category has, in the order of the labels."""
    of = split.annotations
    counts = np.bincount(of.labels[~of.crowd], minlength=len(of.names) + 1)
    return dict(zip(of.names, counts[1:].tolist(), strict=True))


def _names(split: CheckedSplit) -> Iterator[Finding]:
    of = split.annotations
    alike, repeated = defaultdict(list), defaultdict(list)
    for category_id, name in zip(of.category_ids, of.names, strict=True):
        plain = name.removesuffix(f" #{category_id}")  # which the reader adds to repeated names
        if plain != name:
            repeated[plain].append(f"id {category_id}")
        alike[re.sub(r"[\s_-]+", "", plain).casefold()].append(plain)
    places = [
        Spot(split.name, detail=f"{name}: {', '.join(ids)}")
        for name, ids in repeated.items()
        if len(ids) > 1
    ]
    yield Finding("category-name-repeated", split.name, places)
    groups = [sorted(set(names)) for names in alike.values() if len(set(names)) > 1]
    places = [Spot(split.name, detail=", ".join(map(repr, names))) for names in groups]
    yield Finding("category-names-alike", split.name, places)


def _listed_in_one(splits: Sequence[CheckedSplit]) -> Iterator[Finding]:
    listed = {split.name: set(split.annotations.names) for split in splits}
    for split in splits:
        places = [
            Spot(split.name, detail=f"{name}: not in {', '.join(lacking)}")
            for name in split.annotations.names
            if (lacking := [other for other, names in listed.items() if name not in names])
        ]
        yield Finding("category-in-one-split", split.name, places)
