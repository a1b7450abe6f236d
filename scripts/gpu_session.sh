#!/usr/bin/env bash
# What to run on a GPU host, see docs/gpu.md: gpu_session.sh SITE TOKENIZER OUT COMMIT [doctor|table|profile|sweep]
set -euo pipefail
site=$1 tokenizer=$2 out=$3 commit=$4 part=${5:-all}
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD/src:$PWD:$site" VLLM_USE_FLASHINFER_SAMPLER=0 HF_HUB_OFFLINE=1
model=/tmp/qwen3-random-0.6b

wants() { [[ $part == all || $part == "$1" ]]; }
measure() { python scripts/gpu_vllm.py "$out/$1.json" --commit "$commit" --model "$model" --tokenizer "$tokenizer" "${@:2}"; }

if wants doctor; then
  python -m qwen3_ranker_plugins.cli doctor --engine vllm_score
  python -m qwen3_ranker_plugins.cli doctor --engine vllm_generate
fi
if wants table; then measure gpu_vllm; fi
if wants profile; then measure gpu_vllm_profile --profile; fi
if wants sweep; then measure gpu_vllm_sweep --sweep; fi
