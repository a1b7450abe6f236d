"""The JSON body of a request.

A route says how the request and its answer are written:

    rerank     Cohere and Jina: {query, documents, top_n} -> {results: [{index, relevance_score}]}
    score      vLLM: {text_1, text_2} -> {data: [{index, score}]}
    classify   vLLM: {input: [token ids]} -> {data: [{index, probs: [logit]}]}
    packed     vLLM with our plugin: {input: [rows of documents]} to /pooling -> {data: [{index, data: [logits]}]}
    tei        text-embeddings-inference: {query, texts} -> [{index, score}]

`response` reads the answers.
"""

from __future__ import annotations

import sys
from typing import Any

from ...errors import RemoteError
from ...prompt import EncodedRequest
from ..token_rows import TokenRow, write_rows
from .options import RemoteOptions
from .text_encoders import TextRequest

Json = dict[str, Any]


def request_body(options: RemoteOptions, request: EncodedRequest) -> Json:
    """The body for one query and its documents.

    Raises:
        EngineError: route "packed", and the template contains the marker of rows.
    """
    body: Json = {"model": options.served_model} if options.served_model and options.route != "tei" else {}
    if options.kind in ("server", "vllm"):
        # Probabilities close to 0 or 1 are rounded to 0 or 1, which loses the order of such documents.
        body["use_activation"] = options.scores == "probability"
    if options.route == "packed":
        return body | {"task": "token_classify", "input": [row.token_ids for row in document_rows(options, request)]}
    if not isinstance(request, TextRequest):
        return body | {"input": [request.prompt(i) for i in range(len(request.segments))]}
    if request.instruction is not None:
        body["instruction"] = request.instruction
    if request.max_document_tokens is not None:
        body["max_tokens_per_doc"] = request.max_document_tokens
    if options.route == "score":
        return body | {"text_1": request.query, "text_2": request.documents}
    if options.route == "tei":
        raw, truncate = options.scores == "logit", options.truncate
        return body | {"query": request.query, "texts": request.documents, "raw_scores": raw, "truncate": truncate}
    body |= {"query": request.query, "documents": request.documents, "top_n": len(request.documents)}
    # Version 2 of Cohere's API has no such field, and returns no documents.
    return body if options.kind == "cohere" else body | {"return_documents": False}


def document_rows(options: RemoteOptions, request: EncodedRequest) -> list[TokenRow]:
    """A request's documents as rows of token ids, for route "packed".

    The token budget already limits a request to the documents of one row, so there are several rows only if documents
    end in different tokens.
    """
    if options.marker_id is None:
        raise RemoteError("route 'packed' needs the option marker_id, which `resolve` takes from the tokenizer")
    return list(write_rows(request, options.marker_id, room=sys.maxsize))
