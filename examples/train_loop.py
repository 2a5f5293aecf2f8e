# SPDX-License-Identifier: BSD-3-Clause
"""Train a detector with a plain PyTorch loop, then measure its AP.

python examples/train_loop.py --data FOLDER
"""

import argparse
from pathlib import Path

import torch
from torch.utils.data import DataLoader, RandomSampler

from fastdet.data import collate, eval_transforms, open_dataset, train_transforms, write_shapes
from fastdet.evaluation import CocoEvaluator
from fastdet.models import retinanet

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="COCO-format folder; without one, shapes are drawn")
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--batch-size", type=int, default=4)
parser.add_argument("--size", type=int, default=128, help="shorter side of the images, in pixels")
options = parser.parse_args()

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
data = options.data or write_shapes("shapes")
train = open_dataset(data, "train", transforms=train_transforms())
val = open_dataset(data, "val", transforms=eval_transforms())
sampler = RandomSampler(train, replacement=True, num_samples=options.steps * options.batch_size)
train_batches = DataLoader(train, options.batch_size, sampler=sampler, collate_fn=collate)

model = retinanet(
    backbone="resnet18",
    num_classes=len(train.classes),  # with background, which is label 0
    fpn_channels=64,
    min_size=options.size,
    max_size=2 * options.size,
    anchor_sizes=(16, 32, 64, 128, 256),  # in pixels, one for each level
).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=options.steps)

for step, (images, targets) in enumerate(train_batches, start=1):
    losses = model([image.to(device) for image in images], targets)
    loss = torch.stack(list(losses.values())).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    if step % 10 == 0:
        print(f"step {step}  loss {loss.item():.3f}", flush=True)
torch.save(model.state_dict(), "detector.pt")

model.eval()
evaluator = CocoEvaluator(val.annotations, val.category_ids)
with torch.inference_mode():
    for images, targets in DataLoader(val, options.batch_size, collate_fn=collate):
        found = model([image.to(device) for image in images])
        evaluator.update([target["image_id"] for target in targets], found)
print(f"AP {evaluator.compute().stats['AP']:.3f} on {len(val)} images; weights: detector.pt")
