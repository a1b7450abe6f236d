"""What the installed release of vLLM raises and returns, as JSON; run by the fixture `vllm_release`.

So that the process of the tests need not import vLLM.
"""

from __future__ import annotations

import json
import sys

import torch
import vllm
import vllm.outputs
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import PoolingOutput, PoolingRequestOutput

from qwen3_ranker_plugins.engines.vllm.packed.task import PackedTask
from qwen3_ranker_plugins.engines.vllm.score import ScoreTask


def unknown_argument() -> str:
    try:
        EngineArgs(seeds=7)
    except TypeError as error:
        return str(error)
    return "no TypeError"


def score_with_an_error() -> str | None:
    """What `ScoreTask.read` raises for an output that carries an error; None if outputs of this release carry none."""
    if not hasattr(vllm.outputs, "RequestError"):
        return None
    error = vllm.outputs.RequestError(code="internal_error", message="the cache block was lost")
    output = PoolingRequestOutput("1", PoolingOutput(torch.zeros(1)), [1, 2], 0, finished=True, error=error)
    try:
        return f"a score of {ScoreTask(1, 2).read(output)}"
    except ValueError as raised:
        return str(raised)


def score_without_an_error() -> float:
    return float(ScoreTask(1, 2).read(PoolingRequestOutput("1", PoolingOutput(torch.tensor([2.5])), [1, 2], 0, True)))


def older_release() -> str:
    vllm.__version__ = "0.12.0"
    try:
        PackedTask(1, 2, 3).engine_arguments()
    except RuntimeError as error:
        return str(error)
    return "no RuntimeError"


if __name__ == "__main__":
    said = {
        each.__name__: each() for each in (unknown_argument, score_with_an_error, score_without_an_error, older_release)
    }
    sys.stdout.write(json.dumps(said) + "\n")
