"""Synthetic lexical-matching problems: which passage holds the words of the query?

Passages are real ones, half of them under a random renaming of the whole vocabulary, so that only matching can
help, never meaning. The query is cut from one passage; a random share of its words is planted in the
others. The target is the share of the query's words that a passage holds, weighted by their rarity.
"""

import torch
from torch import Tensor

from training.batches import Batch, Sampler
from training.model import RowLayout

WORDS = 12  # most words of a query; a passage is cut into as many segments, one for each planted word
WORD_TOKENS = 3
SLOPE, OFFSET = 10.0, -4.0  # from covered share to target logit, close to the fitted regression's


class LexicalStream:
    def __init__(self, sampler: Sampler, token_counts: Tensor) -> None:
        self.sampler = sampler
        counts = token_counts.to(sampler.device).float()
        self.rarity = torch.log(counts.sum() / (counts + 10)).clamp(min=0.5)
        lengths = sampler.data["document_starts"].diff()
        self.usable = torch.nonzero(lengths >= WORDS * (WORD_TOKENS + 1)).flatten()
        if not len(self.usable):
            raise ValueError("no passage is long enough for the lexical stream; give longer texts")

    def batch(self, layout: RowLayout, rows: int) -> Batch:
        sampler = self.sampler
        room = layout.slot - len(sampler.suffix)
        numbers = self.usable[sampler.integers(len(self.usable), rows, layout.documents)]
        contents, lengths = sampler.rows_of("documents", "document_starts", numbers, room)
        renamed = sampler.new_names(1.0)[contents]
        contents = torch.where(sampler.rand(rows, 1, 1) < 0.5, renamed, contents)

        # The query's words: spans of one to three tokens from segments of the first passage.
        segment = torch.arange(WORDS, device=sampler.device)
        asked = segment < 1 + sampler.integers(WORDS, rows, 1)
        width = 1 + sampler.integers(WORD_TOKENS, rows, WORDS)
        span = torch.arange(WORD_TOKENS, device=sampler.device)
        segment_length = (lengths // WORDS)[..., None]
        offset = (sampler.rand(rows, layout.documents, WORDS) * (segment_length - WORD_TOKENS + 1)).long()
        start = segment * segment_length + offset
        words = contents[:, 0].gather(1, (start[:, 0, :, None] + span).flatten(1)).view(rows, WORDS, WORD_TOKENS)
        inside = span < width[..., None]
        weight = (self.rarity[words] * inside).sum(-1) / width**0.5 * asked

        # Plant each word in each other passage with that passage's own probability.
        chance = sampler.rand(rows, layout.documents, 1)
        planted = (sampler.rand(rows, layout.documents, WORDS) < chance) & asked[:, None]
        planted[:, 0] = asked
        index = (start[..., None] + span).flatten(2)
        present = contents.gather(2, index).view(rows, layout.documents, WORDS, WORD_TOKENS)
        write = planted[..., None] & inside[:, None]
        contents = contents.scatter(2, index, torch.where(write, words[:, None], present).flatten(2))
        covered = (planted * weight[:, None]).sum(-1) / weight.sum(-1, keepdim=True)

        heads, head_lengths = self._heads(words, inside & asked[..., None], layout.head)
        targets = OFFSET + SLOPE * covered
        return sampler.assemble(layout, heads, head_lengths, contents, lengths, targets)

    def _heads(self, words: Tensor, kept: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Heads with the kept tokens in a row, the words in random order: ids (rows, width), lengths (rows,)."""
        rows = len(words)
        order = self.sampler.rand(rows, WORDS).argsort(1)[..., None].expand_as(words)
        flat, used = words.gather(1, order).flatten(1), kept.gather(1, order).flatten(1)
        packed = (~used).to(torch.int8).argsort(dim=1, stable=True)
        query, count = flat.gather(1, packed), used.sum(1)
        place = torch.arange(width, device=words.device)[None] - len(self.sampler.prefix)
        body = query.gather(1, place.clamp(0, query.shape[1] - 1).expand(rows, -1))
        ending = self.sampler.ending[(place - count[:, None]).clamp(0, len(self.sampler.ending) - 1)]
        head = torch.where(place < count[:, None], body, ending)
        start = self.sampler.prefix[torch.arange(width, device=words.device).clamp(max=len(self.sampler.prefix) - 1)]
        head = torch.where(place < 0, start, head)
        return head, count + len(self.sampler.prefix) + len(self.sampler.ending)
