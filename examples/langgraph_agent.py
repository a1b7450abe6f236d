"""LangGraph: an agent whose reranker node decides what happens next.

    START -> retrieve -> rerank -> answer -> END
                ^          |
                +-- widen -+    no passage has P(yes) above the threshold, and there is more to look at

The answer quotes the best passage; a language model would write it in the same node.
"""

from __future__ import annotations

import warnings
from typing import TypedDict

from local_generator import quiet

quiet()
warnings.filterwarnings("ignore", "`langchain-community` is being sunset", DeprecationWarning)

from langchain_community.retrievers import BM25Retriever
from langchain_core.documents import Document
from langgraph.graph import END, START, StateGraph
from passages import passages

from langchain_qwen3_ranker import Qwen3Rerank
from qwen3_ranker_plugins.demo.searches import lower_case_words

THRESHOLD = 0.4  # of bundled:tiny; choose it on questions of your own
MOST = 40


class State(TypedDict, total=False):
    """What the nodes read and write."""

    question: str
    k: int
    documents: list[Document]
    steps: list[str]
    answer: str


retriever = BM25Retriever.from_documents(
    [Document(each.content, id=each.document_id) for each in passages()], preprocess_func=lower_case_words
)
reranker = Qwen3Rerank(model="bundled:tiny", top_n=3)


def retrieve(state: State) -> State:
    found = retriever.model_copy(update={"k": state["k"]}).invoke(state["question"])
    return {"documents": found, "steps": [*state["steps"], f"retrieve {state['k']}"]}


async def rerank(state: State) -> State:
    ranked = await reranker.acompress_documents(state["documents"], state["question"])
    best = ranked[0].metadata["relevance_score"]
    return {"documents": list(ranked), "steps": [*state["steps"], f"rerank: best {best:.2f}"]}


def widen(state: State) -> State:
    return {"k": state["k"] * 4}


def answer(state: State) -> State:
    best = state["documents"][0]
    return {"answer": f"{best.id}: {best.page_content.partition(chr(10))[2][:70]}..."}


def next_step(state: State) -> str:
    good = state["documents"][0].metadata["relevance_score"] >= THRESHOLD
    return "answer" if good or state["k"] >= MOST else "widen"


graph = StateGraph(State)
for node in (retrieve, rerank, widen, answer):
    graph.add_node(node)
graph.add_edge(START, "retrieve")
graph.add_edge("retrieve", "rerank")
graph.add_conditional_edges("rerank", next_step, ["answer", "widen"])
graph.add_edge("widen", "retrieve")
graph.add_edge("answer", END)
agent = graph.compile()


async def main() -> None:
    for question in ("Is list sorting stable?", "Why do I get None back when I sort my list?"):
        final = await agent.ainvoke({"question": question, "k": 3, "steps": []})
        print(f"{question}\n  {' -> '.join(final['steps'])}\n  {final['answer']}")


if __name__ == "__main__":
    import asyncio

    asyncio.run(main())
