"""Where a setting comes from, which source goes before which, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from qwen3_ranker_plugins import InvalidInputError
from qwen3_ranker_plugins.server.settings import ServerSettings, hide_secrets, load_settings

ROOT = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path: Path):
    def written(text: str) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(text, encoding="utf-8")
        return file

    return written


def test_flags_before_environment_before_file_before_defaults(write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write("port: 1\nmax_documents: 1\nmax_length: 100\nserved_model_names: [a, b]\n")
    monkeypatch.setenv("QWEN3_RANKER_MAX_DOCUMENTS", "2")
    monkeypatch.setenv("QWEN3_RANKER_PORT", "2")
    monkeypatch.setenv("QWEN3_RANKER_ENGINE_OPTIONS", '{"a": 1}')
    monkeypatch.setenv("QWEN3_RANKER_HOST", "")
    settings = load_settings(file, {"port": 3}).settings
    assert (settings.port, settings.max_documents, settings.max_length, settings.max_body_bytes) == (3, 2, 100, 2**24)
    assert settings.names == ("a", "b")
    assert settings.engine_options == {"a": 1}
    assert settings.host == "127.0.0.1"


def test_names_from_the_environment_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3_RANKER_SERVED_MODEL_NAMES", "reranker, rerank-v3.5")
    assert load_settings(None, {}).settings.names == ("reranker", "rerank-v3.5")


def test_the_configuration_that_is_printed_can_be_read_again(write) -> None:
    settings = load_settings(None, {"port": 5, "served_model_names": ["x"], "template": "compact"}).settings
    assert load_settings(write(settings.dump()), {}).settings == settings


def test_secrets_among_engine_options_are_hidden() -> None:
    options = {"api_key": "s3cret", "headers": {"Authorization": "s3cret"}, "url": "http://x", "max_tokens": 5,
               "nested": {"password": "s3cret"}}  # fmt: skip
    assert "s3cret" not in str(hide_secrets(options))
    assert hide_secrets(options)["max_tokens"] == 5
    assert "s3cret" not in ServerSettings(engine_options=options).dump()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 8001", "prot=8001"),
        ("port: eighty", r"port \(from .*config.yaml\)='eighty'"),
        ("- port", "needs names and values"),
        ("port: [", "is not YAML"),
        ("services: {}", "has no section services.rerank"),
        ("services: {rerank: {max_modle_len: 5}}", "max_modle_len=5"),
        ("engine: warp", "engine='warp'"),
        ("template: nothing", "template='nothing'"),
        ("api_keys: [x]", "api_keys="),
        ("services: {rerank: {infer_batch_size: 0}}", "infer_batch_size=0"),
    ],
)
def test_a_mistake_is_named_with_its_source(text: str, message: str, write) -> None:
    with pytest.raises(InvalidInputError, match=message):
        load_settings(write(text), {})


def test_a_mistake_of_the_environment_or_a_flag_is_named_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="from --port"):
        load_settings(None, {"port": 99999})
    monkeypatch.setenv("QWEN3_RANKER_PORT", "x")
    with pytest.raises(InvalidInputError, match="from QWEN3_RANKER_PORT"):
        load_settings(None, {})
    monkeypatch.setenv("QWEN3_RANKER_ENGINE_OPTIONS", "{")
    monkeypatch.delenv("QWEN3_RANKER_PORT")
    with pytest.raises(InvalidInputError, match="engine_options"):
        load_settings(None, {})


SEED = """
elasticsearch: {url: http://elsewhere}
services:
  search: {port: 6000}
  rerank:
    port: 6007
    backend: %s
    backends:
      qwen3_vllm:
        model_name: Qwen/Qwen3-Reranker-4B
        instruction_format: standard
      qwen3_vllm_score:
        model_name: Qwen/Qwen3-Reranker-0.6B
        max_model_len: 160
        infer_batch_size: 100
        sort_by_doc_length: true
        enable_prefix_caching: true
        enforce_eager: false
        dtype: float16
        tensor_parallel_size: 1
        gpu_memory_utilization: 0.20
        instruction_format: compact
        instruction: "Rank products by query with category & style match prioritized"
      packed:
        model_name: bundled:tiny
        max_model_len: 160
        infer_batch_size: 100
        sort_by_doc_length: true
        instruction_format: compact
"""


def test_a_section_of_the_seed_for_the_packed_engine(write) -> None:
    configuration = load_settings(write(SEED % "packed"), {"port": 0})
    settings = configuration.settings
    assert settings.model == "bundled:tiny"
    assert (settings.engine, settings.max_length, settings.template, settings.port) == ("packed", 160, "compact", 0)
    assert settings.token_budget == 16_000
    assert any("not read: elasticsearch" in note for note in configuration.notes)


def test_a_section_of_the_seed_for_a_vllm_engine(write) -> None:
    """What is handed to the engine, whether or not this installation has it."""
    settings = load_settings(write(SEED % "qwen3_vllm_score"), {}).settings
    assert (settings.engine, settings.model) == ("vllm_score", "Qwen/Qwen3-Reranker-0.6B")
    assert (settings.dtype, settings.max_length, settings.template, settings.port) == ("float16", 160, "compact", 6007)
    assert settings.instruction == "Rank products by query with category & style match prioritized"
    assert settings.engine_options == {
        "infer_batch_size": 100, "sort_by_doc_length": True, "enable_prefix_caching": True, "enforce_eager": False,
        "tensor_parallel_size": 1, "gpu_memory_utilization": 0.20,
    }  # fmt: skip
    other = load_settings(write(SEED % "qwen3_vllm"), {}).settings
    assert (other.engine, other.model, other.template) == ("vllm_generate", "Qwen/Qwen3-Reranker-4B", "standard")
    assert other.engine_options == {}


def test_the_example_of_the_documentation_is_valid() -> None:
    example = ROOT / "examples" / "config.yaml"
    settings = load_settings(example, {}).settings
    assert settings.model == "bundled:tiny"
    section = yaml.safe_load(example.read_text())["services"]["rerank"]
    assert {"backend", "instruction_format", "max_model_len", "infer_batch_size", "sort_by_doc_length"} <= set(
        section["backends"][section["backend"]]
    ) | set(section)
