# SPDX-License-Identifier: BSD-3-Clause
"""What examples/experiments found: a table and sentences from the file of `fastdet runs`."""

import csv
from pathlib import Path

from benchmarks import results

FILE = results.FOLDER / "experiments.csv"
BASES = ("base", "seed-1", "seed-2")  # the same options with three seeds
SIZES = {"APs": "small", "APm": "medium", "APl": "large"}

Runs = dict[str, dict[str, str]]  # by name: the columns of `fastdet runs --format csv`


def read(file: Path = FILE) -> Runs:
    """The runs in their order."""
    with file.open(newline="", encoding="utf-8") as rows:
        return {Path(row["run"]).name: row for row in csv.DictReader(rows)}


def table(runs: Runs) -> str:
    """All runs, with the columns that `fastdet runs` gave them."""
    head = ["run", *list(next(iter(runs.values())))[1:]]
    lines = [head, ["---"] * len(head)]
    for name, row in runs.items():
        lines.append([name, *(row[column] or "\N{EN DASH}" for column in head[1:])])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def sentences(runs: Runs, *names: str) -> str:
    """One sentence for each named run, beside the base."""
    return "\n".join(sentence(runs, name) for name in names) + "\n"


def sentence(runs: Runs, name: str) -> str:
    """Whether AP differs from the base's by more than their seeds do.

    It is called a difference if it lies outside the range of the seeds by more than that range is
    wide.
    """
    seeds = [float(runs[base]["AP"]) for base in BASES]
    row = runs[name]
    if not row["AP"]:
        return f"- `{name}`: stopped before its first validation."
    ap, low, high = float(row["AP"]), min(seeds), max(seeds)
    beside = f"`{name}`: AP {ap:.3f} beside {low:.3f} to {high:.3f} of the base"
    better = ap > high
    gap = ap - high if better else low - ap
    if gap <= high - low:
        return f"- {beside}: no difference beyond what seeds make."
    words = f"{'better' if better else 'worse'} than all three by {gap:.3f} or more"
    return f"- {beside}: {words}{_most(runs, row, better)}."


def _most(runs: Runs, row: dict[str, str], better: bool) -> str:
    """The size of objects that changed the most in the direction of AP."""
    changes = {}
    for column, size in SIZES.items():
        values = [runs[base][column] for base in BASES]
        if row[column] and all(values):
            mean = sum(map(float, values)) / len(values)
            changes[size] = (float(row[column]) - mean, float(row[column]), mean)
    if not changes:
        return ""
    pick = max if better else min
    size, (change, value, mean) = pick(changes.items(), key=lambda item: item[1][0])
    if (change > 0) != better:
        return ""
    return f", most for {size} objects (AP {value:.3f} beside {mean:.3f})"
