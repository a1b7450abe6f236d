#!/usr/bin/env bash
# Train the bundled model on a GPU host without a package registry, over several calls (training/README.md).
#
# Here, once:           gpu_train.sh pack DATA MINILM MPNET DEV     writes .train/1 .. .train/5, each small enough for a call
# There, call by call:  gpu_train.sh store                          keeps the carried .train/N
#                       gpu_train.sh begin VERB ARGUMENT...         starts a verb that outlives the call
#                       gpu_train.sh wait SECONDS                   waits for its end, shows its log, fills $OUT
#                       gpu_train.sh mine
#                       gpu_train.sh variants SECONDS "OPTIONS" ... one GPU each, at the same time
#                       gpu_train.sh train NAME SECONDS OPTION ...  all GPUs together
#                       gpu_train.sh score NAME ...                 dev and held-out lists, one GPU for each name
set -euo pipefail
: "${WORK:=/tmp/train}" "${OUT:=/tmp/train-out}" "${PYTHON:=python3}" "${PROCESSES:=$(nproc)}" "${SMOKE:=}"
PROCESSES=$((PROCESSES > 24 ? 24 : PROCESSES))
cd "$(dirname "$0")/.."
verb=${1:?usage: gpu_train.sh VERB ...}
shift
export PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} OMP_WAIT_POLICY=passive
tiny=src/qwen3_ranker_plugins/assets/tiny

pack() {
  local data=$1 minilm=$2 mpnet=$3 dev=$4 part
  rm -rf .train
  mkdir -p .train/{1/data,2/data,3/mpnet,4/mpnet,5/minilm,5/lists}
  zcat "$data/texts.jsonl.gz" | xz -9 -T0 >.train/1/data/texts.jsonl.xz
  zcat "$data/queries.jsonl.gz" | xz -T0 >.train/2/data/queries.jsonl.xz
  cp "$mpnet/part0.npz" .train/3/mpnet/
  cp "$mpnet/part1.npz" "$mpnet"/*.json .train/4/mpnet/
  cp "$minilm"/* .train/5/minilm/
  cp "$dev"/*.jsonl.gz .train/5/lists/
  # Short lists of the splits that come nearest to what is judged elsewhere; the whole sets are scored on a CPU.
  for part in nq_open_oracle hotpot_musique_small_labelled medquad tldr_en; do
    cp "$data/heldout/$part.jsonl.gz" .train/2/data/
  done
  du -sm .train/*
}

store() {
  local part packed
  mkdir -p "$WORK/stored"
  for part in .train/*; do  # earlier calls' parts may still lie there
    [ -e "$WORK/stored/${part##*/}" ] || cp -r "$part/." "$WORK/"
    touch "$WORK/stored/${part##*/}"
  done
  # A running stage must not see the next call's files.
  [ -d "$WORK/code" ] || { mkdir "$WORK/code"; cp -r training scripts src "$WORK/code/"; }
  for packed in "$WORK"/data/*.xz; do
    [ -e "$packed" ] && $PYTHON -c "
import gzip, lzma, shutil, sys
with lzma.open(sys.argv[1]) as a, gzip.open(sys.argv[1][:-2] + 'gz', 'wb', compresslevel=1) as b:
    shutil.copyfileobj(a, b, 1 << 20)" "$packed" && rm "$packed"
  done
  find "$WORK" -maxdepth 2 -not -path "*/code*" -type f -printf "%s %P\n"
}

begin() {
  cd "$WORK/code"
  rm -f "$WORK/ended"
  setsid nohup bash -c 'scripts/gpu_train.sh "$@" >"$0/$1.log" 2>&1; echo "$1 ended with $?" >"$0/ended"' "$WORK" "$@" \
    </dev/null >/dev/null 2>&1 &
}

wait_for() {
  local until=$((SECONDS + $1))
  while [ ! -e "$WORK/ended" ] && ((SECONDS < until)); do sleep 1; done
  mkdir -p "$OUT"
  tar -C "$WORK" -czf "$OUT/logs.tgz" --exclude=code --exclude=data --exclude='state.*' --exclude='*.pt' --exclude='*.npz' \
    --exclude='lists' --exclude='*.safetensors' --exclude=minilm --exclude=mpnet . || true
  for model in "$WORK"/models/*; do
    [ -e "$model/model.safetensors" ] && cp "$model/model.safetensors" "$OUT/$(basename "$model").safetensors"
  done
  tail -n 4 "$WORK"/*.log "$WORK"/runs/*.log 2>/dev/null | cut -c1-400
  grep -h "\[dev\]" "$WORK"/runs/*.log 2>/dev/null | tail -n 12 | cut -c1-300 || true
  cat "$WORK/ended" 2>/dev/null || echo "still running"
}

mine() {
  $PYTHON -m training.mine --data "$WORK/data" --tokenizer $tiny/tokenizer.json ${SMOKE:+--device cpu} \
    $([ -d "$WORK/minilm" ] && echo --teacher "$WORK/minilm" --teacher "$WORK/mpnet") \
    --head-tokens 256 --window-cap 300000 --out "$WORK/mined.pt" --processes "$PROCESSES"
}

lists() {
  local list
  for list in "$WORK"/lists/*.jsonl.gz "$WORK"/data/{nq,hotpot,medquad,tldr}*.jsonl.gz; do
    [ -e "$list" ] && echo "$list"
  done
}

# all PID...: waits for every process; fails if one of them did.
all() {
  local pid code=0
  for pid in "$@"; do wait "$pid" || code=$?; done
  return $code
}

# run NAME SECONDS LAUNCHER... -- OPTION...: a training run and its exported model.
run() {
  local name=$1 seconds=$2 launcher=() list
  shift 2
  while [ "$1" != -- ]; do launcher+=("$1"); shift; done
  shift
  mkdir -p "$WORK/runs" "$WORK/models"
  local dev=()
  for list in $(lists); do dev+=(--dev "$list"); done
  "${launcher[@]}" -m training.train --mined "$WORK/mined.pt" --tokenizer $tiny/tokenizer.json \
    --checkpoint "$WORK/checkpoints/$name" --phases continued --total-seconds "$seconds" "${dev[@]}" \
    --dev-queries 225 --eval-seconds 200 --save-seconds 120 --log-seconds 20 ${SMOKE:+--smoke --device cpu --steps 3} "$@" >"$WORK/runs/$name.log" 2>&1
  $PYTHON -m training.export --checkpoint "$WORK/checkpoints/$name" --tokenizer $tiny --out "$WORK/models/$name"
}

variants() {
  local seconds=$1 number=0 options started=()
  shift
  for options in "$@"; do
    # shellcheck disable=SC2086  # options are words
    CUDA_VISIBLE_DEVICES=$number run "variant$number" "$seconds" "$PYTHON" -- $options &
    started+=($!)
    number=$((number + 1))
  done
  all "${started[@]}"
}

train() {
  local name=$1 seconds=$2 gpus
  shift 2
  gpus=$(nvidia-smi -L 2>/dev/null | wc -l) || gpus=0
  run "$name" "$seconds" "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$((gpus > 0 ? gpus : 2))" -- "$@"
}

score() {
  local number=0 name started=()
  for name in "$@"; do
    # shellcheck disable=SC2046  # one word for each list
    CUDA_VISIBLE_DEVICES=$number $PYTHON -m training.evaluate score --model "$WORK/models/$name" \
      --lists $(lists) --out "$WORK/scores-$name.json" &
    started+=($!)
    number=$((number + 1))
  done
  all "${started[@]}"
}

case $verb in
  wait) wait_for "$@" ;;
  pack | store | begin | mine | variants | train | score) "$verb" "$@" ;;
  *) echo "unknown verb $verb" >&2; exit 2 ;;
esac
