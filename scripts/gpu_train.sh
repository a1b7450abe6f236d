#!/usr/bin/env bash
# Train the bundled model on a GPU host without a package registry, over several calls (training/README.md).
#
# Here, once:           gpu_train.sh pack READ DATA MINILM MPNET DEV SMALL [START]   writes .train/1, .train/2 .., each small enough for a call
# There, call by call:  gpu_train.sh store                          keeps the carried .train/N
#                       gpu_train.sh begin VERB ARGUMENT...         starts a verb that outlives the call
#                       gpu_train.sh wait SECONDS                   waits for its end, shows its log, fills $OUT
#                       gpu_train.sh mine "OPTIONS" ...             and compiles what training with these options needs
#                       gpu_train.sh variants SECONDS "OPTIONS" ... one GPU each, at the same time
#                       gpu_train.sh train NAME SECONDS OPTION ...  all GPUs together
#                       gpu_train.sh score NAME ...                 dev and held-out sets, one GPU for each name
set -euo pipefail
: "${WORK:=/tmp/train}" "${OUT:=/tmp/train-out}" "${PYTHON:=python3}" "${SMOKE:=}"
cd "$(dirname "$0")/.."
verb=${1:?usage: gpu_train.sh VERB ...}
shift
export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} OMP_WAIT_POLICY=passive
tiny=src/qwen3_ranker_plugins/assets/tiny

pack() {
  local read=$1 data=$2 minilm=$3 mpnet=$4 dev=$5 small=$6 start=${7:-} part
  rm -rf .train
  mkdir -p .train/{0,1/mpnet,2/mpnet,3/minilm,3/lists,4/heldout,parts}
  cp "$mpnet/part0.npz" .train/1/mpnet/
  cp "$mpnet/part1.npz" "$mpnet"/*.json .train/2/mpnet/
  cp "$minilm"/* .train/3/minilm/
  cp "$small" .train/0/small.pt  # any mined tensors with the same tokenizer and room for the head
  cp "$dev"/*.jsonl.gz .train/3/lists/
  # Short lists of the splits that come nearest to what is judged elsewhere are looked at while training.
  for part in nq_open_oracle hotpot_musique_small_labelled medquad tldr_en; do
    cp "$data/heldout/$part.jsonl.gz" .train/3/lists/
  done
  cp "$data"/heldout/*.jsonl.gz .train/4/heldout/
  xz -2 -T0 <"$read" | split -b "${PART_BYTES:-43000000}" -d - .train/parts/read.pt.xz.
  for part in .train/parts/*; do
    mkdir ".train/$((5 + 10#${part##*.}))"
    mv "$part" ".train/$((5 + 10#${part##*.}))/"
  done
  rmdir .train/parts
  if [ -n "$start" ]; then
    mkdir .train/0/start
    cp "$start/model.safetensors" .train/0/start/
  fi
  du -sm .train/*
}

store() {
  local part
  mkdir -p "$WORK/stored"
  for part in .train/*; do  # earlier calls' parts may still lie there
    [ -e "$WORK/stored/${part##*/}" ] || cp -r "$part/." "$WORK/"
    touch "$WORK/stored/${part##*/}"
  done
  # A running stage must not see the next call's files.
  [ -d "$WORK/code" ] || { mkdir "$WORK/code"; cp -r training scripts src "$WORK/code/"; }
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
  tar -C "$WORK" -czf "$OUT/logs.tgz" --exclude=code --exclude=heldout --exclude='*.xz.*' --exclude='state.*' --exclude='*.pt' --exclude='*.npz' \
    --exclude='lists' --exclude='*.safetensors' --exclude=minilm --exclude=mpnet . || true
  for model in "$WORK"/models/*; do
    [ -e "$model/model.safetensors" ] && cp "$model/model.safetensors" "$OUT/$(basename "$model").safetensors"
  done
  # A call hands back 64 MiB, four models; what they leave is for the latest weights kept on the way.
  local models weights
  models=$(find "$OUT" -name '*.safetensors' | wc -l)
  find "$WORK/checkpoints" -name 'weights-*.safetensors' -printf '%T@ %p\n' 2>/dev/null | sort -rn |
    head -n "$((models < 4 ? 4 - models : 0))" | while read -r _ weights; do
    cp "$weights" "$OUT/$(basename "$(dirname "$weights")")-$(basename "$weights")"
  done || true
  tail -n 4 "$WORK"/*.log "$WORK"/runs/*.log 2>/dev/null | cut -c1-400 || true
  grep -h "\[dev\]" "$WORK"/runs/*.log 2>/dev/null | tail -n 12 | cut -c1-300 || true
  cat "$WORK/ended" 2>/dev/null || echo "still running"
}

gpus() {
  nvidia-smi -L 2>/dev/null | wc -l
}

# warm "OPTIONS" ...: training's kernels compiled on the side for each set of options; for the speed of what follows alone.
warm() {
  local options number=0
  for options in "$@"; do
    # shellcheck disable=SC2086  # options are words
    CUDA_VISIBLE_DEVICES=$(($(gpus) - 1)) $PYTHON -m training.train --mined "$WORK/small.pt" --tokenizer $tiny/tokenizer.json \
      --checkpoint "$WORK/warm$number" --phases continued --steps 2 $options >"$WORK/warm$number.log" 2>&1 &
    number=$((number + 1))
  done
}

mine() {
  [ -n "$SMOKE" ] || warm "$@"
  cat "$WORK"/read.pt.xz.* | xz -dc -T0 >"$WORK/read.pt"
  $PYTHON -m training.mine --read "$WORK/read.pt" --tokenizer $tiny/tokenizer.json ${SMOKE:+--device cpu} \
    $([ -d "$WORK/minilm" ] && echo --teacher "$WORK/minilm" --teacher "$WORK/mpnet") --out "$WORK/mined.pt"
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
  for list in "$WORK"/lists/*.jsonl.gz; do dev+=(--dev "$list"); done
  "${launcher[@]}" -m training.train --mined "$WORK/mined.pt" --tokenizer $tiny/tokenizer.json \
    --checkpoint "$WORK/checkpoints/$name" --phases continued --total-seconds "$seconds" "${dev[@]}" \
    --dev-queries 225 --eval-seconds "${EVAL_SECONDS:-200}" --save-seconds 120 --log-seconds 20 ${SMOKE:+--smoke --device cpu --steps 3} "$@" >"$WORK/runs/$name.log" 2>&1
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
  local name=$1 seconds=$2 count
  shift 2
  count=$(gpus) || count=0
  run "$name" "$seconds" "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$((count > 0 ? count : 2))" -- "$@"
}

score() {
  local number=0 name started=()
  for name in "$@"; do
    CUDA_VISIBLE_DEVICES=$number $PYTHON -m training.evaluate score --model "$WORK/models/$name" \
      --lists "$WORK"/lists/{cacm,cranfield}.jsonl.gz "$WORK"/heldout/*.jsonl.gz --out "$WORK/scores-$name.json" &
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
