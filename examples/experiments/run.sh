#!/usr/bin/env bash
# The experiments of a detection notebook, each against the same base: run.sh DATA RUNS
#
# Two trainings run at a time, with one thread each. A training that is done is not repeated, and one
# that was stopped goes on. The table of all: fastdet runs RUNS --base RUNS/base
set -uo pipefail
data=$1
runs=$2
fastdet=${FASTDET:-fastdet}
epochs=${EPOCHS:-4}
export OMP_NUM_THREADS=1
mkdir -p "$runs"

# train NAME HYPOTHESIS [OPTION...]
train() {
  local name=$1 hypothesis=$2 out=$runs/$1 resume=()
  shift 2
  [ -e "$out/report.html" ] && return
  [ -e "$out/last.ckpt" ] && resume=(--resume)
  while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n; done
  echo "$name: $runs/$name.log"
  $fastdet train --data "$data" --out "$out" --hypothesis "$hypothesis" --device cpu --epochs "$epochs" \
    --validate-every 2 --min-size 256 --max-size 342 --fpn-channels 32 "${resume[@]}" "$@" \
    > "$runs/$name.log" 2>&1 || echo "$name: $(tail -n 1 "$runs/$name.log")" &
}

# The base: Faster R-CNN, ResNet-18, FPN, AdamW, batch norm that learns. Other seeds show what is chance.
train base "the base"
train seed-1 "the base with another seed" --seed 1
train seed-2 "the base with another seed" --seed 2

# 1. Backbone
train resnet50 "A deeper backbone is better, even from scratch" --backbone resnet50
# 2. Anchors
train anchors-half "Anchors of half the size find the small platelets" --anchor-sizes 16 32 64 128 256
train anchors-double "Anchors of twice the size miss the small platelets" --anchor-sizes 64 128 256 512 1024
# 3. Mosaic
train mosaic "Mosaic helps where pictures are few" --mosaic 0.5
# 4. Optimiser
train sgd "SGD at its usual rate learns more slowly than AdamW" --optimizer sgd
# 5. Batch norm
train frozen-norms "Frozen batch norm without pretrained weights learns badly" --batch-norm frozen
# 6. Neck
train pafpn "A second path, from the bottom up, helps large objects" --neck pafpn
# 7. Family
train cascade-rcnn "Cascade R-CNN places boxes better: AP75 rises" --model cascade_rcnn
train retinanet "One stage is enough for so few classes" --model retinanet
train fcos "Anchors are not needed" --model fcos
wait
