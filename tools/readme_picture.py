# SPDX-License-Identifier: BSD-3-Clause
"""Makes the picture of the README: a detector of drawn galaxies, shown a photograph of real ones.

The detector never sees a photograph while it learns. Its scenes are drawn: galaxies as light
profiles, noise, and stars with the spikes of a telescope's mirror mount, which are background.
Then it looks at the Hubble eXtreme Deep Field, which is in the public domain and comes with
scikit-image:

    .venv/bin/pip install scikit-image
    .venv/bin/python tools/readme_picture.py

The same seed gives the same scenes. Under ten minutes on one CPU core.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastdet.files import replacing
from fastdet.models import FasterRCNN, faster_rcnn

COLOUR = (120, 220, 120)
SIZE = 160  # of a scene, in pixels
VISIBLE = 0.17  # an object ends where its light is below this share of white
SMALLEST = 9  # pixels: what is smaller is drawn, but is no target
GALAXIES = (3, 13)  # from, to below
STARS = (0, 4)
SPECKS = (30, 90)  # the far galaxies of a few pixels
SCENES = 400
SHOWN = 0.6  # the score from which a detection is drawn
# Red, orange, yellow, white, blue and pink, as in Hubble's pictures, and how often each.
TINTS = ((1, 0.35, 0.25), (1, 0.62, 0.38), (1, 0.85, 0.65), (1, 1, 1), (0.6, 0.8, 1), (1, 0.6, 0.8))
SHARES = (0.1, 0.15, 0.15, 0.25, 0.25, 0.1)


def grid(x: float, y: float, angle: float, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Along and across a tilted disc, from its centre to each pixel, (SIZE, SIZE) each."""
    columns = np.arange(SIZE, dtype=np.float32) - np.float32(x)
    rows = np.arange(SIZE, dtype=np.float32)[:, None] - np.float32(y)
    sine, cosine = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    return columns * cosine + rows * sine, (rows * cosine - columns * sine) / np.float32(ratio)


def blob(x: float, y: float, radius: float) -> np.ndarray:
    """A round spot of light, (SIZE, SIZE), that falls as a Gaussian does."""
    columns = np.exp(-(((np.arange(SIZE, dtype=np.float32) - x) / radius) ** 2))
    rows = np.exp(-(((np.arange(SIZE, dtype=np.float32) - y) / radius) ** 2))
    return np.outer(rows, columns)


def specks(rng: np.random.Generator) -> np.ndarray:
    """Light (SIZE, SIZE, 3) of the far galaxies, a few pixels each."""
    light = np.zeros((SIZE + 16, SIZE + 16, 3), np.float32)
    for _ in range(rng.integers(*SPECKS)):
        left, top = rng.integers(0, SIZE, 2)
        along, across = (side[:17, :17] for side in grid(8, 8, *rng.uniform((0, 0.3), (3.14, 1))))
        speck = np.exp(-(along**2 + across**2) / rng.uniform(0.6, 2.2) ** 2)
        light[top : top + 17, left : left + 17] += (
            rng.uniform(0.1, 0.9) * speck[..., None] * tint(rng)
        )
    return light[8:-8, 8:-8]


def tint(rng: np.random.Generator) -> np.ndarray:
    """A colour between two of TINTS."""
    first, second = (np.array(TINTS[i], np.float32) for i in rng.choice(len(TINTS), 2, p=SHARES))
    return first + (second - first) * rng.uniform(0, 0.5)


def galaxy(rng: np.random.Generator, x: float, y: float, scale: float) -> np.ndarray:
    """Light (SIZE, SIZE, 3) of an elliptical, a disc with arms or an irregular galaxy.

    Args:
        rng: source of every choice.
        x, y: the centre, in pixels.
        scale: the length over which the light falls, in pixels.
    """
    angle = rng.uniform(0, np.pi)
    kind = rng.choice(["elliptical", "disc", "irregular"], p=[0.35, 0.45, 0.2])
    ratio = rng.uniform(0.55, 1) if kind == "elliptical" else rng.uniform(0.12, 1)
    along, across = grid(x, y, angle, ratio)
    radius = np.hypot(along, across)
    fall = rng.uniform(0.75, 1.6) if kind == "elliptical" else rng.uniform(1.0, 1.8)
    light = np.exp(-((radius / scale) ** (1 / fall)))  # Sersic's profile
    light *= 0.6 * 10 ** rng.random()
    if kind == "disc":
        wind = rng.uniform(1, 4) * rng.choice([-1, 1])
        polar = np.arctan2(across, along)
        arms = np.cos(rng.integers(2, 4) * (polar + wind * np.log1p(radius / scale)))
        light *= 1 + rng.uniform(0, 0.7) * arms * np.minimum(radius / scale, 1)
    coloured = light[..., None] * tint(rng)
    if kind != "elliptical":  # bright knots where stars are born
        for _ in range(rng.integers(1, 7)):
            away, turn = rng.uniform(0.3, 1.8) * scale, rng.uniform(0, 2 * np.pi)
            size = rng.uniform(0.8, 0.6 * scale + 0.9)
            knot = blob(x + away * np.cos(turn), y + away * np.sin(turn), size)
            coloured += rng.uniform(0.2, 0.9) * knot[..., None] * tint(rng)
    if rng.random() < 0.5:  # an old, yellow bulge
        bulge = np.exp(-((radius / (rng.uniform(0.2, 0.5) * scale + 0.5)) ** 2))
        coloured += rng.uniform(0.3, 1.2) * bulge[..., None] * np.array(TINTS[2], np.float32)
    return coloured


def star(rng: np.random.Generator, x: float, y: float, scale: float) -> np.ndarray:
    """Light (SIZE, SIZE, 3) of a star: a round core and the cross of diffraction spikes."""
    along, across = grid(x, y, rng.uniform(0, np.pi / 2), 1)
    radius = np.hypot(along, across)
    off_spike = np.minimum(np.abs(along), np.abs(across))
    if rng.random() < 0.5:  # a second, turned cross
        off_spike = np.minimum(off_spike, np.abs(np.abs(along) - np.abs(across)) / np.sqrt(2))
    spikes = np.exp(-((off_spike / rng.uniform(0.5, 0.9)) ** 2)) * np.exp(-radius / (2.2 * scale))
    core = np.exp(-((radius / (0.45 * scale + 1)) ** 2))
    halo = np.exp(-radius / (0.8 * scale))
    light = rng.uniform(2, 5) * core + rng.uniform(0.8, 2) * spikes + rng.uniform(0.2, 0.6) * halo
    colour = np.ones(3, np.float32) - rng.uniform(0, 0.35, 3).astype(np.float32)
    # Diffraction spreads the colours along a spike.
    rainbow = 1 + 0.5 * np.cos(radius[..., None] / scale * 2 + np.array([0, 2, 4]))
    return light[..., None] * colour * np.where(radius[..., None] > scale, rainbow, 1)


def scene(seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A drawn picture (3, SIZE, SIZE) in 0..1, and the boxes of its galaxies, all of label 1."""
    rng = np.random.default_rng(seed)
    picture = specks(rng) + np.float32(rng.uniform(0, 0.05))
    for _ in range(rng.integers(*STARS)):
        picture += star(rng, *rng.uniform(0, SIZE, 2), 3.5 * 2.5 ** rng.random())
    boxes = []
    for _ in range(rng.integers(*GALAXIES)):
        light = galaxy(rng, *rng.uniform(0, SIZE, 2), 1.1 * 8 ** (rng.random() ** 1.5))
        picture += light
        brightest = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2])
        rows, columns = np.nonzero(1 - np.exp(-brightest) > VISIBLE)
        if len(rows) == 0:
            continue
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        if max(box[2] - box[0], box[3] - box[1]) >= SMALLEST:
            boxes.append(box)
    grain = rng.normal(0, rng.uniform(0.01, 0.05), picture.shape)
    # Bright surfaces are compressed, as in the published pictures.
    picture = (1 - np.exp(-picture) + grain).clip(0, 1).astype(np.float32)
    target = {
        "boxes": torch.tensor(np.array(boxes, np.float32).reshape(-1, 4)),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
    }
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous(), target


def detector(min_size: int, max_size: int) -> FasterRCNN:
    """A small Faster R-CNN for objects from SMALLEST to about 100 pixels."""
    return faster_rcnn(
        backbone="resnet10t",
        num_classes=2,
        fpn_channels=64,
        representation_size=128,
        min_size=min_size,
        max_size=max_size,
        anchor_sizes=(8, 16, 32, 64, 128),
        rpn_pre_nms_top_n_train=400,
        rpn_post_nms_top_n_train=200,
        rpn_batch_size_per_image=64,
        box_batch_size_per_image=64,
        box_detections_per_img=400,
    )


def turned(image: Tensor, target: dict[str, Tensor], turn: int) -> tuple[Tensor, dict[str, Tensor]]:
    """A scene in one of the eight ways in which a square lies on itself, `turn` in 0..7."""
    boxes = target["boxes"]
    if turn & 1:
        image, boxes = (
            image.flip(2),
            torch.stack((SIZE - boxes[:, 2], boxes[:, 1], SIZE - boxes[:, 0], boxes[:, 3]), dim=1),
        )
    if turn & 2:
        image, boxes = (
            image.flip(1),
            torch.stack((boxes[:, 0], SIZE - boxes[:, 3], boxes[:, 2], SIZE - boxes[:, 1]), dim=1),
        )
    if turn & 4:
        image, boxes = image.transpose(1, 2), boxes[:, [1, 0, 3, 2]]
    return image, target | {"boxes": boxes}


def train(steps: int, batch_size: int) -> dict[str, Tensor]:
    """The weights after `steps` batches of scenes, turned at random."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    scenes = [scene(seed) for seed in range(SCENES)]
    print(f"{SCENES} scenes drawn", flush=True)
    model = detector(SIZE, SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for step in range(1, steps + 1):
        chosen = rng.choice(SCENES, batch_size, replace=False)
        batch = [turned(*scenes[i], int(rng.integers(8))) for i in chosen]
        losses = model([image for image, _ in batch], [target for _, target in batch])
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}  loss {loss.item():.3f}", flush=True)
    return model.state_dict()


def draw(photograph: np.ndarray, found: dict[str, Tensor]) -> Image.Image:
    """The photograph (H, W, 3) uint8 with a box and a score for each detection."""
    picture = Image.fromarray(photograph)
    canvas = ImageDraw.Draw(picture)
    font = ImageFont.load_default(10)
    for box, score in zip(found["boxes"], found["scores"], strict=True):
        if score < SHOWN:
            continue
        x0, y0, x1, y1 = (round(side) for side in box.tolist())
        canvas.rectangle((x0 - 2, y0 - 2, x1 + 1, y1 + 1), outline=COLOUR)
        above = y0 - 13 if y0 >= 13 else y1 + 2
        canvas.text((min(x0 - 2, picture.width - 22), above), f"{score:.2f}", COLOUR, font)
    return picture


def main() -> None:
    """Trains, detects, and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/images/hubble.jpg"))
    parser.add_argument("--weights", type=Path, help="used if the file exists, else written")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    from skimage.data import hubble_deep_field  # here: the tests draw scenes without it

    if options.weights and options.weights.exists():
        weights = torch.load(options.weights, weights_only=True)
    else:
        weights = train(options.steps, options.batch_size)
        if options.weights:
            torch.save(weights, options.weights)

    photograph = hubble_deep_field()
    model = detector(min(photograph.shape[:2]), max(photograph.shape[:2]))
    model.load_state_dict(weights)
    model.eval()
    with torch.inference_mode():
        image = torch.from_numpy(photograph).permute(2, 0, 1).float() / 255
        found = model([image])[0]
    print(f"{(found['scores'] >= SHOWN).sum()} galaxies of score {SHOWN} or more")
    with replacing(options.out) as temporary:
        draw(photograph, found).save(temporary, "JPEG", quality=85)


if __name__ == "__main__":
    main()
