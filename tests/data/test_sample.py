# SPDX-License-Identifier: BSD-3-Clause
"""The committed sample is what its script draws."""

from PIL import Image

from tests.data_sets import SAMPLE
from tests.draw_sample import draw


def test_the_script_draws_the_committed_sample(tmp_path):
    draw(tmp_path)
    assert (tmp_path / "val.json").read_text() == (SAMPLE / "val.json").read_text()
    names = sorted(path.name for path in (SAMPLE / "images").iterdir())
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == names
    for name in names:
        ours, drawn = (Image.open(folder / "images" / name) for folder in (SAMPLE, tmp_path))
        assert (ours.size, ours.mode) == (drawn.size, drawn.mode)


def test_it_stays_small():
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*") if path.is_file()) < 300_000
