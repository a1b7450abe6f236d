"""The LangChain cross encoder: pairs of texts -> requests with one query each -> scores."""

from __future__ import annotations

from langchain_core.cross_encoders import BaseCrossEncoder
from typing_extensions import override

from qwen3_ranker_plugins import EngineClosedError, InvalidInputError, Request
from qwen3_ranker_plugins.adapter_settings import Qwen3Settings
from qwen3_ranker_plugins.checks import check_text


class Qwen3CrossEncoder(Qwen3Settings, BaseCrossEncoder):
    """Scores pairs of query and document with P(yes), the probability that a Qwen3 reranker answers "yes, it fits".

    `Qwen3Rerank` does more (scores in the metadata, async, thresholds). This class is for code that takes a
    `BaseCrossEncoder`, such as `langchain_classic`'s `CrossEncoderReranker`:

    ```python
    from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
    from langchain_core.documents import Document
    from langchain_qwen3_ranker import Qwen3CrossEncoder

    compressor = CrossEncoderReranker(model=Qwen3CrossEncoder(model="bundled:tiny"), top_n=1)
    documents = [Document("A list holds items."), Document("The with statement closes a file.")]
    print(compressor.compress_documents(documents, "how is a file closed?"))
    ```

    It has no `fail_open`, because it has to return a score for each pair and does not make one up.
    """

    @override
    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """P(yes) of each pair, in the order of the pairs. Pairs with the same query are scored as one request.

        Args:
            text_pairs: pairs of query and document.

        Raises:
            InvalidInputError: a ValueError that names the pair, its value and the remedy.
            PromptTooLongError: query and instruction leave no room for a document.
            ScoringError: a document has no usable score.
            EngineError: the forward pass failed, or the reranker was closed during the call.
            ModelNotFoundError, UnsupportedModelError, MissingDependencyError: the model cannot be loaded.
        """
        positions: dict[str, list[int]] = {}
        for position, pair in enumerate(text_pairs):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise InvalidInputError(f"text_pairs[{position}]", pair, "needs a pair of query and document")
            query, document = pair
            check_text(f"text_pairs[{position}][0]", query)
            check_text(f"text_pairs[{position}][1]", document, may_be_empty=True)
            positions.setdefault(query, []).append(position)
        if not positions:
            return []
        requests = [
            Request(query, [text_pairs[position][1] for position in places], self.instruction)
            for query, places in positions.items()
        ]
        reranker = self._ready()
        try:
            results = reranker.score_many(requests)
        except EngineClosedError:
            self._lazy.drop_ended()
            raise
        scores = {
            position: score
            for places, values in zip(positions.values(), results, strict=True)
            for position, score in zip(places, values.tolist(), strict=True)
        }
        return [scores[position] for position in range(len(text_pairs))]
