# SPDX-License-Identifier: BSD-3-Clause
"""The loggers of a training beside metrics.csv: Lightning's, which all get the same steps.

Where a service is reached, its own environment variables say: WANDB_PROJECT, WANDB_MODE=offline,
MLFLOW_TRACKING_URI. Without one, MLflow writes to files in the folder of the training.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from fastdet.training.options import LoggerName

PROJECT = "fastdet"


def further_loggers(names: Sequence[LoggerName], out: Path) -> list[Logger]:
    """The loggers that are named; a resumed training is a new run in W&B and MLflow.

    Args:
        names: keys of `LOGGERS`.
        out: the folder of the training; its name is the run's.

    Raises:
        ModuleNotFoundError: a package is missing.
    """
    return [LOGGERS[name](out) for name in names]


def _tensorboard(out: Path) -> Logger:
    return TensorBoardLogger(out, name="", version="tensorboard")


def _wandb(out: Path) -> Logger:
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    return WandbLogger(name=out.name, group=out.name, project=project, save_dir=out)


def _mlflow(out: Path) -> Logger:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        # MLflow 3 refuses files unless it is told that they are wanted.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (out / "mlruns").resolve().as_uri()
    return MLFlowLogger(PROJECT, run_name=out.name, tracking_uri=uri)


LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
