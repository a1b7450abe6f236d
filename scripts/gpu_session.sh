#!/usr/bin/env bash
# One call on a GPU host without a package registry (docs/gpu.md has the calls of a session, and what each carries):
#
#   OUT=FOLDER gpu_session.sh COMMIT PART...
#
# Runs the parts in order. One that fails, or takes longer than it may, is named at the end, and the next one runs: exit
# code 1. Everything is printed, and lies in $OUT/results.tgz with all results of this machine so far; that file is
# written after each part, so that a call that is cut short leaves what was measured.
set -uo pipefail
commit=${1:?usage: OUT=FOLDER gpu_session.sh COMMIT PART...}
shift
: "${OUT:?where results go}" "${SITE:=/tmp/site}" "${STORE:=/tmp/parts}" "${WORK:=/tmp/results}" "${PYTHON:=python3}"
# Seconds for all parts together; a command there ends after 600. The rest are for trying this script out on a CPU.
: "${LIMIT:=570}" "${DEVICE:=cuda}" "${SHAPE:=0.6B}" "${SCALE:=1}" "${REPEAT:=7}"
: "${COUNTS:=100,200,400,600,800,1000}" "${ENGINES:=packed,vllm_packed,vllm_score,vllm_generate}" "${BATCHES:=4,8,16,32,64}"
: "${DEVICES:=cuda:0,cuda:1}" "${PAIRS:=200000}" "${BENCH_PARTS:=reference goals eager}"
cd "$(dirname "$0")/.."
mkdir -p "$OUT" "$SITE" "$STORE" "$WORK"
# src before the installed copy, whose metadata vLLM reads to find our plugin in each of its processes.
export PYTHONPATH="$PWD/src:$PWD:$SITE" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HF_HUB_OFFLINE=1
export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_NO_USAGE_STATS=1 OMP_WAIT_POLICY=passive
model=/tmp/qwen3-random-$SHAPE
failed=()

left() { echo $((LIMIT - SECONDS)); }

# step NAME SECONDS COMMAND...: its output goes to the terminal and to $WORK/NAME.log.
step() {
  local name=$1 seconds=$2 started=$SECONDS began code
  began=$(date +%s)
  shift 2
  if (($(left) < 10)); then
    echo "=== $name: not run, the $LIMIT seconds are over"
    failed+=("$name (not run)")
    return
  fi
  seconds=$(($(left) < seconds ? $(left) : seconds))
  echo "=== $name (at most $seconds s): $*"
  timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$WORK/$name.log"
  code=${PIPESTATUS[0]}
  echo "=== $name: exit code $code after $((SECONDS - started)) s"
  ((code == 0)) || failed+=("$name (exit code $code)")
  "$PYTHON" - "$commit" "$began" "$WORK"/*.json <<'PY'
# There is no repository here, or that of an earlier call, so that results do not know their commit.
import json, pathlib, sys
for path in map(pathlib.Path, sys.argv[3:]):
    if path.exists() and "about" in (result := json.loads(path.read_text(encoding="utf-8"))):
        if result["about"].get("commit") is None or path.stat().st_mtime >= int(sys.argv[2]):
            result["about"]["commit"] = sys.argv[1]
            path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
PY
  tar -czf "$OUT/results.tgz" --exclude=cache -C "$WORK" .
}

ranker() { step "$1" "$2" "$PYTHON" -m qwen3_ranker_plugins.cli "${@:3}"; }
# gpu_vllm.py stops beginning systems by itself, so that its table is whole for those that ran.
vllm() {
  local seconds=$(($(left) < $2 ? $(left) : $2))
  step "$1" "$2" "$PYTHON" scripts/gpu_vllm.py "$WORK/$1.json" --commit "$commit" --model "$model" --device "$DEVICE" \
    --shape "$SHAPE" --scale "$SCALE" --repeat "$REPEAT" --seconds $((seconds - 20)) "${@:3}"
}
bench() {
  ranker "$1" "$2" bench "${@:3}" --model "$model" --device "$DEVICE" -o "$WORK" --tag "$1"
}
# Random weights in the shape, with the real tokenizer; written once.
write_model() {
  [[ -f $model/config.json ]] || step model 120 "$PYTHON" -c "import sys; from pathlib import Path; \
from scripts.gpu_vllm_systems import write_model; folder = Path(sys.argv[1]); folder.mkdir(parents=True, exist_ok=True); \
write_model(folder, sys.argv[2], sys.argv[3], None)" "$model" "$SHAPE" "$DEVICE"
}
requests=(--repeat 5 --seed 99 --warmup 3 --timeout 360 --quiet-runs)

part() {
  case $1 in packed | table | profile | sweep | parallel | latency | matrix* | presets | throughput | tune) write_model ;; esac
  case $1 in
    install)
      step wheels 120 "$PYTHON" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile \
        --no-cache-dir --upgrade --target "$SITE" .whl/*.whl
      step package 120 "$PYTHON" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile \
        --no-cache-dir --no-build-isolation --upgrade --target "$SITE" .
      ;;
    store) step store 60 bash -c "cp .gpu/p*/part_* '$STORE'/ && ls -l '$STORE'" ;;
    unpack)
      step unpack 180 bash -c "cat '$STORE'/part_* | tar -xJf - -C '$SITE' --strip-components=1 && du -sh '$SITE'"
      step versions 120 "$PYTHON" -m qwen3_ranker_plugins.cli doctor
      ;;
    # Warnings of the host's own plugins are not what is tested here.
    contract) step contract 400 "$PYTHON" -m pytest tests/contract -m gpu -W default -p no:cacheprovider --durations=10 ;;
    packed)
      # shellcheck disable=SC2086 # BENCH_PARTS is a list
      step packed 560 "$PYTHON" scripts/gpu_bench.py "$WORK/packed" --commit "$commit" --device "$DEVICE" \
        --shape "$SHAPE" --scale "$SCALE" --repeat "$REPEAT" --model "$model" --parts $BENCH_PARTS
      ;;
    doctor) for engine in vllm_packed vllm_score vllm_generate; do part "doctor-$engine"; done ;;
    doctor-*) ranker "$1" 150 doctor --engine "${1#doctor-}" --device "$DEVICE" ;;
    table) vllm gpu_vllm 570 --resume ;;
    profile) vllm gpu_vllm_profile 300 --profile ;;
    sweep) vllm gpu_vllm_sweep 560 --sweep ;;
    parallel) vllm gpu_vllm_parallel 400 --tensor-parallel 2 ;;
    latency)
      bench latency-gpu 150 latency "$COUNTS" "${requests[@]}" --max-length 160
      for titles in .gpu/titles/*.txt; do
        [[ -f $titles ]] || continue
        bench "latency-gpu-$(basename "$titles" .txt)" 150 latency "$COUNTS" "${requests[@]}" --max-length 160 --titles "$titles"
      done
      ;;
    # One command for each format: a matrix is written when it is done.
    matrix) bench matrix-gpu 420 matrix "$COUNTS" "${requests[@]}" --engines "$ENGINES" --templates standard ;;
    matrix-compact) bench matrix-gpu-compact 420 matrix "$COUNTS" "${requests[@]}" --engines "$ENGINES" --templates compact ;;
    presets)
      bench matrix-gpu-presets 300 matrix "$COUNTS" "${requests[@]}" --engines packed --preset accurate,balanced,fast
      ;;
    throughput) bench throughput-gpu 200 throughput demo --batch-sizes "$BATCHES" --quiet ;;
    tune)
      ranker tune-gpu 300 tune --preset balanced --documents 1000 --model "$model" --device "$DEVICE" -o "$WORK" --tag tune-gpu
      ;;
    offline)
      step offline 500 "$PYTHON" scripts/gpu_offline.py "$WORK/offline-gpus.json" --commit "$commit" \
        --devices "$DEVICES" --shape "$SHAPE" --pairs "$PAIRS" --repeats 2
      ;;
    *) echo "no such part: $1" && failed+=("$1 (no such part)") ;;
  esac
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo 'no nvidia-smi here'
for name in "$@"; do part "$name"; done
if ((${#failed[@]})); then
  printf '=== failed: %s\n' "${failed[@]}"
  exit 1
fi
echo "=== all parts done after $SECONDS s"
