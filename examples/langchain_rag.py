"""The short version of langchain_rag.ipynb: BM25 -> ContextualCompressionRetriever(Qwen3Rerank) -> answer, sources."""

from __future__ import annotations

import warnings
from operator import itemgetter

from local_generator import langchain_generator, quiet

quiet()
warnings.filterwarnings("ignore", "`langchain-community` is being sunset", DeprecationWarning)

from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_community.retrievers import BM25Retriever
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

from langchain_qwen3_ranker import Qwen3Rerank
from qwen3_ranker_plugins.data.demo import load_demo_corpus
from qwen3_ranker_plugins.demo.searches import lower_case_words

documents = [Document(each.content, id=each.document_id) for each in load_demo_corpus().documents.values()]
retriever = ContextualCompressionRetriever(
    base_retriever=BM25Retriever.from_documents(documents, k=10, preprocess_func=lower_case_words),
    base_compressor=Qwen3Rerank(model="bundled:tiny", top_n=2),
)
prompt = ChatPromptTemplate.from_template(
    "Answer the question in one sentence, using only the sources.\n\n{sources}\n\nQuestion: {question}"
)


def numbered(inputs: dict[str, list[Document]]) -> str:
    return "\n\n".join(f"[{number}] {each.page_content[:500]}" for number, each in enumerate(inputs["documents"], 1))


generator = langchain_generator(max_tokens=30)
context = RunnablePassthrough.assign(documents=itemgetter("question") | retriever).assign(sources=numbered)
chain = context if generator is None else context.assign(answer=prompt | generator | StrOutputParser())

outputs = chain.invoke({"question": "How do I supply a computed value when an attribute does not exist?"})
print(outputs["question"])
for number, document in enumerate(outputs["documents"], start=1):
    print(f"[{number}] P(yes) {document.metadata['relevance_score']:.2f}  {document.id}")
if "answer" in outputs:
    print("Answer:", outputs["answer"].strip())
