# SPDX-License-Identifier: BSD-3-Clause
"""inductor compiles a detector as one graph: `detect`, and losses with all gradients.

It takes long for each graph: so it compiles `detect` of one family and the losses of another one.
`test_every_family.py` traces the graphs of all families.
"""

from functools import partial
from typing import Any

import pytest
import torch
import torch._inductor.config

from fastdet.engine.fused import unfused

from .scenes import named, scene, spread_scores, tiny_model

pytestmark = pytest.mark.slow


def test_detect_compiles_as_one_graph() -> None:
    model = spread_scores(tiny_model("faster_rcnn")).eval()
    batch = model.pad(scene()[0])
    with torch.no_grad(), unfused():
        expected = model.detect(batch)
        got = torch.compile(model.detect, fullgraph=True)(batch)
    for name, value in named(expected).items():
        torch.testing.assert_close(getattr(got, name), value, rtol=1e-4, atol=1e-4, msg=name)


@torch._inductor.config.patch(fallback_random=True)  # eager's random numbers, so the same samples
def test_losses_and_gradients_compile_as_one_graph() -> None:
    """In float64, so that rounding changes no sample and BatchNorms do not amplify it."""
    results: list[dict[str, Any]] = []
    images, targets = scene()
    in_one_graph = partial(torch.compile, fullgraph=True, backend="inductor")
    for compiled in (lambda losses: losses, in_one_graph):
        model = tiny_model("retinanet").double()
        batch = model.pad([image.double() for image in images], targets)
        torch.manual_seed(3)
        losses = compiled(model.losses)(batch)
        torch.stack(list(losses.values())).sum().backward()
        results.append(losses | {name: p.grad for name, p in model.named_parameters()})
    for name, value in results[0].items():
        off = (results[1][name] - value).abs().max() / value.abs().max().clamp(min=1e-9)
        assert off < 1e-6, f"{name}: {off:.1e} of the largest"
