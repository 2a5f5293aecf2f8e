# SPDX-License-Identifier: BSD-3-Clause
"""The options of a training. It imports little, so that `fastdet --help` answers at once."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from typing_extensions import Self

# The keys of fastdet.models.MODELS; those with mask need data with segmentations.
ModelName = Literal[
    "atss",
    "cascade_mask_rcnn",
    "cascade_rcnn",
    "d_fine",
    "deformable_detr",
    "detr",
    "faster_rcnn",
    "fcos",
    "mask_rcnn",
    "retinanet",
    "rt_detr",
    "tood",
    "vfnet",
]

# The keys of fastdet.models.necks.NECKS.
NeckName = Literal["fpn", "pafpn", "bifpn", "hybrid", "elan"]

# See fastdet.models.batch_norms.
BatchNorm = Literal["frozen", "eval", "train", "sync", "group"]

Exif = Literal["apply", "ignore"]  # see fastdet.data.read_image

DataFormat = Literal["coco", "yolo", "voc"]  # the keys of fastdet.data.writers.WRITERS
Images = Literal["copy", "link", "none"]  # see fastdet.data.writers.write_dataset

Show = Literal["detections", "proposals"]  # what `fastdet predict` draws

LoggerName = Literal["tensorboard", "wandb", "mlflow"]

RunsFormat = Literal["table", "markdown", "csv", "html"]  # of `fastdet runs`

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]  # as Lightning names them

Optimizer = Literal["adamw", "sgd", "muon", "adam", "nadam", "radam", "rmsprop", "adagrad"]

DEFAULT_LR = {"sgd": 0.01, "rmsprop": 1e-4, "adagrad": 1e-2}  # of the others: 5e-4
DEFAULT_WEIGHT_DECAY = {"adamw": 0.05, "muon": 0.05}  # of the others: 1e-4

Schedule = Literal["cosine", "step", "constant"]

Device = Literal["auto", "cpu", "gpu"]

Preset = Literal["auto", "cpu", "gpu"]

# What options that are unset are: a GPU takes the field's usual sizes; a CPU would need days.
PRESETS: dict[str, dict[str, Any]] = {
    "gpu": {"backbone": "resnet50", "batch_size": 8, "min_size": 800, "max_size": 1333},
    "cpu": {"backbone": "resnet18", "batch_size": 4, "min_size": 320, "max_size": 544},
}

_COUNTS = (
    "devices",
    "patience",
    "epochs",
    "batch_size",
    "min_size",
    "max_size",
    "size_divisor",
    "fpn_channels",
    "validate_every",
)


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are read: the keyword arguments of `fastdet.data.read_image`."""

    exif: Exif = "apply"
    """Rotate pictures by their EXIF orientation, or use them as they are stored."""
    bit_depth: int | None = None
    """Used bits of pictures with more than 8 bits per channel; unset: from the file."""
    max_pixels: int = 178_956_970
    """Refuse pictures with more pixels than this."""

    def check(self) -> None:
        """Raises ValueError with the name of an option that is out of range."""
        _expect_count(self, "bit_depth")
        _expect_count(self, "max_pixels")


@dataclass(frozen=True)
class OptimizationOptions:
    """How the weights learn."""

    optimizer: Optimizer = "adamw"
    """An optimiser of torch.optim; muon is for matrices, with adamw for all other weights."""
    weight_decay: float | None = None
    """Of matrices and kernels; unset: 0.05 for adamw and muon, 1e-4 for the others."""
    decay_norms: bool = False
    """Weight decay of norms and biases, too."""
    momentum: float = 0.9
    """Of sgd and rmsprop."""
    schedule: Schedule = "cosine"
    """Learning rate after the warm-up: down to 1 % (cosine), times gamma after each milestone
    (step), or constant."""
    milestones: tuple[float, ...] = ()
    """Ends of epochs for the schedule step; unset: 8/12 and 11/12 of the epochs."""
    gamma: float = 0.1
    warmup_steps: int | None = None
    """Steps of the linear warm-up; unset: 5 % of all steps, at most 1000."""
    warmup_epochs: float | None = None
    """The same in epochs."""
    backbone_lr: float = 1.0
    """Factor of the learning rate of the backbone."""
    layer_decay: float = 1.0
    """Further factor for each of the backbone's stages, counted from the last one back."""
    lr_for_batch: int | None = None
    """Batch size that lr is for; with another number of images a step, lr grows or shrinks in
    proportion."""
    accumulate: int = 1
    """Batches whose gradients are added up for one step."""
    clip: float | None = 5.0
    """Largest norm of the gradient; None: no limit."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights, such as 0.999; it is then what is
    validated and kept."""

    def complete(self) -> Self:
        """These options, with the optimiser's own weight decay where it is unset."""
        if self.weight_decay is not None:
            return self
        return replace(self, weight_decay=DEFAULT_WEIGHT_DECAY.get(self.optimizer, 1e-4))

    def check(self) -> None:
        """Raises ValueError with the name of an option that is out of range."""
        for name, choices in (("optimizer", get_args(Optimizer)), ("schedule", get_args(Schedule))):
            value = getattr(self, name)
            _expect(value in choices, name, " or ".join(choices), value)
        _expect(0 <= self.momentum < 1, "momentum", "a number in [0, 1)", self.momentum)
        for name in ("weight_decay", "warmup_epochs", "warmup_steps"):
            value = getattr(self, name)
            _expect(value is None or 0 <= value < math.inf, name, "a number from 0 on", value)
        for name in ("gamma", "backbone_lr", "layer_decay", "clip"):
            value = getattr(self, name)
            _expect(value is None or 0 < value < math.inf, name, "a number above 0", value)
        for name in ("lr_for_batch", "accumulate"):
            _expect_count(self, name)
        ends = self.milestones
        _expect(
            all(0 < end < math.inf for end in ends) and list(ends) == sorted(set(ends)),
            "milestones",
            "ascending numbers of epochs above 0",
            ends,
        )
        _expect(
            self.warmup_steps is None or self.warmup_epochs is None,
            "warmup_epochs",
            "no value together with warmup_steps",
            self.warmup_epochs,
        )
        _expect(
            not ends or self.schedule == "step", "milestones", "the schedule step", self.schedule
        )
        _expect(self.ema is None or 0 < self.ema < 1, "ema", "a number in (0, 1)", self.ema)


@dataclass(frozen=True)
class AugmentOptions:
    """How training pictures are changed, anew in each epoch; see docs/augmentation.md."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    scale_jitter: tuple[float, float] = (0.8, 1.25)
    """Range of the factor by which what a picture shows is scaled; 1 1 for none."""
    photometric: float = 0.0
    """Probability of each change of colour: brightness, contrast, saturation, hue, channels."""
    crop: float = 0.0
    """Probability of a crop that keeps at least one object."""
    lsj: tuple[float, float] | None = None
    """Large-scale jitter in place of scale_jitter: range of the factor, such as 0.1 2, on a square
    of min_size."""
    copy_paste: float = 0.0
    """Probability that objects of another picture are pasted; needs data with masks."""
    mosaic: float = 0.0
    """Probability of a mosaic of four pictures, on a square of min_size."""
    mixup: float = 0.0
    """Probability that a picture is blended with another."""
    close_mosaic: int | None = None
    """Last epochs without mosaic and mixup; unset: a tenth of the epochs, rounded up."""
    multi_scale: tuple[int, int] | None = None
    """Range that each training batch draws its min_size from, in steps of size_divisor."""

    def check(self) -> None:
        """Raises ValueError with the name of an option that is out of range."""
        for name in ("flip", "photometric", "crop", "copy_paste", "mosaic", "mixup"):
            value = getattr(self, name)
            _expect(0 <= value <= 1, name, "a probability in [0, 1]", value)
        for name in ("scale_jitter", "lsj"):
            low, high = getattr(self, name) or (1, 1)
            # More than tenfold makes pictures that fill the memory.
            expected = "LOW HIGH with 0 < LOW <= HIGH <= 10"
            _expect(0 < low <= high <= 10, name, expected, f"{low} {high}")
        close = self.close_mosaic
        _expect(close is None or close >= 0, "close_mosaic", "0 or more epochs", close)
        low, high = self.multi_scale or (1, 1)
        expected = "LOW HIGH in pixels with 1 <= LOW <= HIGH"
        _expect(1 <= low <= high, "multi_scale", expected, f"{low} {high}")

    def mixed_epochs(self, epochs: int) -> int:
        """How many of the epochs, from the first on, have mosaic and mixup."""
        close = math.ceil(epochs / 10) if self.close_mosaic is None else self.close_mosaic
        return max(0, epochs - close)


@dataclass(frozen=True)
class TrainOptions:
    """One training, from a data set to checkpoints and a log."""

    data: Path
    """Data set: a folder in a format that fastdet reads, or the file that describes it."""
    out: Path
    """Folder for last.ckpt, best.ckpt (highest val/AP), metrics.csv, options.yaml and run.yaml."""
    model: ModelName = "faster_rcnn"
    backbone: str | None = None
    """Name of a timm model, or local-dir: and the folder of one; unset: see preset."""
    pretrained: bool = False
    """Start from timm's ImageNet weights (a download), or those of the folder."""
    epochs: int = 12
    batch_size: int | None = None
    """Images in a batch of one device; unset: see preset."""
    lr: float | None = None
    """Peak of the learning rate, after the warm-up; unset: the optimiser's own, 5e-4 of adamw and
    0.01 of sgd."""
    min_size: int | None = None
    """Shorter side of the images that the model sees, in pixels; unset: see preset."""
    max_size: int | None = None
    """Limit of the longer side: where min_size would exceed it, images get smaller; unset: see
    preset."""
    anchor_sizes: tuple[float, ...] | Literal["auto"] | None = None
    """Size of the anchors at each level in pixels after resizing; auto: what fits the boxes of the
    training data; unset: the model's own."""
    size_divisor: int = 32
    """Height and width of a batch are multiples of it: larger means fewer shapes, more padding."""
    neck: NeckName | None = None
    """Neck between backbone and heads; unset: the model's own."""
    fpn_channels: int | None = None
    """Width of the neck; unset: the model's own, 256."""
    precision: Precision = "32-true"
    """float32, or mixed with bfloat16 or float16."""
    workers: int | None = None
    """Processes that load images; unset: none on a CPU, up to 8 beside a GPU."""
    validate_every: int = 1
    """Epochs from one validation, and one checkpoint, to the next; the last epoch has both."""
    drop_other_classes: bool = False
    """Leave out what the validation split has of classes that the training split lacks."""
    pictures: PictureOptions = PictureOptions()
    files_anywhere: bool = False
    """Allow file names in the annotations that lead out of the image folder."""
    seed: int = 0
    resume: bool = False
    """Continue from OUT/last.ckpt."""
    backbone_weights: Path | None = None
    """Start from a file of weights of the backbone: .pth or .safetensors."""
    batch_norm: BatchNorm | None = None
    """BatchNorms of the backbone: fixed statistics and weights (frozen), fixed statistics (eval),
    statistics of the batch (train), of all processes (sync), or GroupNorms (group); unset: frozen
    with weights, else train."""
    weights: Path | None = None
    """Start from this checkpoint of fastdet; its classes may be others."""
    preset: Preset = "auto"
    """What unset options are: of a GPU resnet50, batches of 8, 800 to 1333 pixels; of a CPU
    resnet18, 4, 320 to 544. auto: by the device."""
    device: Device = "auto"
    devices: int | None = None
    """Number of devices on this machine, with one process each; unset: one, or torchrun's."""
    compile: bool = False
    """Compile the losses with torch.compile; each shape of a batch costs a compilation."""
    halve_batch: bool = True
    """If the memory of the GPU is not enough, go on with batches of half the size, and twice as
    many of them a step."""
    patience: int | None = None
    """Stop after so many validations without a better val/AP."""
    loggers: tuple[LoggerName, ...] = ()
    """Loggers beside metrics.csv."""
    hypothesis: str | None = None
    """What this training is to show; `fastdet runs` prints it."""
    optimization: OptimizationOptions = OptimizationOptions()
    augmentation: AugmentOptions = AugmentOptions()

    def complete(self, on_gpu: bool) -> Self:
        """These options, with those of the preset and of the optimiser where they are unset."""
        preset = self.preset if self.preset != "auto" else "gpu" if on_gpu else "cpu"
        unset = {k: v for k, v in PRESETS[preset].items() if getattr(self, k) is None}
        own = self.optimization.complete()
        lr = DEFAULT_LR.get(own.optimizer, 5e-4) if self.lr is None else self.lr
        return replace(self, **unset, lr=lr, optimization=own)

    def check(self) -> None:
        """Raises ValueError, naming the option, where one is out of range."""
        self.pictures.check()
        self.optimization.check()
        self.augmentation.check()
        for name in _COUNTS:
            _expect_count(self, name)
        ends = self.optimization.milestones
        expected = f"ends of epochs below {self.epochs}, the number of epochs"
        _expect(all(end < self.epochs for end in ends), "milestones", expected, ends)
        lr = self.lr
        _expect(lr is None or 0 < lr < math.inf, "lr", "a finite number above 0", lr)
        _expect(self.workers is None or self.workers >= 0, "workers", "0 or more", self.workers)
        for name, choices in (("preset", get_args(Preset)), ("device", get_args(Device))):
            value = getattr(self, name)
            _expect(value in choices, name, " or ".join(choices), value)
        _expect(0 <= self.seed < 2**32, "seed", "a number from 0 to 4294967295", self.seed)
        low, high = self.min_size, self.max_size
        fits = low is None or high is None or low <= high
        _expect(fits, "max_size", f"at least min_size, {low}", high)
        loggers = self.loggers
        _expect(len({*loggers}) == len(loggers), "loggers", "each once", " ".join(loggers))
        sizes = self.anchor_sizes
        if sizes not in (None, "auto"):
            fine = isinstance(sizes, tuple) and all(0 < size < math.inf for size in sizes)
            _expect(fine, "anchor_sizes", "auto or numbers above 0", sizes)
        choices = get_args(Precision)
        _expect(self.precision in choices, "precision", " or ".join(choices), self.precision)
        _expect(
            not (self.pretrained and self.backbone_weights),
            "backbone_weights",
            "no file together with pretrained",
            self.backbone_weights,
        )
        _expect(
            not (self.weights and (self.pretrained or self.backbone_weights)),
            "weights",
            "no checkpoint together with pretrained or backbone_weights",
            self.weights,
        )
        largest = (self.augmentation.multi_scale or (1, 1))[1]
        expected = f"at most max_size, {self.max_size}"
        fits = self.max_size is None or largest <= self.max_size
        _expect(fits, "multi_scale", expected, largest)


@dataclass(frozen=True)
class ShowOptions(TrainOptions):
    """The pictures of a training, as its model sees them; the options are those of train."""

    out: Path
    """HTML file for the pictures."""
    images: int = 24
    """How many training pictures, from the beginning of the epoch on."""
    epoch: int = 1
    """Which epoch of the training."""
    overwrite: bool = False
    """Overwrite an existing file."""

    def check(self) -> None:
        """Raises ValueError, naming the option, where one is out of range."""
        super().check()
        _expect_count(self, "images")
        expected = f"an epoch of the training, 1 to {self.epochs}"
        _expect(1 <= self.epoch <= self.epochs, "epoch", expected, self.epoch)


def _expect_count(options: object, name: str) -> None:
    count = getattr(options, name)
    _expect(count is None or count >= 1, name, "a number from 1 on", count)


def _expect(holds: bool, option: str, expected: str, actual: object) -> None:
    if not holds:
        raise ValueError(f"{option}: expected {expected}, got {actual}")
