# SPDX-License-Identifier: BSD-3-Clause
"""The loggers of a training beside metrics.csv: Lightning's, which all get the same steps.

Where a service is reached, its own environment variables say: WANDB_PROJECT, WANDB_MODE=offline,
MLFLOW_TRACKING_URI. Without one, MLflow writes to files in the folder of the training.
"""

import os
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    return [Beside(name, LOGGERS[name](out)) for name in names]


class Beside(Logger):
    """A logger whose failure does not end the training: metrics.csv has all values.

    A full disk or a server that is gone stops it for the rest of the training, with one warning.
    What fails before the first value is an error.

    Args:
        kind: its name for people.
        logger: the logger.
    """

    def __init__(self, kind: str, logger: Logger) -> None:
        super().__init__()
        self.kind = kind
        self.logger = logger
        self.failed = False

    @property
    def name(self) -> str | None:
        """The logger's."""
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        """The logger's."""
        return self.logger.version

    @property
    def experiment(self) -> Any:
        """The logger's."""
        return getattr(self.logger, "experiment", None)

    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """As the logger; an error is raised."""
        self.logger.log_hyperparams(params, *args, **kwargs)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """As the logger, until it fails."""
        self._until_it_fails(self.logger.log_metrics, metrics, step)

    def save(self) -> None:
        """As the logger, until it fails."""
        self._until_it_fails(self.logger.save)

    def finalize(self, status: str) -> None:
        """As the logger, until it fails."""
        self._until_it_fails(self.logger.finalize, status)

    def _until_it_fails(self, call: Callable[..., Any], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            call(*arguments)
        except Exception as error:
            self.failed = True
            warnings.warn(
                f"{self.kind} failed and gets no more values; metrics.csv has them all: {error}",
                stacklevel=3,
            )


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
