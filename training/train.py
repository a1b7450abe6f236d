"""Train the reranker on the mined tensors; stop by the clock, save everything, resume.

The schedule follows the share of the total training time that has passed (over all calls): 64-token documents
first, then up to 160, 400 and 1000 tokens, the learning rate constant and then linearly down to zero. Every fourth
step is a lexical one. The weights of every evaluation in the second half are kept, for selection. With --steps
instead of --total-seconds the schedule counts steps and a run repeats exactly on the CPU.
`torchrun --standalone --nproc-per-node 4 -m training.train ...` trains four batches a step on four GPUs.
"""

import argparse
import io
import json
import math
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from training.batches import SPELLINGS, STYLES, Batch, Sampler
from training.lexical import LexicalStream
from training.model import Attend, ModelShape, RowLayout, TinyQwen3
from training.optim import Optimiser
from training.passages import DOCUMENT_VARIANTS, HEAD_TOKENS, HEAD_VARIANTS
from training.perturb import perturbed
from training.prompt import PromptTokens, token_id
from training.ranks import Ranks
from training.scoring import margins, no_attention_plans, quick_ndcg, read_lists

TEMPERATURE = 0.5
LEXICAL_EVERY = 4
PART_BYTES = 15_000_000  # a GPU call hands back files of at most 16 MiB
# (layout, rows, share of each class of documents by progress); FULL on a GPU, SMOKE in tests.
FULL_LAYOUTS = (
    (RowLayout(HEAD_TOKENS, 16, 72), 112),
    (RowLayout(HEAD_TOKENS, 16, 160), 56),
    (RowLayout(HEAD_TOKENS, 8, 400), 44),
    (RowLayout(HEAD_TOKENS, 4, 1024), 36),
)
SMOKE_LAYOUTS = (
    (RowLayout(HEAD_TOKENS, 2, 72), 2),
    (RowLayout(HEAD_TOKENS, 2, 160), 1),
    (RowLayout(HEAD_TOKENS, 2, 400), 1),
    (RowLayout(HEAD_TOKENS, 2, 1024), 1),
)
PHASES = {
    "fresh": ((0.30, (1.0, 0.0, 0.0, 0.0)), (0.55, (0.4, 0.6, 0.0, 0.0)), (1.01, (0.2, 0.3, 0.35, 0.15))),
    "continued": ((1.01, (0.2, 0.3, 0.35, 0.15)),),  # of weights that know short passages
}


def learning_rate(progress: float) -> float:
    """Factor of the learning rates: warm up, stay until 40 %, fall linearly to zero."""
    return min(1.0, progress / 0.01 + 0.02, max(0.0, (1.0 - progress) / 0.6))


def choose_class(progress: float, step: int, phases: str) -> int:
    """Which length class a step trains; the shares repeat in a fixed pattern of 20 steps."""
    shares = next(shares for end, shares in PHASES[phases] if progress < end)
    spot = (step * 7 % 20) / 20
    ends = [sum(shares[: number + 1]) - 1e-9 for number in range(len(shares))]
    return next((number for number, end in enumerate(ends) if spot < end), len(shares) - 1)


class Trainer:
    def __init__(
        self,
        model: TinyQwen3,
        yes: int,
        no: int,
        layouts: tuple[tuple[RowLayout, int], ...],
        device: str,
        dropout: float = 0.0,
        squared_error: float = 0.0,
        shift: float = 0.0,
    ) -> None:
        self.model, self.yes, self.no, self.layouts = model, yes, no, layouts
        self.dropout, self.squared_error = dropout, squared_error
        self.cuda = device.startswith("cuda")
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.head_lengths = [torch.ones(rows, dtype=torch.long, device=device) for _, rows in layouts]
        self.attends: list[Attend] = []
        for (layout, _), lengths in zip(layouts, self.head_lengths, strict=True):
            self.attends.append(layout.flex(lengths) if self.cuda else layout.dense(lengths))
        self._loss = torch.compile(self.loss, dynamic=False) if self.cuda else self.loss
        self.teacher: TinyQwen3 | None = None
        self.teacher_weight, self.shift = 0.0, shift

    def learn_from(self, teacher: TinyQwen3, weight: float) -> None:
        """Mix the teacher's margins of the clean rows into the targets by `weight`."""
        self.teacher, self.teacher_weight = teacher.eval().requires_grad_(False), weight
        self._teach = torch.compile(self.teach, dynamic=False) if self.cuda else self.teach

    @torch.no_grad()
    def teach(self, ids: Tensor, positions: Tensor, readouts: Tensor, attend: Attend) -> Tensor:
        """The teacher's margins (rows, documents)."""
        if self.teacher is None:
            raise RuntimeError("no teacher was given; call learn_from first")
        states = self.teacher.hidden(ids, positions, attend, self.dtype)
        logits = self.teacher.logits(states.gather(1, readouts[..., None].expand(-1, -1, states.shape[-1])))
        return logits[..., self.yes] - logits[..., self.no]

    def scores(self, ids: Tensor, positions: Tensor, readouts: Tensor, attend: Attend, dropout: float = 0.0) -> Tensor:
        """Logits (rows, documents, vocabulary) at the answer places."""
        states = self.model.hidden(ids, positions, attend, self.dtype, dropout)
        index = readouts[..., None].expand(-1, -1, states.shape[-1])
        return self.model.logits(states.gather(1, index))

    def loss(
        self, ids: Tensor, positions: Tensor, readouts: Tensor, targets: Tensor, attend: Attend
    ) -> tuple[Tensor, Tensor]:
        """(loss, its three parts): listwise KL + 0.3 binary cross-entropy + 0.1 mass outside yes and no.

        `squared_error` weighs the distance of margins and targets within a row, squared near zero: MarginMSE
        (Hofstaetter et al., 2020, arXiv:2010.02666) for all pairs of a row at once.
        """
        logits = self.scores(ids, positions, readouts, attend, self.dropout)
        labels = torch.stack([logits[..., self.yes], logits[..., self.no]])
        margin = labels[0] - labels[1]
        wanted = (targets / TEMPERATURE).softmax(-1)
        listwise = (wanted * (wanted.clamp(min=1e-9).log() - (margin / TEMPERATURE).log_softmax(-1))).sum(-1).mean()
        binary = functional.binary_cross_entropy_with_logits(margin, targets.sigmoid())
        outside = (logits.logsumexp(-1) - labels.logsumexp(0)).mean()
        loss = listwise + 0.3 * binary + 0.1 * outside
        if self.squared_error:
            given, due = margin - margin.mean(-1, keepdim=True), targets - targets.mean(-1, keepdim=True)
            loss = loss + self.squared_error * functional.smooth_l1_loss(given, due)
        return loss, torch.stack([listwise, binary, outside]).detach()

    def backward(self, batch: Batch, size_class: int) -> Tensor:
        attend, margins = self.attends[size_class], None
        if batch.clean is not None and self.teacher is not None:
            clean = batch.clean
            self.head_lengths[size_class].copy_(clean.head_lengths)
            margins = self._teach(clean.ids, clean.positions, clean.readouts, attend)
        targets = batch.final_targets(margins, self.teacher_weight, self.shift)
        self.head_lengths[size_class].copy_(batch.head_lengths)
        loss, parts = self._loss(batch.ids, batch.positions, batch.readouts, targets, attend)
        loss.backward()  # type: ignore[no-untyped-call]
        return parts


class DevSet:
    """Tokenised candidate lists for checkpoint selection while training, their queries in a spelling of `perturb`."""

    def __init__(self, path: Path, tokens: PromptTokens, limit: int, spelling: str | None = None) -> None:
        self.name = path.name.split(".")[0] + (f" {spelling}" if spelling else "")
        self.rows = read_lists(path, limit)
        rng = random.Random(0)
        queries = [row["query"] for row in self.rows]
        heads = tokens.heads([perturbed(query, spelling, rng) for query in queries] if spelling else queries)
        self.prompts = [
            head + document + tokens.suffix
            for row, head in zip(self.rows, heads, strict=True)
            for document in tokens.documents([doc["text"] for doc in row["docs"]], 1024)
        ]

    def measure(self, trainer: Trainer) -> dict[str, float]:
        """nDCG@10, mean P(yes) of documents that are not relevant, and the median share of P(yes) above .9."""
        found = margins(trainer.model, self.prompts, trainer.yes, trainer.no, trainer.dtype)
        values = iter(found.tolist())
        ndcg = quick_ndcg(self.rows, [[next(values) for _ in row["docs"]] for row in self.rows])
        other = torch.tensor([(doc["rel"] or 0) <= 0 for row in self.rows for doc in row["docs"]])
        lists = torch.split(found, [len(row["docs"]) for row in self.rows])
        above = torch.stack([part.sigmoid().gt(0.9).float().mean() for part in lists])
        named = {"": ndcg, " P other": float(found.sigmoid()[other].mean()), " above .9": float(above.median())}
        return {self.name + name: round(value, 4) for name, value in named.items()}


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint in parts, the last part last, so that a cut-off write is noticed."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)
    parts = range(0, len(data), PART_BYTES)
    written = []
    for number, start in enumerate(parts):
        written.append(folder / f"new.{number}of{len(parts)}")
        written[-1].write_bytes(data[start : start + PART_BYTES])
    for old in folder.glob("state.*"):
        old.unlink()
    for path in written:
        path.rename(path.with_name(path.name.replace("new", "state")))


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """The model's weights alone, in bfloat16 as they ship."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.to(torch.bfloat16).contiguous().cpu() for name, weight in state.items()}
    save_file(weights, str(path), metadata={"format": "pt"})


def load(folder: Path, device: str) -> dict[str, Any] | None:
    parts = sorted(folder.glob("state.*"), key=lambda path: int(path.suffix[1:].split("of")[0]))
    if not parts:
        return None
    if len(parts) != int(parts[0].suffix.split("of")[1]):
        raise ValueError(f"{folder} holds an incomplete checkpoint; take the previous call's")
    data = b"".join(path.read_bytes() for path in parts)
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device)
    return state


class Session:
    """One call of training: what was restored, the clock, and what is written down."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.ranks = Ranks(arguments.device)
        device = self.ranks.device
        mined = torch.load(arguments.mined, weights_only=True)
        tokenizer = Tokenizer.from_file(str(arguments.tokenizer))
        small = arguments.smoke and arguments.start_from is None
        shape = {"num_hidden_layers": 2, "intermediate_size": 128} if small else {}
        model = TinyQwen3(ModelShape(vocab_size=tokenizer.get_vocab_size(), **shape))
        model.initialise(mined["embeddings"], arguments.seed)
        model.to(device)
        self.optimiser = Optimiser(model, arguments.matrix_rate, arguments.other_rate)
        layouts = SMOKE_LAYOUTS if arguments.smoke else FULL_LAYOUTS
        self.layouts = tuple((replace(layout, head=int(mined["head_tokens"])), rows) for layout, rows in layouts)
        labels = token_id(tokenizer, "yes"), token_id(tokenizer, "no")
        self.trainer = Trainer(
            model, *labels, self.layouts, device, arguments.dropout, arguments.squared_error, arguments.shift
        )
        if arguments.teacher_from is not None:
            teacher = TinyQwen3(model.shape)
            weights = load_file(arguments.teacher_from / "model.safetensors")
            teacher.load_state_dict({name: weight.float() for name, weight in weights.items()})
            self.trainer.learn_from(teacher.to(device), arguments.teacher_weight)
        state = load(arguments.checkpoint, device) or {"step": 0, "seconds": 0.0, "pairs": 0, "history": []}
        if "model" in state:
            model.load_state_dict(state["model"])
            self.optimiser.load_state_dict(state["optimiser"])
        elif arguments.start_from is not None:
            weights = load_file(arguments.start_from / "model.safetensors")
            model.load_state_dict({name: weight.float() for name, weight in weights.items()})
        self.step, self.pairs = int(state["step"]), int(state["pairs"])
        torch.manual_seed(arguments.seed + self.step)  # dropout
        self.history: list[dict[str, Any]] = list(state["history"])
        self.seconds_before = float(state["seconds"])
        # Another seed in every call and rank, or a resumed run would repeat the batches of the first.
        seed = arguments.seed + self.step + 1_000_003 * self.ranks.number
        padding = token_id(tokenizer, "<|endoftext|>")
        forms = arguments.spellings, arguments.styles
        self.sampler = Sampler(mined, device, seed, padding, arguments.renamed, arguments.neighbours, *forms)
        self.lexical = LexicalStream(self.sampler, mined["token_counts"])
        self.dev = [
            DevSet(path, PromptTokens(tokenizer), arguments.dev_queries, spelling)
            for path in arguments.dev
            for spelling in (None, *arguments.dev_spelling)
        ]
        self.sums: dict[str, list[Tensor]] = {}
        if self.trainer.cuda:
            self._compile()
        self.ranks.meet()
        self.begun = time.time()

    def _compile(self) -> None:
        """Compile every layout before the clock starts: it takes 20 s each on a fresh machine, no learning."""
        for size_class, (layout, rows) in enumerate(self.layouts):
            self.trainer.backward(self.sampler.natural(layout, rows, size_class), size_class)
        self.trainer.model.zero_grad()
        torch.cuda.synchronize()

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.time() - self.begun

    @property
    def progress(self) -> float:
        steps: int = self.arguments.steps
        return self.step / steps if steps else self.seconds / float(self.arguments.total_seconds)

    def train_step(self, progress: float) -> None:
        size_class = choose_class(progress, self.step, self.arguments.phases)
        layout, rows = self.layouts[size_class]
        own_targets = self.trainer.teacher_weight < 1  # the lexical rows' targets are not a teacher's
        is_lexical = own_targets and self.step % LEXICAL_EVERY == LEXICAL_EVERY - 1
        batch = self.lexical.batch(layout, rows) if is_lexical else self.sampler.natural(layout, rows, size_class)
        parts = self.trainer.backward(batch, size_class)
        self.ranks.average(self.trainer.model)
        self.optimiser.step(learning_rate(progress))
        self.sums.setdefault(f"{'lexical' if is_lexical else 'natural'}{size_class}", []).append(parts)
        self.step, self.pairs = self.step + 1, self.pairs + rows * layout.documents * self.ranks.count

    def log(self) -> None:
        """Print the mean loss parts (listwise, binary, outside) of every stream since the last line."""
        means = {name: torch.stack(parts).mean(0).tolist() for name, parts in sorted(self.sums.items())}
        shown = {name: [round(value, 3) for value in values] for name, values in means.items()}
        where = f"{self.step} steps, {self.pairs} pairs, {self.pairs / self.seconds:.0f}/s"
        print(f"[train {self.seconds:5.0f}s {self.progress:.3f}] {where} {shown}", flush=True)
        if not all(math.isfinite(value) for values in means.values() for value in values):
            raise FloatingPointError("the loss is not finite; resume from the last checkpoint with another seed")
        self.sums = {}

    def evaluate(self) -> None:
        found = {name: value for dev in self.dev for name, value in dev.measure(self.trainer).items()}
        self.history.append({"step": self.step, "seconds": round(self.seconds, 1), "pairs": self.pairs, **found})
        print(f"[dev] {self.history[-1]}", flush=True)
        if 0.5 < self.progress < 1:
            kept = self.arguments.checkpoint / f"weights-{self.step}.safetensors"
            save_weights(self.trainer.model.state_dict(), kept)

    def save(self) -> None:
        state = {
            "model": self.trainer.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "shape": self.trainer.model.shape.as_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "pairs": self.pairs,
            "history": self.history,
        }
        save(self.arguments.checkpoint, state)
        text = json.dumps(self.history, indent=1) + "\n"
        (self.arguments.checkpoint / "history.json").write_text(text, "utf-8")


def train(arguments: argparse.Namespace) -> None:
    started = time.time()
    torch.set_float32_matmul_precision("high")
    no_attention_plans()
    session = Session(arguments)
    print(f"[train] ready after {time.time() - started:.1f}s, step {session.step}", flush=True)
    periods = {"log": arguments.log_seconds, "evaluate": arguments.eval_seconds, "save": arguments.save_seconds}
    last = dict.fromkeys(periods, time.time())
    while True:
        progress, go_on = session.ranks.agree(
            session.progress, session.progress < 1 and time.time() - started < arguments.seconds
        )
        if not go_on:
            break
        session.train_step(progress)
        for name, period in periods.items():
            if session.ranks.first and time.time() - last[name] > period:
                getattr(session, name)()
                last[name] = time.time()
    apart = session.ranks.largest_difference(torch.cat([p.flatten() for p in session.trainer.model.parameters()]))
    if session.ranks.first:
        print(f"[train] weights of {session.ranks.count} ranks differ by {apart:.2g} at most", flush=True)
        session.log()
        session.evaluate()
        session.save()
    session.ranks.close()


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mined", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="trimmed tokenizer.json")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder to resume from and save to")
    parser.add_argument(
        "--start-from", type=Path, help="exported model folder to begin with where no checkpoint exists"
    )
    parser.add_argument("--dev", type=Path, action="append", default=[], help="candidate lists for selection")
    parser.add_argument("--dev-queries", type=int, default=60)
    parser.add_argument("--dev-spelling", action="append", default=[], help="of their queries too: upper, title ..")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop this call after so many seconds")
    parser.add_argument("--total-seconds", type=float, default=1500.0, help="training seconds of all calls together")
    parser.add_argument("--steps", type=int, default=0, help="train so many steps instead of --total-seconds")
    parser.add_argument("--log-seconds", type=float, default=10.0)
    parser.add_argument("--eval-seconds", type=float, default=120.0)
    parser.add_argument("--save-seconds", type=float, default=120.0)
    parser.add_argument("--phases", choices=PHASES, default="fresh", help="which lengths are trained when")
    parser.add_argument("--dropout", type=float, default=0.0, help="of what each layer adds")
    parser.add_argument("--renamed", type=float, default=0.0, help="share of rows with part of the vocabulary renamed")
    parser.add_argument("--neighbours", type=float, default=0.0, help="share of rows without the query's own passage")
    parser.add_argument("--squared-error", type=float, default=0.0, help="weight of margins' distance from the targets")
    parser.add_argument("--teacher-from", type=Path, help="exported model whose margins of clean rows are targets too")
    parser.add_argument("--teacher-weight", type=float, default=0.5, help="its share of the targets; 1: nothing else")
    parser.add_argument(
        "--spellings", type=float, nargs=HEAD_VARIANTS, default=SPELLINGS, help="shares of the queries' forms"
    )
    parser.add_argument(
        "--styles", type=float, nargs=DOCUMENT_VARIANTS + 1, default=STYLES, help="of the passages' forms; last: mixed"
    )
    parser.add_argument("--shift", type=float, default=0.0, help="added to the targets, so that few are near 1")
    parser.add_argument("--matrix-rate", type=float, default=3e-3, help="Muon's highest learning rate")
    parser.add_argument("--other-rate", type=float, default=2e-3, help="AdamW's, for embeddings and norms")
    parser.add_argument(
        "--smoke", action="store_true", help="tiny rows and two layers (without --start-from), for the CPU"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


if __name__ == "__main__":
    train(parse())
