# SPDX-License-Identifier: BSD-3-Clause
"""The names that `fastdet` imports at their first use; tests/test_package.py holds them true."""

from fastdet.ops import *  # noqa: F403
from fastdet.override import override_torchvision as override_torchvision
from fastdet.override_transformers import override_detr as override_detr

from . import adapters as adapters
from . import analysing as analysing
from . import bench as bench
from . import checking as checking
from . import cli as cli
from . import data as data
from . import deploy as deploy
from . import engine as engine
from . import evaluation as evaluation
from . import export as export
from . import files as files
from . import memory as memory
from . import models as models
from . import numpy as numpy
from . import ops as ops
from . import override as override
from . import override_rfdetr as override_rfdetr
from . import override_transformers as override_transformers
from . import predicting as predicting
from . import prediction as prediction
from . import query_pairs as query_pairs
from . import renamed as renamed
from . import replacement as replacement
from . import report as report
from . import terminal as terminal
from . import training as training
from . import viewing as viewing

__version__: str
