"""BM25 over all passages as sparse matrices on the GPU; terms are hashed in worker processes."""

import copy
import warnings
import zlib

import numpy as np
import torch
from torch import Tensor

from training.texts import terms


def hashed_terms(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(CRC-32 of every term, terms of every text): a few collisions among 300,000 terms change nothing."""
    found = [[zlib.crc32(term.encode()) for term in terms(text)] for text in texts]
    return np.array([code for codes in found for code in codes], dtype=np.int64), np.array(
        [len(codes) for codes in found], dtype=np.int32
    )


def flatten(rows: tuple[Tensor, Tensor], device: str) -> tuple[Tensor, Tensor]:
    """(row number, value) of every element of (values, starts)."""
    values, starts = rows
    lengths = starts.diff().to(device)
    return torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths), values.to(device)


class TermIndex:
    """Term counts of all passages, for the terms that some query asks for."""

    def __init__(self, passages: tuple[Tensor, Tensor], queries: tuple[Tensor, Tensor], device: str) -> None:
        self.device = device
        self.query_row, query_values = flatten(queries, device)
        self.vocabulary = torch.unique(query_values)
        self.query_term = torch.searchsorted(self.vocabulary, query_values)
        row, values = flatten(passages, device)
        self.lengths = torch.bincount(row, minlength=len(passages[1]) - 1).float()
        place = torch.searchsorted(self.vocabulary, values).clamp(max=len(self.vocabulary) - 1)
        asked = self.vocabulary[place] == values
        key, self.count = torch.unique(row[asked] * len(self.vocabulary) + place[asked], return_counts=True)
        self.row, self.term = key // len(self.vocabulary), key % len(self.vocabulary)
        frequency = torch.bincount(self.term, minlength=len(self.vocabulary))
        self.idf = torch.log(1 + (len(self.lengths) - frequency + 0.5) / (frequency + 0.5))

    def to(self, device: str) -> "TermIndex":
        """A copy on another device, for mining on several."""
        moved = copy.copy(self)
        moved.device = device
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device))
        return moved

    def weights(self, passages: Tensor) -> Tensor:
        """BM25 weights (passages, terms) as CSR; `passages` are sorted numbers; k1 = 0.9, b = 0.4."""
        place = torch.full_like(self.lengths, -1, dtype=torch.long)
        place[passages] = torch.arange(len(passages), device=self.device)
        inside = place[self.row] >= 0
        row, term, count = place[self.row[inside]], self.term[inside], self.count[inside].float()
        lengths = self.lengths[passages]
        norm = 0.9 * (0.6 + 0.4 * lengths / lengths.mean().clamp(min=1))
        starts = torch.zeros(len(passages) + 1, dtype=torch.long, device=self.device)
        starts[1:] = torch.bincount(row, minlength=len(passages)).cumsum(0)
        values = self.idf[term] * count * 1.9 / (count + norm[row])
        shape = (len(passages), len(self.vocabulary))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")
            return torch.sparse_csr_tensor(starts, term, values, size=shape, check_invariants=False)

    def questions(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """(terms, queries) with ones where a query asks for a term, and each query's largest possible score."""
        place = torch.full((int(self.query_row.max()) + 2,), -1, device=self.device)
        place[queries] = torch.arange(len(queries), device=self.device)
        inside = place[self.query_row] >= 0
        asked = torch.zeros(len(self.vocabulary), len(queries), device=self.device)
        asked[self.query_term[inside], place[self.query_row[inside]]] = 1.0
        return asked, 1.9 * (asked * self.idf[:, None]).sum(0).clamp(min=1e-3)
