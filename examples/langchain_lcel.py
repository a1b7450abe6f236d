"""LangChain: BM25 and embeddings in an EnsembleRetriever, then Qwen3Rerank as a step of an LCEL chain, for a batch."""

from __future__ import annotations

import warnings

from local_generator import quiet

quiet()
warnings.filterwarnings("ignore", "`langchain-community` is being sunset", DeprecationWarning)

from langchain_classic.retrievers import EnsembleRetriever
from langchain_community.retrievers import BM25Retriever
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings
from passages import embedding_model, passages

from langchain_qwen3_ranker import Qwen3Rerank
from qwen3_ranker_plugins.demo.searches import lower_case_words

documents = [Document(each.content, id=each.document_id) for each in passages()]
vectors = InMemoryVectorStore.from_documents(documents, HuggingFaceEmbeddings(model_name=embedding_model()))
retriever = EnsembleRetriever(
    retrievers=[
        BM25Retriever.from_documents(documents, k=15, preprocess_func=lower_case_words),
        vectors.as_retriever(search_kwargs={"k": 15}),
    ],
    id_key=None,
)
reranker = Qwen3Rerank(model="bundled:tiny", top_n=2)  # in production leave `model` out


def rerank(inputs: dict[str, list[Document] | str]) -> list[Document]:
    return list(reranker.compress_documents(inputs["candidates"], inputs["question"]))


def cite(documents: list[Document]) -> str:
    return ", ".join(f"{each.id} ({each.metadata['relevance_score']:.2f})" for each in documents)


chain = {"question": RunnablePassthrough(), "candidates": retriever} | RunnableLambda(rerank) | cite

# The questions of a batch run at the same time, and their documents share forward passes.
questions = ["Look up a key without an error if it is missing", "Is list sorting stable?"]
for question, answer in zip(questions, chain.batch(questions), strict=True):
    print(f"{question}: {answer}")
