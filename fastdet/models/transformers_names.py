# SPDX-License-Identifier: BSD-3-Clause
"""Options and names of weights of transformers' RT-DETR and D-FINE, and their counterparts here.

What has no counterpart raises an error that names it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from torch import Tensor, nn

Changes = Sequence[tuple[str, str]]  # patterns and what replaces them, in order
# The start of a name of transformers, ours, and changes of the rest.
Names = Sequence[tuple[str, str, Changes]]

EMBEDDING = "head.selection.label_embedding.weight"

# What our networks are, by the name of the option of transformers.
EXPECTED: dict[str, Any] = {
    "layer_norm_eps": 1e-5,
    "batch_norm_eps": 1e-5,
    "dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "encoder_activation_function": "gelu",
    "activation_function": "silu",
    "decoder_activation_function": "relu",
    "eval_size": None,
    "normalize_before": False,
    "learn_initial_query": False,
    "with_box_refine": True,
    "auxiliary_loss": True,
}

ATTENTION: Changes = [(r"o_proj", "out_proj")]
CONV_NORM: Changes = [(r"\.conv\.", ".0."), (r"\.norm\.", ".1.")]
BOX_HEAD: Changes = [
    (r"\.layers\.([01])\.", r".hidden.layers.\1."),
    (r"\.layers\.2\.", ".bbox_reg."),
]
# Of a CSP block.
BLOCKS: Changes = [
    (r"\.bottlenecks\.(\d+)\.conv1\.", r".blocks.\1.wide."),
    (r"\.bottlenecks\.(\d+)\.conv2\.", r".blocks.\1.point."),
    (r"\.conv1\.", ".first."),
    (r"\.conv2\.", ".second."),
    (r"\.conv3\.", ".last."),
]
# The same in both families.
SHARED: Names = [
    ("encoder_input_proj.", "backbone.fpn.laterals.", []),
    ("encoder.lateral_convs.", "backbone.fpn.narrow.", CONV_NORM),
    ("decoder_input_proj.", "head.inputs.", []),
    ("denoising_class_embed.", "head.selection.label_embedding.", []),
    ("enc_output.", "head.selection.project.", []),
    ("enc_score_head.", "head.selection.cls_logits.", []),
    ("enc_bbox_head", "head.selection.box_head", BOX_HEAD),
    ("decoder.query_pos_head.", "head.query_positions.", []),
    ("decoder.class_embed.", "head.layers.", [(r"^(\d+)\.", r"\1.cls_logits.")]),
]


def encoder_layers(mlp: Changes) -> Names:
    """The names of the encoder's layers; `mlp` changes those of its linear layers."""
    norms = [("self_attn_layer_norm", "norm1"), ("final_layer_norm", "norm2")]
    changes = [*norms, ("self_attn", "attention"), *ATTENTION, *mlp]
    return [("encoder.aifi.0.layers.", "backbone.fpn.attention.layers.", changes)]


def decoder_layers(mlp: Changes, more: Changes) -> Names:
    """The names of the decoder's layers; `mlp` changes those of the linear layers."""
    changes = [
        (r"^(\d+)\.", r"\1.layer."),
        ("self_attn_layer_norm", "norm1"),
        ("final_layer_norm", "norm3"),
        *more,
        ("self_attn", "self_attention"),
        ("encoder_attn", "cross_attention"),
        *ATTENTION,
        *mlp,
    ]
    return [("decoder.layers.", "head.layers.", changes)]


def our_name(name: str, names: Names) -> str:
    """Our name of a weight of transformers.

    Raises:
        ValueError: there is none.
    """
    for theirs, ours, changes in names:
        if name.startswith(theirs):
            rest = name.removeprefix(theirs)
            for pattern, by in changes:
                rest = re.sub(pattern, by, rest)
            return ours + rest
    raise ValueError(f"{name}: expected a weight that has a name here, got one without")


def load_weights(model: nn.Module, state: Mapping[str, Tensor], names: Names) -> None:
    """Copies weights of transformers into a detector of ours with QuerySelection.

    Raises:
        ValueError: a weight has no counterpart.
    """
    given = {our_name(name, names): value for name, value in state.items()}
    if EMBEDDING in given:  # transformers has the row of padding last, we have it first
        given[EMBEDDING] = given[EMBEDDING].roll(1, dims=0)
    else:  # there is no denoising
        given[EMBEDDING] = model.get_parameter(EMBEDDING).detach()
    wanted = model.state_dict()
    given = {k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")} | given
    for name in sorted(wanted.keys() ^ given.keys()):
        got = "it here alone" if name in wanted else "it in the given model alone"
        refuse(name, "this weight in both models", got)
    model.load_state_dict(given)


def check_options(config: Any, expected: Mapping[str, Any], where: str) -> None:
    """Raises ValueError for the first option with another value."""
    for name, value in expected.items():
        got = getattr(config, name, value)
        same = list(got) == value if isinstance(value, list) and got is not None else got == value
        if not same:
            refuse(f"{where}.{name}", value, got)


def refuse(name: str, expected: Any, got: Any) -> NoReturn:
    """Raises ValueError."""
    raise ValueError(f"{name}: expected {expected}, got {got}")
