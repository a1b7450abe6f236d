#!/usr/bin/env bash
# From texts to weights on a machine with GPUs: prepares, reads and mines, trains variants side by side, measures them.
#
#   recipe.sh WORK SECONDS GPUS "OPTIONS" ...     a variant for each OPTIONS of training.train, on GPUS GPUs each
#
# WORK holds train/ (labelled pairs), free/*.jsonl.gz (training.free_text), minilm/ (training.teacher), dev/*.jsonl.gz
# (lists that select, never train) and small.pt (any mined tensors of the same tokenizer; kernels are compiled with it
# while the texts are prepared). Every stage leaves a file and is skipped where that exists; logs are in WORK/logs.
# FIRST_GPU: number of the first one used. SMOKE=1: a few steps of a small model on the CPU.
set -uo pipefail
work=$(realpath "${1:?usage: recipe.sh WORK SECONDS GPUS OPTIONS ...}") seconds=$2 gpus=$3
shift 3
cd "$(dirname "$0")/.."
: "${PYTHON:=python3}" "${FIRST_GPU:=0}" "${SMOKE:=}" "${TINY:=models/tiny/qwen3_ranker_tiny}" "${PROCESSES:=$(nproc)}"
export PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=passive OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} NCCL_NVLS_ENABLE=0
export TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-true} TORCHINDUCTOR_CACHE_DIR=$work/inductor
mkdir -p "$work"/{logs,models,checkpoints}
say() { echo "[recipe ${SECONDS}s] $*" | tee -a "$work/logs/recipe.log"; }

# The GPUs of a variant, with commas between them.
devices() {
  local number first=$((FIRST_GPU + $1 * gpus)) list=()
  for ((number = first; number < first + gpus; number++)); do list+=("$number"); done
  (IFS=,; echo "${list[*]}")
}

stage() {  # stage NAME FILE COMMAND...: runs the command unless its file exists; the log says how it went
  local name=$1 file=$2
  shift 2
  [ -e "$file" ] && { say "$name: already there"; return 0; }
  say "$name begins"
  "$@" >"$work/logs/$name.log" 2>&1
  local code=$?
  say "$name ended with $code"
  [ $code = 0 ] || tail -n 5 "$work/logs/$name.log"
  return $code
}

every=$(seq -s, "$FIRST_GPU" $((FIRST_GPU + gpus * $# - 1)))
options=(--tokenizer "$TINY/tokenizer.json" --start-from "$TINY" --teacher-from "$TINY" --phases continued
  ${SMOKE:+--device cpu --smoke})
warm() {  # compiles every layout for one variant, on the side
  local number=$1
  shift
  [ -e "$work/small.pt" ] || return 0
  # shellcheck disable=SC2086  # options are words
  CUDA_VISIBLE_DEVICES=$(devices "$number" | cut -d, -f1) timeout 400 nice $PYTHON -m training.train --mined "$work/small.pt" "${options[@]}" \
    --checkpoint "$work/warm$number" --steps 1 $* >"$work/logs/warm$number.log" 2>&1
  say "compiled for variant $number with $?"
}

prepare() {
  stage prepare_data "$work/data/queries.jsonl.gz" $PYTHON -m training.prepare_data --train "$work/train" \
    --free-text "$work"/free/*.jsonl.gz --requests --out "$work/data" &&
    stage read "$work/read.pt" $PYTHON -m training.read --data "$work/data" --tokenizer "$TINY/tokenizer.json" \
      --teacher "$work/minilm" --head-tokens 256 --window-cap "${WINDOW_CAP:-250000}" --processes "$PROCESSES" --out "$work/read.pt" &&
    CUDA_VISIBLE_DEVICES=$every stage mine "$work/mined.pt" $PYTHON -m training.mine --read "$work/read.pt" --tokenizer "$TINY/tokenizer.json" \
      --teacher "$work/minilm" --out "$work/mined.pt" ${SMOKE:+--device cpu}
}

variant() {  # variant NUMBER OPTION...: trains, exports and measures
  local number=$1 dev=() launcher=("$PYTHON") list
  shift
  for list in cacm cranfield med xquad_ru; do
    [ -e "$work/dev/$list.jsonl.gz" ] && dev+=(--dev "$work/dev/$list.jsonl.gz")
  done
  # Each process sees its GPU as the first one: compiled kernels are kept by the GPU's number, and so all share them.
  # shellcheck disable=SC2016  # expanded by each process
  ((gpus > 1)) && launcher+=(-m torch.distributed.run --standalone --nproc-per-node "$gpus" --no-python bash -c
    'IFS=, read -ra every <<<"$CUDA_VISIBLE_DEVICES"; CUDA_VISIBLE_DEVICES=${every[LOCAL_RANK]} exec "$0" "$@"' "$PYTHON")
  export CUDA_VISIBLE_DEVICES
  CUDA_VISIBLE_DEVICES=$(devices "$number")
  # shellcheck disable=SC2086  # options are words
  stage "train$number" "$work/checkpoints/$number/done" "${launcher[@]}" -m training.train --mined "$work/mined.pt" "${options[@]}" \
    --checkpoint "$work/checkpoints/$number" --total-seconds "$seconds" "${dev[@]}" --dev-spelling upper \
    --dev-queries "${DEV_QUERIES:-60}" --eval-seconds "${EVAL_SECONDS:-150}" --save-seconds 120 --log-seconds 20 \
    ${SMOKE:+--steps 4} $* || return
  touch "$work/checkpoints/$number/done"
  stage "export$number" "$work/models/$number/model.safetensors" $PYTHON -m training.export \
    --checkpoint "$work/checkpoints/$number" --tokenizer "$TINY" --out "$work/models/$number" || return
  stage "robustness$number" "$work/robustness-$number.json" $PYTHON -m training.robustness --model "$work/models/$number" \
    --lists "$work"/dev/*.jsonl.gz --limit "${LIMIT:-100}" ${SMOKE:+--device cpu} --out "$work/robustness-$number.json"
}

number=0
for option in "$@"; do
  [ -n "$SMOKE" ] || warm $number "$option" &
  number=$((number + 1))
done
# What the training begins with, on the same lists.
CUDA_VISIBLE_DEVICES=$FIRST_GPU stage robustness-start "$work/robustness-start.json" $PYTHON -m training.robustness --model "$TINY" \
  --lists "$work"/dev/*.jsonl.gz --limit "${LIMIT:-100}" ${SMOKE:+--device cpu} --out "$work/robustness-start.json" &
prepare || { say "stopped: no mined tensors"; exit 1; }
wait
number=0
for option in "$@"; do
  # shellcheck disable=SC2086  # options are words
  variant $number $option &
  number=$((number + 1))
done
wait
say "all variants ended"
grep -h '\[dev\]' "$work"/logs/train*.log | cut -c1-900
