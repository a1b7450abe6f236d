"""The vLLM engines' settings and error texts, which need no vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwen3_ranker_plugins import DEFAULT_INSTRUCTION, InvalidInputError
from qwen3_ranker_plugins.config import RerankerSettings
from qwen3_ranker_plugins.engines.vllm.engine import resolve
from qwen3_ranker_plugins.engines.vllm.options import VllmOptions, engine_arguments, resolved
from qwen3_ranker_plugins.engines.vllm.remedies import first_line, remedy, root_cause
from qwen3_ranker_plugins.prompt import PromptEncoder, load_tokenizer

SMALL = {
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 28,
    "hidden_size": 1024,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}


def settings(**options: object) -> RerankerSettings:
    return RerankerSettings("bundled:tiny", "vllm_score", device="cpu", engine_options=options)


@pytest.mark.parametrize(("alias", "engine"), [("qwen3_vllm_score", "vllm_score"), ("qwen3_vllm", "vllm_generate")])
def test_aliases_are_the_engines_that_they_name(tiny: Path, alias: str, engine: str) -> None:
    aliased = RerankerSettings("bundled:tiny", alias, device="cpu")
    assert aliased.engine == engine
    assert aliased == RerankerSettings("bundled:tiny", engine, device="cpu")
    assert resolve(aliased.engine, aliased).config.engine == engine


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu_memory": 0.8}, "engine_options['gpu_memory']=0.8: engine 'vllm_score' has no such option: use one of"),
        (
            {"model": "x"},
            "engine_options['model']='x': is a setting, not an option of an engine: set Reranker(m",
        ),
        ({"dtype": "float16"}, "set Reranker(dtype=...)"),
        ({"tensor_parallel_size": 0}, "engine_options['tensor_parallel_size']=0: use a positive integer"),
        ({"gpu_memory_utilization": 80}, "use a share greater than 0 and at most 1"),
        ({"enforce_eager": 1}, "engine_options['enforce_eager']=1: use true or false"),
        ({"infer_batch_size": None}, "engine_options['infer_batch_size']=None: leave it out"),
        ({"instruction_format": "long"}, "use one of standard, compact"),
        ({"quantization": 4}, "needs a string"),
        ({"engine_kwargs": ["seed"]}, "use a mapping"),
        ({"max_model_len": 100000}, "the model has 40960 positions"),
        ({"tensor_parallel_size": 3}, "0 GPUs are visible and the model has 16 attention heads"),
    ],
)
def test_unusable_options_are_named(options: dict[str, Any], message: str) -> None:
    def use() -> None:
        parsed = VllmOptions.parse("vllm_score", options)
        resolved(parsed, SMALL, gpus=0, window=parsed.max_model_len or 8192, template="standard")

    with pytest.raises(InvalidInputError) as caught:
        use()
    assert message in str(caught.value)


def test_an_instruction_format_is_a_template_and_the_shorter_limit_counts(tiny: Path) -> None:
    tokenizer = load_tokenizer(tiny)
    documents = ["short", "a long document " * 100]
    short = resolve("vllm_score", settings(instruction_format="compact", max_model_len=160)).encoder
    assert short.encode("q", documents, None) == PromptEncoder(tokenizer, "compact", 160).encode("q", documents, None)
    both = RerankerSettings("bundled:tiny", max_length=100, engine_options={"max_model_len": 160})
    shorter = resolve("vllm_score", both).encoder.encode("q", documents, None)
    assert shorter == PromptEncoder(tokenizer, "standard", 100).encode("q", documents, None)
    other = RerankerSettings(template="standard-hf", engine_options={"instruction_format": "compact"})
    with pytest.raises(InvalidInputError, match="contradicts template='standard-hf'"):
        resolve("vllm_score", other)


def test_settings_that_mean_the_same_share_an_engine(tiny: Path) -> None:
    plain = resolve("vllm_score", settings()).config
    assert plain == resolve("vllm_score", settings(block_size=32, max_num_seqs=256, enforce_eager=True)).config
    # The template is the encoder's: both formats may use one engine.
    assert plain == resolve("vllm_score", settings(instruction_format="compact")).config
    assert plain != resolve("vllm_score", settings(max_num_seqs=128)).config
    assert json.loads(plain.options)["max_model_len"] == 8192


@pytest.mark.parametrize(
    ("gpus", "heads", "key_value_heads", "expected"), [(1, 16, 8, 1), (4, 16, 8, 4), (3, 16, 8, 2), (8, 14, 2, 2)]
)
def test_all_gpus_that_divide_the_heads_are_used(gpus: int, heads: int, key_value_heads: int, expected: int) -> None:
    model = SMALL | {"num_attention_heads": heads, "num_key_value_heads": key_value_heads}
    assert resolved(VllmOptions(), model, gpus=gpus, window=8192, template="standard").tensor_parallel_size == expected


@pytest.mark.parametrize(("needed", "expected"), [(1, 1), (2, 2), (3, 4), (5, 8), (20, 8)])
def test_a_model_that_fits_into_one_gpu_is_not_split(needed: int, expected: int) -> None:
    options = resolved(VllmOptions(), SMALL, gpus=8, window=8192, template="standard", gpus_needed=needed)
    assert options.tensor_parallel_size == expected


def test_a_cpu_gets_small_blocks_and_no_more_memory_than_it_needs() -> None:
    options = resolved(VllmOptions(), SMALL, gpus=0, window=8192, template="standard")
    arguments = engine_arguments(Path("model"), options, SMALL, dtype="float32", device="cpu")
    assert arguments["block_size"] == 32
    assert arguments["kv_cache_memory_bytes"] == 2 * 8192 * 2 * 28 * 8 * 128 * 4
    on_gpu = engine_arguments(
        Path("model"),
        resolved(VllmOptions(), SMALL, gpus=1, window=8192, template="standard"),
        SMALL,
        dtype="bfloat16",
        device="cuda",
    )
    assert "kv_cache_memory_bytes" not in on_gpu
    assert on_gpu["gpu_memory_utilization"] == 0.8


@pytest.mark.parametrize(
    ("template", "hidden_size", "expected"), [("standard", 1024, 64), ("compact", 1024, None), ("standard", 2560, None)]
)
def test_on_a_gpu_the_prefix_is_a_block_where_it_is_long_and_the_model_small(
    template: str, hidden_size: int, expected: int | None
) -> None:
    model = SMALL | {"hidden_size": hidden_size}
    assert resolved(VllmOptions(), model, gpus=1, window=8192, template=template).block_size == expected
    given = VllmOptions(block_size=16)
    assert resolved(given, model, gpus=1, window=8192, template=template).block_size == 16


def test_the_shortest_prefix_of_the_official_template_is_a_block(tiny: Path) -> None:
    encoder = PromptEncoder(load_tokenizer(tiny))
    assert len(encoder.encode("x", ["y"], DEFAULT_INSTRUCTION).prefix) == 64


def test_engine_kwargs_win() -> None:
    options = resolved(
        VllmOptions(engine_kwargs={"block_size": 64, "seed": 7}), SMALL, gpus=0, window=8192, template="standard"
    )
    arguments = engine_arguments(Path("model"), options, SMALL, dtype="float32", device="cpu")
    assert (arguments["block_size"], arguments["seed"]) == (64, 7)


# As vLLM 0.26 and 0.32 write them.
MESSAGES = {
    "ModuleNotFoundError: No module named 'vllm'": "pip install",
    "RuntimeError: operator torchvision::nms does not exist": "pip uninstall torchvision",
    "RuntimeError: Failed to infer device type, please set the environment variable": "nvidia-smi",
    "ValueError: Free memory on device cuda:0 (3.2/79.1 GiB) on startup is less than desired GPU memory utilization "
    "(0.9, 71.2 GiB).": "another program holds memory",
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`": "lower max_length",
    "ValueError: To serve at least one request with the model's max seq len (40960), (4.4 GiB KV cache is needed, "
    "which is larger than the available KV cache memory (1.0 GiB).": "lower max_length",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.": "max_num_batched_tokens",
    "RuntimeError: vLLM 0.32.0 is a build for 'cpu', and device='cuda' was asked for": "set device='cpu'",
    "TypeError: EngineArgs.__init__() got an unexpected keyword argument 'seeds'": "engine_kwargs",
    "Value error, torch.float32 is not supported for quantization method fp8. Supported dtypes: [torch.bfloat16]": (
        "leave engine_options['quantization'] out"
    ),
    "ValueError: Failed to find a kernel that can implement the ScaledMM linear layer. Reasons: ": "engine='packed'",
    "RuntimeError: _C::static_scaled_fp8_quant() expected at most 0 argument(s) but received 4": "use a GPU",
    "ValueError: User-specified max_model_len (9) is greater than the derived max_model_len (8). To allow overriding "
    "this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1.": "lower max_length",
    "ValueError: Model architectures ['Qwen3PackedReranker'] are not supported for now.": "VLLM_PLUGINS",
    "it was killed by SIGKILL": "dmesg",
    "KeyError: 'what nobody has seen'": "show_log",
}


@pytest.mark.parametrize(("message", "expected"), MESSAGES.items())
def test_every_known_error_has_its_remedy(message: str, expected: str) -> None:
    assert expected in remedy(message)


def test_of_pydantics_messages_the_line_with_the_reason_is_shown() -> None:
    message = (
        "ValidationError: 1 validation error for VllmConfig\n"
        "  Value error, torch.float32 is not supported. [type=value_error, input_value=ArgsKwargs(())]\n"
        "    For further information visit https://errors.pydantic.dev/2/v/value_error\nValueError: another cause"
    )
    assert first_line(message) == (
        "ValidationError: 1 validation error for VllmConfig: Value error, torch.float32 is not supported."
    )
    assert first_line("ValueError: first\nRuntimeError: its cause") == "ValueError: first"


def test_a_warning_of_vllm_is_no_reason() -> None:
    """With VLLM_ALLOW_LONG_MAX_MODEL_LEN its error about max_model_len begins a warning."""
    log = "WARNING User-specified max_model_len (8194) is greater than the derived max_model_len (8192). VLLM_ALLOW..."
    assert "show_log" in remedy("it was killed by SIGABRT", log)


def test_the_log_counts_where_the_message_says_nothing() -> None:
    log = "INFO starting\n(Worker pid=7) ERROR torch.OutOfMemoryError: CUDA out of memory.\nINFO ending\n"
    assert root_cause(log) == "torch.OutOfMemoryError: CUDA out of memory."
    assert "max_num_batched_tokens" in remedy("RuntimeError: Engine core initialization failed.", log)
    assert root_cause("INFO nothing happened") == ""
