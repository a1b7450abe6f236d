"""Runs clients that pin other versions than this project's: `python clients_elsewhere.py URL` in their environment.

Standard input holds {query, texts}; standard output gets {client: [[index, score], ...]} in the clients' order, or
{client: "error"}. Only the address of each client is changed.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

Ranked = list[list[float]]


def _litellm(model: str, base: str, query: str, texts: list[str], **options: Any) -> Ranked:
    import litellm

    answer = litellm.rerank(model=model, query=query, documents=texts, api_base=base, api_key="any", **options)
    ranked = [[each["index"], each["relevance_score"]] for each in answer.results]
    for each in answer.results:
        if "document" in each:
            assert each["document"]["text"] == texts[each["index"]], each
    return ranked


async def _litellm_async(base: str, query: str, texts: list[str]) -> Ranked:
    import litellm

    answer = await litellm.arerank(
        model="cohere/rerank-v3.5", query=query, documents=texts, api_base=base, api_key="any"
    )
    return [[each["index"], each["relevance_score"]] for each in answer.results]


def _llama_index(postprocessor: Any, query: str, texts: list[str]) -> Ranked:
    from llama_index.core.schema import NodeWithScore, TextNode

    nodes = [NodeWithScore(node=TextNode(text=text, id_=str(number))) for number, text in enumerate(texts)]
    return [[int(each.node.node_id), each.score] for each in postprocessor.postprocess_nodes(nodes, query_str=query)]


def _clients(url: str, query: str, texts: list[str]) -> dict[str, Callable[[], Ranked]]:
    def lite(model: str, suffix: str = "", **options: Any) -> Callable[[], Ranked]:
        return lambda: _litellm(model, url + suffix, query, texts, **options)

    def llama(module: str, name: str, **options: Any) -> Callable[[], Ranked]:
        def run() -> Ranked:
            from importlib import import_module

            kind = getattr(import_module(f"llama_index.postprocessor.{module}"), name)
            return _llama_index(kind(**options), query, texts)

        return run

    return {
        "litellm cohere": lite("cohere/rerank-v3.5", top_n=3),
        "litellm cohere, async": lambda: asyncio.run(_litellm_async(url, query, texts)),
        "litellm hosted_vllm": lite("hosted_vllm/BAAI/bge-reranker-v2-m3", top_n=3),
        "litellm jina_ai": lite("jina_ai/jina-reranker-v2-base-multilingual", top_n=3),
        "litellm huggingface": lite("huggingface/BAAI/bge-reranker-base", top_n=3),
        "litellm infinity": lite("infinity/rerank", "/infinity", top_n=3),
        "litellm voyage": lite("voyage/rerank-2.5", "/v1", top_n=3),
        "litellm nvidia_nim": lite("nvidia_nim/nvidia/llama-3.2-nv-rerankqa-1b-v2", top_n=3),
        "llama-index cohere": llama("cohere_rerank", "CohereRerank", api_key="any", base_url=url, top_n=3),
        "llama-index jina": llama("jinaai_rerank", "JinaRerank", api_key="any", base_url=f"{url}/v1", top_n=3),
        "llama-index tei": llama("tei_rerank", "TextEmbeddingInference", base_url=url, top_n=3),
        "llama-index siliconflow": llama(
            "siliconflow_rerank", "SiliconFlowRerank", api_key="any", base_url=f"{url}/v1/rerank", top_n=3
        ),
        "llama-index nvidia": llama("nvidia_rerank", "NVIDIARerank", base_url=f"{url}/v1", api_key="any", top_n=3),
    }


def main() -> None:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would be fetched from elsewhere
    given = json.load(sys.stdin)
    outcomes: dict[str, object] = {}
    for name, run in _clients(sys.argv[1], given["query"], given["texts"]).items():
        try:
            outcomes[name] = run()
        except Exception as error:  # noqa: BLE001 - the test reports it, together with the others' outcomes
            outcomes[name] = f"{type(error).__name__}: {error}"
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
