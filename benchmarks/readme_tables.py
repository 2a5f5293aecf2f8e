# SPDX-License-Identifier: BSD-3-Clause
"""Writes the tables of README.md from the committed result files; `make bench` ends with it.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; NAME is a file under results/. A
test compares README.md with what this script would write.
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text and the rest numbers."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, rule, *rows])


def milliseconds(value: float) -> str:
    """Three digits, none of them after the point from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def made_by(result: dict[str, Any]) -> str:
    """Where and with what a result was measured."""
    m = result["machine"]
    return (
        f"\n{m['date']}, {m['processor']}, GPU: {m['gpu']}, torch {m['torch']}, "
        f"torchvision {m['torchvision']}.\n"
    )


def ops_table(result: dict[str, Any]) -> str:
    """One row for each operator and workload."""
    rows = [
        [
            f"`{row['op']}`, {row['workload']}",
            milliseconds(row["fastdet_ms"]),
            milliseconds(row["torchvision_ms"]),
            f"{row['ratio']:.1f}x",
        ]
        for row in result["rows"]
    ]
    return markdown(["", "fastdet ms", "torchvision ms", "ratio"], rows) + made_by(result)


def training_table(result: dict[str, Any]) -> str:
    """One row for each seed and side."""
    rows = []
    for run in result["runs"]:
        for side in ("fastdet", "torchvision"):
            one = run[side]
            rows.append(
                [
                    f"{side}, seed {run['seed']}",
                    f"{one['AP']:.3f}",
                    f"{one['AP50']:.3f}",
                    *(f"{ap:.3f}" for ap in one["AP_by_class"].values()),
                    f"{one['seconds_per_step']:.3f}",
                    f"{result['peak_memory_mib'][side]:.0f}",
                ]
            )
    classes = result["runs"][0]["fastdet"]["AP_by_class"]
    header = ["", "AP", "AP50", *(f"AP {name}" for name in classes), "s/step", "peak MiB"]
    s = result["settings"]
    settings = (
        f"\n{s['model']}, {s['backbone']} from scratch, {s['size']} px, FPN {s['fpn_channels']}, "
        f"batch {s['batch_size']}, {s['steps']} steps.\n"
    )
    return markdown(header, rows) + settings + made_by(result)


def tables(text: str) -> str:
    """The text with every table made anew."""

    def fill(block: re.Match[str]) -> str:
        result = json.loads((RESULTS / f"{block[2]}.json").read_text())
        table = ops_table(result) if "rows" in result else training_table(result)
        return f"{block[1]}{table}{block[3]}"

    return BLOCK.sub(fill, text)


if __name__ == "__main__":
    README.write_text(tables(README.read_text()))
