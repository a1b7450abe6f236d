"""Choose each query's candidates and turn their features into target logits."""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.languages import translated
from training.passages import DICTIONARY_BITS, DOCUMENT_TOKENS, Unit
from training.sparse import TermIndex

KEPT = 16  # dense or BM25 neighbours always kept; POOL - KEPT further ones come from rank 17 to TOP
POOL, TOP, RANDOM = 48, 100, 16
COLUMNS = 1 + 2 * POOL + RANDOM
LABEL_BONUS = {"labelled": 2.0, "title": 1.0, "keywords": 0.0, "sentence": 0.0, "request": 0.0}
# No teacher reads Chinese: where BM25 and the label disagree, the label must win.
CHINESE_LABEL_BONUS = 4.0
ENGLISH, CHINESE, OTHER = range(3)  # classes of languages
# Without teacher and labels the target rises with the covered share of the query's rare words.
OTHER_WEIGHTS = (9.0, -4.5)
SHORT, SHORT_PENALTY = 14, 3.0  # passages of fewer tokens hardly answer anything
WINDOW_SHARE = 0.4  # of the bonus, for a window of the positive text
TEACHER_SHARE = (0.4, 0.6)  # weight of MiniLM and mpnet when neighbours are ranked
LIMIT = 8.0  # of a target logit
QUERY_BATCH = 256

Found = list[tuple[Tensor, Tensor, Tensor]]  # query numbers, places of candidates, features


def pick(ranked: Tensor, pool: int) -> Tensor:
    """The first KEPT columns and a random choice of the others: (queries, pool)."""
    kept, rest = ranked[:, :KEPT], ranked[:, KEPT:]
    order = torch.rand(rest.shape, device=ranked.device).argsort(1)[:, : max(pool - kept.shape[1], 0)]
    chosen = torch.cat([kept, rest.gather(1, order)], 1)
    return chosen if chosen.shape[1] == pool else chosen[:, torch.arange(pool, device=ranked.device) % chosen.shape[1]]


def fit_logistic(features: Tensor, labels: Tensor, steps: int = 30) -> Tensor:
    """Weights (features and intercept) of a class-balanced logistic regression, by Newton's method."""
    x = torch.cat([features, torch.ones_like(features[:, :1])], 1).double()
    y = labels.double()
    balance = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    weights = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    for _ in range(steps):
        p = torch.sigmoid(x @ weights)
        gradient = x.T @ (balance * (p - y)) + 1e-3 * weights
        hessian = (x * (balance * p * (1 - p))[:, None]).T @ x
        weights -= torch.linalg.solve(hessian + 1e-2 * torch.eye(x.shape[1], dtype=x.dtype, device=x.device), gradient)
    return weights.float()


def language_class(lang: str) -> int:
    """ENGLISH, which the teachers read, CHINESE, which has labels, or OTHER."""
    return ENGLISH if lang == "en" else OTHER if translated(lang) else CHINESE


def label_bonus(query: dict[str, Any]) -> float:
    if query["kind"] == "labelled" and query["lang"] != "en":
        return CHINESE_LABEL_BONUS
    return LABEL_BONUS[query["kind"]]


class Miner:
    """Candidates and features of one language group within one class of passages."""

    def __init__(self, unit_vectors: list[Tensor], matrix: Tensor, unit_text: Tensor, device: str) -> None:
        self.vectors, self.matrix, self.unit_text, self.device = unit_vectors, matrix, unit_text, device

    def _positive(self, positive_text: Tensor, similarity: Tensor) -> Tensor:
        """Of the positive text's passages (they lie together) the best by `similarity`; -1 if none."""
        start = torch.searchsorted(self.unit_text, positive_text)
        end = torch.searchsorted(self.unit_text, positive_text, right=True)
        places = start[:, None] + torch.arange(12, device=self.device)
        inside = places < end[:, None]
        scores = similarity.gather(1, places.clamp(max=len(self.unit_text) - 1)).float()
        best = scores.masked_fill(~inside, -math.inf).argmax(1)
        return torch.where(end > start, start + best, -1)

    def mine(
        self, query_vectors: list[Tensor], asked: Tensor, largest: Tensor, positive_text: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Candidate numbers (queries, COLUMNS), -1 in column 0 without positive, and features (.., teachers + 1)."""
        bm25 = (self.matrix @ asked).T / largest[:, None]
        units = bm25.shape[1]
        shares = TEACHER_SHARE[len(TEACHER_SHARE) - len(self.vectors) :]
        # Without a teacher (Chinese, or a smoke run) BM25 takes its place.
        similarities = [s * (q @ u.T) for s, q, u in zip(shares, query_vectors, self.vectors, strict=True)]
        dense = torch.stack(similarities).sum(0) if similarities else bm25 + 1e-3 * torch.rand_like(bm25)
        top = min(TOP, units)
        columns = [
            self._positive(positive_text, dense)[:, None],
            pick(dense.topk(top).indices, POOL),
            pick(bm25.topk(top).indices, POOL),
            torch.randint(units, (len(bm25), RANDOM), device=self.device),
        ]
        chosen = torch.cat(columns, 1)
        safe = chosen.clamp(min=0)
        features = [(q[:, None] * u[safe]).sum(-1).float() for q, u in zip(query_vectors, self.vectors, strict=True)]
        return chosen, torch.stack([*features, bm25.gather(1, safe)], -1)


@dataclass
class Facts:
    """What mining knows about passages (P,) and queries (Q,), on the CPU."""

    unit_text: Tensor
    unit_bits: Tensor
    unit_length: Tensor
    unit_language: Tensor
    positive_text: Tensor
    query_language: Tensor
    query_labelled: Tensor
    bonus: Tensor

    @classmethod
    def gather(
        cls,
        texts: list[dict[str, Any]],
        queries: list[dict[str, Any]],
        units: list[Unit],
        lengths: Tensor,
        positive_text: Tensor,
    ) -> "Facts":
        return cls(
            unit_text=torch.tensor([number for number, _, _ in units]),
            unit_bits=torch.tensor([bits for _, bits, _ in units]),
            unit_length=lengths,
            unit_language=torch.tensor([language_class(texts[number]["lang"]) for number, _, _ in units]),
            positive_text=positive_text,
            query_language=torch.tensor([language_class(row["lang"]) for row in queries]),
            query_labelled=torch.tensor([row["kind"] == "labelled" for row in queries]),
            bonus=torch.tensor([label_bonus(row) for row in queries]),
        )

    def passages(self, size_class: int, language: int) -> Tensor:
        """Numbers of the passages of a class; the longest class cuts what does not fit, the others leave it out."""
        usable = ((self.unit_bits >> size_class) & 1).bool() & (self.unit_language == language)
        if size_class < len(DOCUMENT_TOKENS) - 1:
            usable &= self.unit_length <= DOCUMENT_TOKENS[size_class]
        return torch.nonzero(usable).flatten()

    def logits(self, query: Tensor, passage: Tensor, features: Tensor, weights: Tensor) -> Tensor:
        positive = (self.unit_text[passage] == self.positive_text[query, None]) & (self.positive_text[query, None] >= 0)
        share = torch.where(self.unit_bits[passage] >= DICTIONARY_BITS, 1.0, WINDOW_SHARE)
        logits = features @ weights[:-1] + weights[-1] + positive * share * self.bonus[query, None]
        return logits.clamp(-LIMIT, LIMIT)

    def penalty(self) -> Tensor:
        """What is added to the target of every passage for being short: (passages,), at most 0."""
        return -SHORT_PENALTY * (1 - self.unit_length / SHORT).clamp(min=0)

    def fit(self, found: Found, numbers: Tensor, device: str) -> Tensor:
        """The regression of "is the known positive" on the features of labelled queries' candidates."""
        rows, labels = [], []
        first = torch.arange(COLUMNS) == 0
        for query, chosen, features in found:
            same = self.unit_text[numbers[chosen.clamp(min=0)]] == self.positive_text[query, None]
            # Column 0 is the positive; another passage of the same text is neither positive nor negative.
            known = self.query_labelled[query] & (chosen[:, 0] >= 0)
            usable = known[:, None] & ~(same & ~first) & (chosen >= 0)
            rows.append(features[usable])
            labels.append(first.expand(usable.shape)[usable])
        return fit_logistic(torch.cat(rows).to(device), torch.cat(labels).to(device)).cpu()


class Search:
    """Everything a search for candidates reads, on one device."""

    def __init__(
        self, facts: Facts, index: TermIndex, unit_vectors: list[Tensor], query_vectors: list[Tensor], device: str
    ) -> None:
        self.facts, self.index, self.device = facts, index.to(device), device
        self.unit_vectors = [vectors.to(device) for vectors in unit_vectors]
        self.query_vectors = [vectors.to(device) for vectors in query_vectors]

    def find(self, numbers: Tensor, members: Tensor, *, with_teachers: bool) -> Found:
        """Candidates of the queries `members` among the passages `numbers`."""
        here = numbers.to(self.device)
        known_vectors = [vectors[here] for vectors in self.unit_vectors] if with_teachers else []
        unit_text = self.facts.unit_text[numbers].to(self.device)
        miner = Miner(known_vectors, self.index.weights(here), unit_text, self.device)
        found: Found = []
        for query in torch.split(members, QUERY_BATCH):
            asked_for = query.to(self.device)
            asked, largest = self.index.questions(asked_for)
            vectors = [every[asked_for] for every in self.query_vectors] if with_teachers else []
            chosen, features = miner.mine(vectors, asked, largest, self.facts.positive_text[query].to(self.device))
            found.append((query, chosen.cpu(), features.cpu()))
        return found


def mine_candidates(
    facts: Facts,
    index: TermIndex,
    unit_vectors: list[Tensor],
    query_vectors: list[Tensor],
    devices: list[str],
    log: Callable[[str], None],
) -> tuple[Tensor, Tensor]:
    """(passage numbers, target logits), both (classes, queries, COLUMNS); number -1: no such candidate.

    Every language and class is one search; the devices take them in turn, side by side.
    """
    queries = len(facts.positive_text)
    candidates = torch.full((len(DOCUMENT_TOKENS), queries, COLUMNS), -1, dtype=torch.int32)
    targets = torch.full(candidates.shape, -LIMIT)
    searches = [Search(facts, index, unit_vectors, query_vectors, device) for device in devices]
    pools = [ThreadPoolExecutor(1) for _ in devices]
    weights_of: dict[int, Tensor] = {OTHER: torch.tensor(OTHER_WEIGHTS)}
    pending: list[tuple[int, int, Tensor, Future[Found]]] = []
    for language in (ENGLISH, CHINESE, OTHER):
        members = torch.nonzero(facts.query_language == language).flatten()
        for size_class in reversed(range(len(DOCUMENT_TOKENS))):
            if language == ENGLISH and size_class == len(DOCUMENT_TOKENS) - 1:
                continue  # the texts have 330 words at most; only other languages need so many tokens
            numbers = facts.passages(size_class, language)
            if len(numbers) and len(members):
                turn = len(pending) % len(devices)
                future = pools[turn].submit(searches[turn].find, numbers, members, with_teachers=language == ENGLISH)
                pending.append((language, size_class, numbers, future))
    for language, size_class, numbers, future in pending:
        found = future.result()
        if language not in weights_of:  # whole texts carry the labels; windows use the same weights
            weights_of[language] = facts.fit(found, numbers, devices[0])
            log(f"language {language} regression weights {[round(w, 2) for w in weights_of[language].tolist()]}")
        for query, chosen, features in found:
            passage = numbers[chosen.clamp(min=0)]
            candidates[size_class, query] = torch.where(chosen >= 0, passage, -1).int()
            logits = facts.logits(query, passage, features, weights_of[language])
            targets[size_class, query] = torch.where(chosen >= 0, logits, -LIMIT)
        log(f"language {language} class {size_class}: {len(numbers)} passages")
    for pool in pools:
        pool.shutdown()
    return candidates, targets
