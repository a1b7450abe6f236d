"""Assemble rows on the GPU from the mined tensors; no data loader, nothing crosses from the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.candidates import CHINESE, ENGLISH, LIMIT, OTHER, POOL, RANDOM
from training.model import RowLayout
from training.passages import CONTRADICTING, DOCUMENT_VARIANTS, HEAD_VARIANTS, RENAMEABLE


@dataclass
class Batch:
    ids: Tensor  # (rows, layout.length)
    positions: Tensor  # the same
    head_lengths: Tensor  # (rows,)
    readouts: Tensor  # (rows, documents): place of every document's last suffix token
    targets: Tensor  # (rows, documents): target logits
    # Of mined rows alone:
    clean: "Batch | None" = None  # the same rows as written, for a teacher of our own
    taught: Tensor | None = None  # (rows, documents): whether that teacher has a say
    added: Tensor | None = None  # (rows, documents): to the target, for short passages
    sign: Tensor | None = None  # (rows, 1): -1 where the instruction asks for the opposite

    def final_targets(self, margins: Tensor | None, weight: float, shift: float) -> Tensor:
        """Target logits with the teacher's `margins` mixed in by `weight`, moved by `shift`; else `targets`.

        With weight 1 they are the teacher's alone, in every language and without the penalties, which it has learnt:
        a model that learns from itself so keeps its order and learns that other spellings mean the same.
        """
        if self.added is None or self.taught is None or self.sign is None:
            return self.targets
        if margins is not None and weight == 1:
            return (self.sign * (margins + shift)).clamp(-LIMIT, LIMIT)
        mixed = self.targets
        if margins is not None:
            mixed = torch.where(self.taught, torch.lerp(mixed, margins, weight), mixed)
        return (self.sign * (mixed + self.added + shift)).clamp(-LIMIT, LIMIT)


RENAMED_TOKENS = 0.3  # of the vocabulary, in a renamed row
# Sampling weight of a group of queries, by (language, kind).
KIND_WEIGHT = {
    (ENGLISH, "labelled"): 0.22, (ENGLISH, "title"): 0.08, (ENGLISH, "keywords"): 0.10, (ENGLISH, "sentence"): 0.08,
    (ENGLISH, "request"): 0.14,
    (CHINESE, "labelled"): 0.07, (CHINESE, "title"): 0.015, (CHINESE, "keywords"): 0.02, (CHINESE, "sentence"): 0.02,
    (OTHER, "title"): 0.035, (OTHER, "keywords"): 0.06, (OTHER, "sentence"): 0.07, (OTHER, "request"): 0.09,
}  # fmt: skip
# How often a query is shown in each of its HEAD_VARIANTS spellings and prompts.
SPELLINGS = (0.23, 0.10, 0.13, 0.22, 0.08, 0.07, 0.06, 0.06, 0.03, 0.02)
# How the passages of a row are spelt: all as written, all in capitals, title case or misspelt, each by itself.
STYLES = (0.74, 0.08, 0.05, 0.06, 0.07)
FOREIGN_SHARE = 0.12  # of the rows, one passage of another class of languages, with the target FOREIGN_TARGET
FOREIGN_TARGET = -5.0


def fill_slots(contents: Tensor, lengths: Tensor, ending: Tensor, slot: int, padding: int) -> Tensor:
    """`contents` (.., at least slot) cut at `lengths`, then `ending`, then padding, in `slot` places."""
    place = torch.arange(slot, device=contents.device)
    after = place - lengths[..., None]
    filled = torch.where(after < 0, contents[..., :slot], padding)
    return torch.where((after >= 0) & (after < len(ending)), ending[after.clamp(0, len(ending) - 1)], filled)


class Sampler:
    """Batches of mined queries (`natural`); `base_documents` serves the lexical stream."""

    def __init__(
        self,
        mined: dict[str, Any],
        device: str,
        seed: int,
        padding: int,
        renamed_share: float = 0.0,
        neighbours_share: float = 0.0,
        spellings: Sequence[float] = SPELLINGS,
        styles: Sequence[float] = STYLES,
    ) -> None:
        names = (
            "heads", "head_starts", "documents", "document_starts", "candidates", "targets", "penalty",
            "unit_language", "query_language",
        )  # fmt: skip
        self.data: dict[str, Tensor] = {name: mined[name].to(device) for name in names}
        self.prefix, self.ending, self.suffix = (
            torch.tensor(mined[name], device=device) for name in ("prefix", "ending", "suffix")
        )
        self.device, self.padding = device, padding
        self.generator = torch.Generator(device).manual_seed(seed)
        self.vocabulary, self.ordinary = int(mined["vocabulary"]), int(mined["ordinary"])
        self.renamed_share, self.neighbours_share = renamed_share, neighbours_share
        weight = torch.tensor([KIND_WEIGHT[chinese, kind] for chinese, kind, _ in mined["groups"]])
        group: Tensor = mined["group"]
        counts = torch.bincount(group, minlength=len(weight)).float()
        # Within a kind, sources weigh by the root of their size, so that small ones are heard.
        totals: dict[tuple[bool, str], float] = {}
        for number, (chinese, kind, _) in enumerate(mined["groups"]):
            totals[chinese, kind] = totals.get((chinese, kind), 0.0) + float(counts[number]) ** 0.5
        for number, (chinese, kind, _) in enumerate(mined["groups"]):
            weight[number] *= counts[number] ** 0.5 / totals[chinese, kind] / counts[number]
        # A class of passages may hold none of a language: its queries are not drawn there.
        known = mined["candidates"][:, :, 1] >= 0
        self.cumulative = (weight[group].double() * known).cumsum(1).to(device)
        self.spellings = torch.tensor(spellings, device=device).cumsum(0)
        self.styles = torch.tensor(styles, device=device).cumsum(0)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device, generator=self.generator)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, device=self.device, generator=self.generator)

    def rows_of(self, values: str, starts: str, numbers: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Rows of a ragged vector: contents (.., width), whose end is arbitrary, and lengths (..)."""
        begin = self.data[starts][numbers]
        lengths = (self.data[starts][numbers + 1] - begin).clamp(max=width)
        index = begin[..., None] + torch.arange(width, device=self.device)
        return self.data[values][index.clamp(max=len(self.data[values]) - 1)].long(), lengths

    def _columns(self, has_positive: Tensor, documents: int) -> Tensor:
        """Columns of the candidate table: the positive (or a random passage), neighbours and random passages."""
        rows = len(has_positive)
        dense, lexical = documents * 5 // 16, documents // 2
        random = documents - 1 - dense - lexical
        parts = [
            self.rand(rows, POOL).argsort(1)[:, :dense] + 1,
            self.rand(rows, POOL).argsort(1)[:, :lexical] + 1 + POOL,
            self.rand(rows, RANDOM).argsort(1)[:, : random + 1] + 1 + 2 * POOL,
        ]
        columns = torch.cat(parts, 1)
        columns[:, -1] = torch.where(has_positive, 0, columns[:, -1])
        return columns

    def _without_own(self, columns: Tensor, candidates: Tensor) -> Tensor:
        """In a share of the rows the positive, also where it is its own neighbour, gives way to random passages.

        Next to the passage that a query was made of, the listwise loss hardly sees how the others differ.
        """
        own = candidates.gather(1, columns) == candidates[:, :1]
        chosen = self.rand(len(columns), 1) < self.neighbours_share
        other = 1 + 2 * POOL + self.integers(RANDOM, *columns.shape)
        return torch.where(own & chosen, other, columns)

    def natural(self, layout: RowLayout, rows: int, size_class: int) -> Batch:
        cumulative = self.cumulative[size_class]
        spot = self.rand(rows).double() * cumulative[-1]
        query = torch.searchsorted(cumulative, spot, right=True).clamp(max=len(cumulative) - 1)
        candidates = self.data["candidates"][size_class]
        has_positive = candidates[query, 0] >= 0
        columns = self._columns(has_positive, layout.documents)
        if self.neighbours_share:
            columns = self._without_own(columns, candidates[query])
        numbers = candidates[query[:, None], columns].long().clamp(min=0)
        targets = self.data["targets"][size_class][query[:, None], columns].float()
        language = self.data["query_language"][query][:, None]
        numbers, targets, foreign = self._foreign(language, numbers, targets)
        variant = torch.searchsorted(self.spellings, self.rand(rows), right=True).clamp(max=HEAD_VARIANTS - 1)
        batch = self._spelt(layout, query, numbers, targets, variant, self._styles(rows, layout.documents))
        first = torch.zeros_like(variant)
        batch.clean = self._spelt(layout, query, numbers, targets, first, torch.zeros_like(numbers), clean=True)
        batch.taught = (language != OTHER) & ~foreign
        batch.added = self.data["penalty"][numbers]
        batch.sign = torch.where(variant == CONTRADICTING, -1.0, 1.0)[:, None]
        return batch

    def _foreign(self, language: Tensor, numbers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """In some rows the last passage gives way to one in another language: nothing of it answers the query."""
        known = self.data["unit_language"]
        other = self.integers(len(known), len(numbers))
        chosen = (self.rand(len(numbers)) < FOREIGN_SHARE) & (known[other] != language[:, 0])
        foreign = torch.zeros_like(numbers, dtype=torch.bool)
        foreign[:, -2] = chosen  # the last column is the query's own passage
        return torch.where(foreign, other[:, None], numbers), torch.where(foreign, FOREIGN_TARGET, targets), foreign

    def _styles(self, rows: int, documents: int) -> Tensor:
        """Which of its spellings every passage is shown in: (rows, documents)."""
        style = torch.searchsorted(self.styles, self.rand(rows), right=True)[:, None]
        mixed = self.integers(DOCUMENT_VARIANTS, rows, documents)
        return torch.where(style < DOCUMENT_VARIANTS, style.expand(-1, documents), mixed)

    def _spelt(
        self,
        layout: RowLayout,
        query: Tensor,
        numbers: Tensor,
        targets: Tensor,
        variant: Tensor,
        styles: Tensor,
        *,
        clean: bool = False,
    ) -> Batch:
        heads, head_lengths = self.rows_of("heads", "head_starts", query * HEAD_VARIANTS + variant, layout.head)
        room = layout.slot - len(self.suffix)
        spelt = numbers * DOCUMENT_VARIANTS + styles
        contents, lengths = self.rows_of("documents", "document_starts", spelt, room)
        if self.renamed_share and not clean:
            # Another prompt begins with other tokens: such a row stays as it is.
            renamed = (self.rand(len(query)) < self.renamed_share) & (variant < RENAMEABLE)
            heads, contents = self.rename(renamed, heads, head_lengths, contents)
        return self.assemble(layout, heads, head_lengths, contents, lengths, targets)

    def rename(self, chosen: Tensor, heads: Tensor, head_lengths: Tensor, contents: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and passages of the chosen rows under other names.

        What matches still matches, but a word is no longer known by its passage, nor a passage by its words.
        """
        names = self.new_names(RENAMED_TOKENS)
        place = torch.arange(heads.shape[1], device=self.device)
        query = (place >= len(self.prefix)) & (place < head_lengths[:, None] - len(self.ending))
        heads = torch.where(chosen[:, None] & query, names[heads], heads)
        return heads, torch.where(chosen[:, None, None], names[contents], contents)

    def new_names(self, share: float) -> Tensor:
        """A name (vocabulary,) for every token: a random `share` of the ordinary ones exchange theirs."""
        exchanged = torch.nonzero(self.rand(self.ordinary) < share).flatten()
        names = torch.arange(self.vocabulary, device=self.device)
        names[exchanged] = exchanged[self.rand(len(exchanged)).argsort()]
        return names

    def assemble(
        self, layout: RowLayout, heads: Tensor, head_lengths: Tensor, contents: Tensor, lengths: Tensor, targets: Tensor
    ) -> Batch:
        head_place = torch.arange(layout.head, device=self.device)
        head = torch.where(head_place < head_lengths[:, None], heads, self.padding)
        padded = torch.nn.functional.pad(contents, (0, len(self.suffix)))
        slots = fill_slots(padded, lengths, self.suffix, layout.slot, self.padding)
        place = torch.arange(layout.slot, device=self.device).repeat(layout.documents)
        positions = torch.cat(
            [torch.arange(layout.head, device=self.device).expand(len(head), -1), head_lengths[:, None] + place], 1
        )
        first = layout.head + layout.slot * torch.arange(layout.documents, device=self.device)
        readouts = first + lengths + len(self.suffix) - 1
        return Batch(torch.cat([head, slots.flatten(1)], 1), positions, head_lengths, readouts, targets)
