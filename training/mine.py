"""Encode with the teachers, choose and score candidates for every query, once, on the GPUs.

Passages form four classes by length (at most 63, 151, 391 and 1000 tokens). Each
query gets candidates of every class: its positive, dense and BM25 neighbours, and random passages. The target
of a pair is the logit of a logistic regression on the teachers' cosines and the BM25 coverage, fitted on the
labelled pairs, plus a bonus for known positives. Writes one `mined.pt` that training reads into GPU memory.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training.candidates import Facts, mine_candidates
from training.prompt import PromptTokens
from training.scoring import no_attention_plans
from training.sparse import TermIndex
from training.stage import stage_log, stage_parser
from training.teacher import Teacher, load_teacher
from training.trim_tokenizer import SPECIAL_TOKENS

EMBEDDING_SIZE = 256


def vectors_of(teachers: list[Teacher], rows: tuple[Tensor, Tensor]) -> Tensor:
    """Unit vectors of every row by copies of one teacher, on the first one's device; zeros where there are no ids."""
    values, starts = rows
    known = torch.nonzero(starts.diff()).flatten()
    shares = [known[start :: len(teachers)] for start in range(len(teachers))]
    with ThreadPoolExecutor(len(teachers)) as pool:
        encoded = list(pool.map(lambda teacher, share: teacher.encode_rows(values, starts, share), teachers, shares))
    result = torch.zeros(len(starts) - 1, teachers[0].size, device=teachers[0].device, dtype=encoded[0].dtype)
    for share, part in zip(shares, encoded, strict=True):
        result[share.to(result.device)] = part.to(result.device)
    return result


def token_vectors(tokenizer: Tokenizer, teachers: list[tuple[Teacher, Tokenizer]], size: int, seed: int) -> Tensor:
    """Initial embeddings (tokens, size): principal components of the teachers' vectors of the token strings."""
    count = tokenizer.get_vocab_size()
    generator = torch.Generator().manual_seed(seed)
    result = torch.randn(count, size, generator=generator)
    strings = [tokenizer.decode([number]).strip() for number in range(count)]
    known = [n for n, text in enumerate(strings) if text and text.isascii() and "\ufffd" not in text]
    if teachers:
        read = [strings[n] for n in known]
        both = torch.cat(
            [teacher.encode([e.ids for e in own.encode_batch_fast(read)]).float() for teacher, own in teachers], 1
        )
        both = both - both.mean(0)
        _, _, basis = torch.linalg.svd(both, full_matrices=False)
        projected = both @ basis[:size].T
        # Half-whitened: the first components would otherwise drown the rest.
        projected = projected / projected.std(0).clamp(min=1e-6).sqrt()
        result[known] = functional.normalize(projected, dim=1).cpu() * math.sqrt(size)
    noise = torch.randn(count, size, generator=generator)
    return 0.1 * (result + 0.05 * noise)


def mine(read: Path, tokenizer_path: Path, teachers: list[Path], out: Path, devices: list[str], seed: int) -> None:
    log = stage_log("mine")
    torch.manual_seed(seed)
    no_attention_plans()
    found = torch.load(read, weights_only=True)
    terms, (ids, starts), teacher_ids = found["passages"]
    query_terms, (heads, head_starts), query_teacher_ids = found["queries"]
    if len(teacher_ids) != len(teachers):
        raise ValueError(
            f"{read} was read with {len(teacher_ids)} teachers' tokenizers, but {len(teachers)} are given; "
            "give the same --teacher options to training.read and training.mine"
        )
    index = TermIndex(terms, query_terms, devices[0])
    log(f"{len(ids)} document tokens, {len(index.vocabulary)} terms")

    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokens = PromptTokens(tokenizer)
    unit_vectors, query_vectors = [], []
    loaded = [load_teacher(folder, devices[0]) for folder in teachers]
    for number, (teacher, _) in enumerate(loaded):
        copies = [teacher, *(teacher.to(device) for device in devices[1:])]
        unit_vectors.append(vectors_of(copies, teacher_ids[number]))
        query_vectors.append(vectors_of(copies, query_teacher_ids[number]))
        log(f"encoded with {teachers[number].name}")
    embeddings = token_vectors(tokenizer, loaded, EMBEDDING_SIZE, seed)

    facts = Facts(**found["facts"])
    candidates, targets = mine_candidates(facts, index, unit_vectors, query_vectors, devices, log)
    torch.save(
        {
            "head_tokens": found["head_tokens"],
            "vocabulary": len(embeddings),
            "ordinary": len(embeddings) - len(SPECIAL_TOKENS),
            "heads": heads,
            "head_starts": head_starts,
            "documents": ids,
            "document_starts": starts,
            "candidates": candidates,
            "targets": targets.half(),
            "penalty": facts.penalty(),
            "unit_language": facts.unit_language,
            "query_language": facts.query_language,
            "group": found["group"],
            "groups": found["groups"],
            "prefix": tokens.prefix,
            "ending": tokens.ending,
            "suffix": tokens.suffix,
            "embeddings": embeddings,
            "token_counts": torch.bincount(ids.int(), minlength=len(embeddings)).float(),
        },
        out,
    )
    log(f"wrote {out}, {out.stat().st_size / 1e6:.0f} MB")


def every_device() -> list[str]:
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--read", type=Path, required=True, help="output of training.read")
    parser.add_argument("--device", help="without it every GPU, or the CPU")
    arguments = parser.parse_args()
    devices = [arguments.device] if arguments.device else every_device()
    mine(arguments.read, arguments.tokenizer, arguments.teachers, arguments.out, devices, arguments.seed)


if __name__ == "__main__":
    main()
