"""Where a setting comes from, which source goes before which, and what is said about it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from qwen3_ranker_plugins import InvalidInputError
from qwen3_ranker_plugins.server.run import limit_tokenizer_threads
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
    assert settings.names == ("a", "b", "bundled:tiny")
    assert settings.engine_options == {"a": 1}
    assert settings.host == "127.0.0.1"


def test_names_from_the_environment_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3_RANKER_SERVED_MODEL_NAMES", "reranker, rerank-v3.5")
    assert load_settings(None, {}).settings.names == ("reranker", "rerank-v3.5", "bundled:tiny")


def test_served_names_of_all_sources_add_up(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3_RANKER_SERVED_MODEL_NAMES", "b, c")
    settings = load_settings(write("served_model_names: [c, d]\nmodel: m"), {"served_model_names": ["a", "b"]}).settings
    assert settings.names == ("a", "b", "c", "d", "m")


def test_an_asterisk_is_no_name_of_its_own() -> None:
    settings = ServerSettings(served_model_names=("*", "x"), strict_model_names=True)
    assert settings.names == ("x", "bundled:tiny")
    assert settings.serves("anything")


@pytest.mark.parametrize("service_section", [True, False])
def test_the_configuration_that_is_printed_can_be_read_again(service_section: bool, write) -> None:
    options = {"tokenizer": "Qwen/Qwen3-0.6B", "api_key_env": "OTHER_KEY", "max_tokens": 5, "url": "http://host/path",
               "nested": {"key_prefix": "a", "list": [1, None]}}  # fmt: skip
    flags = {"port": 5, "served_model_names": ["x", "*"], "template": "compact", "engine_options": options,
             "cors_origins": ["https://a.example"], "strict_model_names": True, "instruction": "Find: ü # 1",
             "probe_interval": 0.0}  # fmt: skip
    if service_section:
        first = load_settings(write(NESTED % "packed"), {}).settings
    else:
        first = load_settings(None, flags).settings
        assert first.engine_options == options
    again = load_settings(write(first.dump()), {}).settings
    assert again == first
    assert again.dump() == first.dump()


def test_a_hidden_secret_is_not_taken_for_the_secret(write) -> None:
    settings = ServerSettings(engine_options={"hf_token": "s3cret"})
    assert "s3cret" not in settings.dump()
    with pytest.raises(InvalidInputError, match="put the secret itself there"):
        load_settings(write(settings.dump()), {})


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
        ("port: 1\nhost: a\nport: 2", "found 'port' twice"),
        ("engine_options: {a: {b: 1, b: 2}}", "found 'b' twice"),
        ("services: {rerank: {port: 1}}\nservices: {rerank: {port: 2}}", "found 'services' twice"),
        ("served_model_names: [' ']", "served_model_names"),
        ("strict_model_names: perhaps", "strict_model_names"),
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


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("QWEN3_RANKER_API_KEY", "read from QWEN3_RANKER_API_KEYS"),
        ("QWEN3_RANKER_APIKEYS", "did you mean QWEN3_RANKER_API_KEYS?"),
        ("QWEN3_RANKER_MAX_DOCUMENT", "did you mean QWEN3_RANKER_MAX_DOCUMENTS?"),
        ("QWEN3_RANKER_XYZZY", "docs/server.md"),
        ("qwen3_ranker_api_keys", "write it in capitals, QWEN3_RANKER_API_KEYS"),
        ("QWEN3_RANKER_SERVICE_HOSTS", "nothing reads this variable"),
    ],
)
def test_a_variable_that_nothing_reads_keeps_the_server_from_starting(
    variable: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value in ("hush-hush", ""):
        monkeypatch.setenv(variable, value)
        with pytest.raises(InvalidInputError, match=message) as raised:
            load_settings(None, {})
        assert variable in str(raised.value)
        assert "hush" not in str(raised.value)


def test_keys_for_a_remote_service_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWEN3_RANKER_API_KEY", "for the service")
    options = {"url": "http://127.0.0.1:9"}
    assert load_settings(None, {"engine": "remote", "engine_options": options}).api_keys == ()
    monkeypatch.delenv("QWEN3_RANKER_API_KEY")
    monkeypatch.setenv("QWEN3_RANKER_UPSTREAM", "for the service")
    options["api_key_env"] = "QWEN3_RANKER_UPSTREAM"
    assert load_settings(None, {"engine": "remote", "engine_options": options}).api_keys == ()


def test_variables_of_kubernetes_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """It sets them in every container next to a service named qwen3-ranker."""
    for name, value in {
        "SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "8001", "SERVICE_PORT_HTTP": "8001", "PORT": "tcp://10.0.0.1:8001",
        "PORT_8001_TCP": "tcp://10.0.0.1:8001", "PORT_8001_TCP_PROTO": "tcp", "PORT_8001_TCP_PORT": "8001",
        "PORT_8001_TCP_ADDR": "10.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"QWEN3_RANKER_{name}", value)
    configuration = load_settings(None, {})
    assert configuration.settings.port == 8001
    assert any("enableServiceLinks: false" in note for note in configuration.notes)


def test_merged_blocks_may_repeat_names(write) -> None:
    """YAML's `<<` gives way to names that stand next to it; that is no repetition."""
    file = write("services:\n  rerank:\n    backends:\n      a: &a {max_model_len: 9, port: 1}\n"
                 "      packed: {<<: *a, port: 7}\n    backend: packed\n")  # fmt: skip
    settings = load_settings(file, {}).settings
    assert (settings.port, settings.max_length) == (7, 9)


NESTED = """
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


def test_a_services_section_for_the_packed_engine(write) -> None:
    configuration = load_settings(write(NESTED % "packed"), {"port": 0})
    settings = configuration.settings
    assert settings.model == "bundled:tiny"
    assert (settings.engine, settings.max_length, settings.template, settings.port) == ("packed", 160, "compact", 0)
    assert settings.token_budget == 16_000
    assert any("not read: elasticsearch" in note for note in configuration.notes)


def test_a_services_section_for_a_vllm_engine(write) -> None:
    """What is handed to the engine, whether or not this installation has it."""
    settings = load_settings(write(NESTED % "qwen3_vllm_score"), {}).settings
    assert (settings.engine, settings.model) == ("vllm_score", "Qwen/Qwen3-Reranker-0.6B")
    assert (settings.dtype, settings.max_length, settings.template, settings.port) == ("float16", 160, "compact", 6007)
    assert settings.instruction == "Rank products by query with category & style match prioritized"
    assert settings.engine_options == {
        "infer_batch_size": 100, "sort_by_doc_length": True, "enable_prefix_caching": True, "enforce_eager": False,
        "tensor_parallel_size": 1, "gpu_memory_utilization": 0.20,
    }  # fmt: skip
    other = load_settings(write(NESTED % "qwen3_vllm"), {}).settings
    assert (other.engine, other.model, other.template) == ("vllm_generate", "Qwen/Qwen3-Reranker-4B", "standard")
    assert other.engine_options == {}


def test_the_example_of_the_documentation_is_valid() -> None:
    settings = load_settings(ROOT / "examples" / "config.yaml", {})
    assert (settings.settings.model, settings.settings.token_budget, settings.notes) == ("bundled:tiny", 32768, ())
    example = ROOT / "examples" / "services.yaml"
    assert load_settings(example, {}).settings.model_copy(update={"engine": "auto"}) == settings.settings
    section = yaml.safe_load(example.read_text())["services"]["rerank"]
    assert {"backend", "instruction_format", "max_model_len", "infer_batch_size", "sort_by_doc_length"} <= set(
        section["backends"][section["backend"]]
    ) | set(section)


def test_the_process_limits_the_threads_of_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setenv("RAYON_NUM_THREADS", "3")
    limit_tokenizer_threads()
    assert os.environ["RAYON_NUM_THREADS"] == "3", "the operator decides"
    monkeypatch.delenv("RAYON_NUM_THREADS")
    limit_tokenizer_threads()
    assert os.environ["RAYON_NUM_THREADS"] == "16"
