"""Turns a configuration file of a search platform, with a `services.rerank` section, into settings of this server."""

from __future__ import annotations

from collections.abc import Mapping

from ..checks import check_positive
from ..config import ENGINE_ALIASES
from ..errors import InvalidInputError

_SETTINGS = {
    "backend": "engine",
    "model_name": "model",
    "instruction_format": "template",
    "max_model_len": "max_length",
}
#: Keys that are options of vLLM engines, under the same names.
_VLLM_OPTIONS = frozenset(
    """tokenizer tensor_parallel_size gpu_memory_utilization enable_prefix_caching enforce_eager infer_batch_size
    sort_by_doc_length max_num_batched_tokens max_num_seqs quantization engine_kwargs""".split()
)
#: Largest token budget that is derived from infer_batch_size; a larger one costs memory and gains nothing.
_LARGEST_BUDGET = 32_768


def translate(content: Mapping[str, object], source: str, known: frozenset[str]) -> tuple[dict[str, object], list[str]]:
    """Translate a file's content; returns (settings of this server, sentences for the log).

    Top-level names are settings of this server and take precedence over `services.rerank`. Within that section, the
    block `backends.<backend>` of the chosen backend takes precedence over the section's own keys, and the blocks of
    other backends are not read.

    Args:
        content: the content of the file.
        source: the file's name, for errors.
        known: names of this server's settings.

    Raises:
        InvalidInputError: an unknown name.
    """
    section = _section(content, source)
    if section is None:
        _check_names(content, known, source)
        return dict(content), []
    own = {name: value for name, value in content.items() if name in known}
    notes = [f"{source}: not read: {name}" for name in content if name not in known and name != "services"]
    backend = section.get("backend", "auto")
    blocks = section.get("backends") or {}
    block = blocks.get(backend) if isinstance(blocks, Mapping) else None
    merged = {name: value for name, value in section.items() if name != "backends"}
    merged |= block if isinstance(block, Mapping) else {}
    _check_names(merged, known | _SETTINGS.keys() | _VLLM_OPTIONS, f"{source}: services.rerank")

    settings = {_SETTINGS.get(name, name): value for name, value in merged.items() if name not in _VLLM_OPTIONS}
    settings |= own
    options = {name: value for name, value in merged.items() if name in _VLLM_OPTIONS}
    engine = ENGINE_ALIASES.get(str(settings.get("engine", "auto")), settings.get("engine", "auto"))
    if str(engine).startswith("vllm"):
        if options:
            given = settings.get("engine_options")
            settings["engine_options"] = options | (dict(given) if isinstance(given, Mapping) else {})
        return settings, notes
    return settings, notes + _without_vllm(str(engine), options, settings)


def _without_vllm(engine: str, options: Mapping[str, object], settings: dict[str, object]) -> list[str]:
    """Sentences about vLLM's options for another engine; options with a counterpart there are added to `settings`."""
    notes = []
    unused = sorted(options.keys() - {"infer_batch_size", "sort_by_doc_length"})
    if unused:
        notes.append(f"{', '.join(unused)}: no effect with engine {engine!r}")
    batch, longest = options.get("infer_batch_size"), settings.get("max_length")
    check_positive("infer_batch_size", batch)
    if isinstance(batch, int) and isinstance(longest, int) and engine in ("auto", "packed"):
        # The largest number of tokens that a batch of this many prompts can hold.
        settings.setdefault("token_budget", min(batch * longest, _LARGEST_BUDGET))
        notes.append(
            f"infer_batch_size {batch}: engine {engine!r} fills a pass by tokens, here {settings['token_budget']}"
        )
    if options.get("sort_by_doc_length") is False:
        notes.append(
            f"sort_by_doc_length: engine {engine!r} always packs documents by length; scores do not depend on it"
        )
    return notes


def _section(content: Mapping[str, object], source: str) -> Mapping[str, object] | None:
    services = content.get("services")
    if services is None:
        return None
    section = services.get("rerank") if isinstance(services, Mapping) else None
    if not isinstance(section, Mapping):
        raise InvalidInputError("services", None, f"{source} has no section services.rerank")
    return section


def _check_names(names: Mapping[str, object], known: frozenset[str] | set[str], source: str) -> None:
    if unknown := sorted(map(str, names.keys() - known)):
        raise InvalidInputError(unknown[0], names[unknown[0]], f"{source} knows {', '.join(sorted(known))}")
