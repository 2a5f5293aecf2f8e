# SPDX-License-Identifier: BSD-3-Clause
"""A detector as a LightningModule: its losses, its optimiser, its validation.

Validation runs the networks once a batch: losses and detections come from the same features, and
one hook logs both at one step. A loss that is not finite ends the training.
"""

import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from torch import Tensor

from fastdet.engine import is_quantized, quantized_by
from fastdet.evaluation import CocoEvaluator, CocoMetrics
from fastdet.models import MODELS
from fastdet.models.batch import batch_shape, restore
from fastdet.ops import paste_masks_rle
from fastdet.ops.detections import Detections
from fastdet.training.checkpoint import plain_backbone, read_checkpoint
from fastdet.training.kept_metrics import as_plain
from fastdet.training.multi_scale import batch_border
from fastdet.training.optimizers import optimizer
from fastdet.training.options import OptimizationOptions
from fastdet.training.schedules import schedule

CALIBRATION = "calibration"  # the key of a quantised checkpoint


class NonFiniteLossError(FloatingPointError):
    """A batch gave a loss that is NaN or infinite; the message names its image ids."""


class DetectorModule(lightning.LightningModule):
    """A detector, what it was built from, and how it learns.

    Its hyperparameters are plain data in the checkpoint: `load_detector` needs nothing else.

    Args:
        model: a key of `fastdet.models.MODELS`, whose function builds the detector.
        backbone: name of a timm backbone, or `local-dir:` and a folder of one: the checkpoint has
            its name and weights and does not need the folder.
        classes: names by label, "background" first.
        category_ids: the data set's category id of each label from 1 on.
        model_options: further keyword arguments of that function.
        pretrained_backbone: start from timm's weights.
        lr: peak learning rate.
        weight_decay: on matrices and kernels, but not on norms and biases; None: the optimiser's
            own.
        seed: of the random numbers in the model; epoch k draws the same ones after a resume.
        backbone_weights: start from this file of weights; the checkpoint does not need it.
        optimization: further fields of `OptimizationOptions`.
        multi_scale: range of the min_size of training batches; see `batch_border`. None: the
            model's own, which validation always has.

    Attributes:
        object_scale: pixels that the detector saw per pixel of a training picture, without
            augmentation: the median over the objects. None: not known.
    """

    def __init__(
        self,
        model: str,
        backbone: str,
        classes: list[str],
        category_ids: list[int],
        model_options: dict[str, Any] | None = None,
        pretrained_backbone: bool = False,
        lr: float = 5e-4,
        weight_decay: float | None = None,
        seed: int = 0,
        backbone_weights: str | Path | None = None,
        optimization: dict[str, Any] | None = None,
        multi_scale: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if model not in MODELS:
            raise ValueError(f"no model {model!r}; there are: {', '.join(MODELS)}")
        place, backbone = backbone, plain_backbone(backbone)
        weights, backbone_weights = backbone_weights, None  # no checkpoint holds a path
        self.save_hyperparameters()  # the arguments, as these local variables hold them
        self.classes = classes
        self.category_ids = category_ids
        self.lr = lr
        self.optimization = OptimizationOptions(
            **{"weight_decay": weight_decay, **(optimization or {})}
        )
        self.optimization.check()
        self.seed = seed
        self.multi_scale = multi_scale
        self.model = MODELS[model](
            backbone=place,
            num_classes=len(classes),
            pretrained_backbone=pretrained_backbone,
            **({} if weights is None else {"backbone_weights": weights}),
            **(model_options or {}),
        )
        self.losses = self.model.losses
        self.metrics: CocoMetrics | None = None
        self.object_scale: float | None = None
        self.batch_shapes: Counter[tuple[int, ...]] = Counter()  # (B, H, W, G), of this process
        self.resumed_at = (0, 0)  # epochs and steps that were done

    def compile_losses(self) -> None:
        """Computes the losses of training by one compiled graph for each shape of a batch."""
        self.losses = torch.compile(self.model.losses, dynamic=False)

    def on_train_epoch_start(self) -> None:
        """Draw this epoch's random numbers from (seed, epoch)."""
        torch.manual_seed(hash((self.seed, self.current_epoch)))

    def training_step(
        self, batch: tuple[list[Tensor], list[dict[str, Any]]], batch_idx: int
    ) -> Tensor:
        """The sum of the losses of one batch.

        Raises:
            NonFiniteLossError: before the weights are touched.
        """
        images, targets = batch
        border = self.model.border
        if self.multi_scale is not None:
            place = self.seed, self.current_epoch, batch_idx
            border = batch_border(border, self.multi_scale, *place)
        padded = self.model.pad(images, targets, border=border)
        self.batch_shapes[batch_shape(padded)] += 1
        losses = self.losses(padded)
        loss = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(loss):
            raise NonFiniteLossError(
                f"loss of step {self.global_step} is not finite "
                f"({', '.join(f'{name} {value:.4g}' for name, value in losses.items())}); "
                f"image ids of the batch: {[target['image_id'] for target in targets]}. "
                "The last checkpoint is from before it."
            )
        self.log("loss", loss, prog_bar=True, batch_size=len(images))
        self.log_dict(dict(losses), batch_size=len(images))
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=len(images))
        return loss

    def on_validation_epoch_start(self) -> None:
        """Open an evaluator on the annotations of the validation split."""
        assert self.trainer.val_dataloaders is not None
        dataset = self.trainer.val_dataloaders.dataset
        if dataset.classes != self.classes:
            raise ValueError(
                f"{dataset.annotation_file} has the labels {dataset.classes}; the model was made "
                f"for {self.classes}"
            )
        self.evaluator = CocoEvaluator(
            dataset.annotations, dataset.category_ids, self.model.learns_masks
        )
        # Two-stage detectors sample for their losses; how much was drawn before, a resume changes.
        torch.manual_seed(hash((self.seed, self.current_epoch)))
        self.validation_losses: dict[str, float] = defaultdict(float)
        self.validated_images = 0

    def validation_step(self, batch: tuple[list[Tensor], list[dict[str, Any]]], _: int) -> None:
        """Losses and detections of one batch, from the same features."""
        images, targets = batch
        padded = self.model.pad(images, targets)
        losses, detections = self.model.losses_and_detections(padded)
        for name, value in losses.items():
            self.validation_losses[name] += value.item() * len(images)
        self.validated_images += len(images)
        found = restore(detections, padded)
        image_ids = [target["image_id"] for target in targets]
        self.evaluator.update(image_ids, with_segmentations(found, images))

    def on_validation_epoch_end(self) -> None:
        """Log the losses' means over the images, and the COCO metrics, at one step.

        Those of masks are named segm_AP and so on.
        """
        self.evaluator.gather()
        self.metrics = self.evaluator.compute()
        sums, images = self._of_all_processes()
        means = {name: value / images for name, value in sums.items()}
        logged = {"loss": sum(means.values()), **means, **self.metrics.stats}
        if self.metrics.masks is not None:
            logged |= {f"segm_{name}": value for name, value in self.metrics.masks.stats.items()}
        self.log_dict({f"val/{name}": float(value) for name, value in logged.items()})

    def _of_all_processes(self) -> tuple[dict[str, float], int]:
        """The sums of the validation losses over the images of all processes, and their number."""
        parts: list[Any] = [(dict(self.validation_losses), self.validated_images)]
        if self.trainer.world_size > 1:
            mine, parts = parts[0], [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, mine)
        names = list(parts[0][0])
        sums = {name: math.fsum(losses[name] for losses, _ in parts) for name in names}
        return sums, sum(images for _, images in parts)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the metrics of the validation with the weights, and the scale of the objects."""
        if self.object_scale is not None:
            checkpoint["object_scale"] = self.object_scale
        if self.metrics is not None:
            checkpoint["metrics"] = as_plain(self.metrics)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on after the epoch that the checkpoint ended, with the learning rate of now.

        Lightning counts the batches of the epoch: after a change of the batch size it would go on
        in the middle of one. And it would take the learning rate of before.
        """
        self.object_scale = self.object_scale or checkpoint.get("object_scale")
        data = getattr(self.trainer, "datamodule", None) if self._trainer is not None else None
        if data is None:
            return
        self.resumed_at = checkpoint["epoch"] + 1, checkpoint["global_step"]
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        more = len(data.train_dataloader()) - progress["ready"]
        for name in progress:
            progress[name] += more
        before = checkpoint["hyper_parameters"]["lr"]
        if self.lr != before:
            _scale_lr(checkpoint, self.lr / before)

    def configure_optimizers(self) -> Any:
        """The optimiser and, step by step, the schedule of `optimization`.

        A resumed training is in its schedule where its epoch is, also with another batch size.
        """
        # Lightning cannot clip a fused step in mixed precision.
        fused = not str(self.trainer.precision).endswith("-mixed")
        steps = optimizer(self.model, self.optimization, self.lr, fused=fused)
        total, epochs = int(self.trainer.estimated_stepping_batches), self.trainer.max_epochs
        assert epochs is not None
        factor = schedule(self.optimization, total, epochs)

        def of_step(step: int) -> float:
            epochs_done, steps_done = self.resumed_at
            return factor(max(0, step - steps_done + epochs_done * total // epochs))

        scheduler = torch.optim.lr_scheduler.LambdaLR(steps, of_step)
        return {
            "optimizer": steps,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


def _scale_lr(checkpoint: dict[str, Any], ratio: float) -> None:
    """Changes the learning rates of a checkpoint, in place."""
    for state in checkpoint["optimizer_states"]:
        for group in state["param_groups"]:
            group["lr"] *= ratio
            group["initial_lr"] *= ratio
    for state in checkpoint["lr_schedulers"]:
        state["base_lrs"] = [lr * ratio for lr in state["base_lrs"]]


def with_segmentations(found: Detections, images: list[Tensor]) -> list[dict[str, Any]]:
    """Each image's detections, with masks as run lengths: no mask of image size is made."""
    answers: list[dict[str, Any]] = [*found.to_list()]
    for answer, image in zip(answers, images, strict=True):
        if "masks" in answer:
            size = image.shape[1], image.shape[2]
            answer["segmentations"] = paste_masks_rle(answer.pop("masks"), answer["boxes"], size)
    return answers


def load_detector(checkpoint: Path) -> DetectorModule:
    """The detector of a checkpoint, on the CPU, in eval mode; nothing is downloaded.

    Args:
        checkpoint: a file that `train` wrote, or `quantize_checkpoint`: the detector is then in
            8-bit integers. Only tensors and plain data are unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of fastdet; see `read_checkpoint`. The calibration of a
            quantised one is of another version of fastdet.
    """
    module = load_trained(checkpoint)
    calibration = read_checkpoint(Path(checkpoint)).get(CALIBRATION)
    if calibration is not None:
        try:
            module.model = quantized_by(module.model, calibration)
        except ValueError as error:
            raise ValueError(f"{checkpoint}: {error}") from None
        module.losses = module.model.losses
    return module


def load_trained(checkpoint: Path) -> DetectorModule:
    """As `load_detector`, but a quantised checkpoint gives the detector in float32."""
    checkpoint = Path(checkpoint)
    read_checkpoint(checkpoint)
    module = DetectorModule.load_from_checkpoint(
        checkpoint, map_location="cpu", weights_only=True, pretrained_backbone=False
    )
    return module.eval()


def device_for(module: DetectorModule) -> Literal["cuda", "cpu"]:
    """Where a loaded detector runs: on the GPU if there is one, a quantised one on the CPU."""
    return "cuda" if torch.cuda.is_available() and not is_quantized(module.model) else "cpu"
