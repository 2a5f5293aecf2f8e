# SPDX-License-Identifier: BSD-3-Clause
"""The optimisers of torch.optim, by name, on a detector's parameters in groups.

A group has one learning rate and one weight decay. Norms and biases have no weight decay unless it
is asked for. The backbone may learn more slowly, and its first stages more slowly than its last.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from fastdet.models.body_stages import PARTS
from fastdet.models.detector import Detector
from fastdet.training.options import OptimizationOptions

FUSED = ("adamw", "adam", "sgd", "adagrad")  # one pass over the weights


def parameter_groups(
    model: Detector, options: OptimizationOptions, lr: float
) -> list[dict[str, Any]]:
    """The groups of an optimiser: parameters, lr, weight decay.

    Args:
        model: its `parameter_groups` and its backbone say what trains with what factor.
        options: backbone_lr, layer_decay, weight_decay, decay_norms.
        lr: the peak learning rate.

    Raises:
        ValueError: layer_decay for a backbone without stages.
    """
    weight_decay = options.complete().weight_decay
    assert weight_decay is not None
    factors = dict(_backbone_factors(model, options))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameters, lr_factor in model.parameter_groups():
        for matrices in (True, False):
            for parameter in parameters:
                if (parameter.ndim > 1) is matrices:
                    rate = lr * lr_factor * factors.get(id(parameter), 1.0)
                    decay = weight_decay if matrices or options.decay_norms else 0.0
                    groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _backbone_factors(model: Detector, options: OptimizationOptions) -> Iterator[tuple[int, float]]:
    """id() of a parameter of the backbone's body, and the factor of its learning rate."""
    if options.backbone_lr == 1 and options.layer_decay == 1:
        return
    body: Any = getattr(getattr(model, "backbone", None), "body", None)
    if body is None:
        raise ValueError(
            f"backbone_lr, layer_decay: {type(model).__name__} has no backbone of its own"
        )
    stages = getattr(body, "stages", None)
    if options.layer_decay != 1 and stages is None:
        raise ValueError("layer_decay: the stages of this backbone share their parameters")
    for name, parameter in body.named_parameters():
        # The last stage has layer_decay once: the neck and the heads have it never.
        depth = 0 if stages is None else PARTS - stages.get(name, PARTS)
        yield id(parameter), options.backbone_lr * options.layer_decay**depth


def optimizer(
    model: Detector, options: OptimizationOptions, lr: float, *, fused: bool = True
) -> Optimizer:
    """The optimiser that the options name.

    Args:
        model: whose parameters it changes.
        options: see `OptimizationOptions`.
        lr: the peak learning rate.
        fused: use torch's fused kernels where there are some.

    Raises:
        ValueError: muon for a model without matrices; see `parameter_groups`.
    """
    groups, name = parameter_groups(model, options, lr), options.optimizer
    further: dict[str, Any] = {"fused": True} if fused and name in FUSED else {}
    if name in ("sgd", "rmsprop"):
        further["momentum"] = options.momentum
    if name == "muon":
        return MuonWithAdamW(groups, lr, fused=fused)
    kinds: dict[str, Any] = {
        "adamw": torch.optim.AdamW,
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "nadam": torch.optim.NAdam,
        "radam": torch.optim.RAdam,
        "rmsprop": torch.optim.RMSprop,
        "adagrad": torch.optim.Adagrad,
    }
    return kinds[name](groups, lr=lr, **further)


class MuonWithAdamW(Optimizer):
    """torch's Muon for matrices and AdamW for all other parameters, as one optimiser.

    Muon takes matrices alone: the weights of linear layers, which transformers and the heads of
    two-stage detectors have. Its updates are scaled to the size of AdamW's (Liu et al. 2025, "Muon
    is scalable for LLM training"), so that both take the same learning rate.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, *, fused: bool = True) -> None:
        """Splits each group.

        Raises:
            ValueError: there is no matrix.
        """
        matrices, others = [], []
        for group in groups:
            for kept, is_matrix in ((matrices, True), (others, False)):
                chosen = [p for p in group["params"] if (p.ndim == 2) is is_matrix]
                if chosen:
                    kept.append({**group, "params": chosen})
        if not matrices:
            raise ValueError(
                "optimizer muon: expected a model with matrices (linear layers); this one has "
                "convolutions alone: use adamw or sgd"
            )
        super().__init__([*matrices, *others], {"lr": lr})
        self._muon = torch.optim.Muon(matrices, lr=lr, adjust_lr_fn="match_rms_adamw")
        self._adamw = torch.optim.AdamW(others, lr=lr, fused=fused) if others else None
        self.param_groups = [group for part in self._parts() for group in part.param_groups]
        self._share()

    def step(self, closure: Any = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts():
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As Optimizer's."""
        super().load_state_dict(state_dict)
        self._share()

    def _parts(self) -> list[Optimizer]:
        return [part for part in (self._muon, self._adamw) if part is not None]

    def _share(self) -> None:
        """Both optimisers work on the groups and the state of this one."""
        first = len(self._muon.param_groups)
        self._muon.param_groups = self.param_groups[:first]
        if self._adamw is not None:
            self._adamw.param_groups = self.param_groups[first:]
        for part in self._parts():
            part.state = self.state
