"""Check FlexAttention rows against the dense mask on this GPU and time a training step of every layout."""

import time

import torch

from training.batches import Batch
from training.model import ModelShape, RowLayout, TinyQwen3
from training.optim import Optimiser
from training.train import FULL_LAYOUTS, Trainer


def random_batch(layout: RowLayout, rows: int, vocabulary: int, device: str) -> Batch:
    head_lengths = torch.randint(layout.head // 2, layout.head + 1, (rows,), device=device)
    lengths = torch.randint(10, layout.slot + 1, (rows, layout.documents), device=device)
    place = torch.arange(layout.slot, device=device).repeat(layout.documents)
    head = torch.arange(layout.head, device=device).expand(rows, -1)
    first = layout.head + layout.slot * torch.arange(layout.documents, device=device)
    ids = torch.randint(vocabulary, (rows, layout.length), device=device)
    targets = 3 * torch.randn(rows, layout.documents, device=device)
    return Batch(ids, torch.cat([head, head_lengths[:, None] + place], 1), head_lengths, first + lengths - 1, targets)


def main() -> None:
    device = "cuda"
    torch.set_float32_matmul_precision("high")
    print(torch.cuda.get_device_name(), torch.__version__, flush=True)
    model = TinyQwen3(ModelShape()).to(device)
    model.initialise(None, 0)
    model.to(device)
    trainer = Trainer(model, 9693, 2152, FULL_LAYOUTS, device)
    optimiser = Optimiser(model)
    for size_class, (layout, rows) in enumerate(FULL_LAYOUTS):
        batch = random_batch(layout, rows, model.shape.vocab_size, device)
        began = time.time()
        trainer.backward(batch, size_class)
        torch.cuda.synchronize()
        compiled = time.time() - began
        flex_gradient = model.model.layers[2].self_attn.k_proj.weight.grad.clone()  # type: ignore[union-attr,operator]
        model.zero_grad()
        few = {name: value[:4] for name, value in vars(batch).items()}
        with torch.no_grad():
            trainer.head_lengths[size_class].copy_(batch.head_lengths)
            compiled_scores = torch.compile(trainer.scores, dynamic=False)
            flex = compiled_scores(batch.ids, batch.positions, batch.readouts, trainer.attends[size_class])[:4]
            dense = trainer.scores(few["ids"], few["positions"], few["readouts"], layout.dense(few["head_lengths"]))
        error = ((flex - dense).norm() / dense.norm()).item()
        for _ in range(3):
            trainer.backward(batch, size_class)
            optimiser.step(0.1)
        torch.cuda.synchronize()
        began = time.time()
        for _ in range(10):
            trainer.backward(batch, size_class)
        torch.cuda.synchronize()
        middle = time.time()
        for _ in range(10):
            optimiser.step(0.1)
            trainer.backward(batch, size_class)
        torch.cuda.synchronize()
        ended = time.time()
        seconds = (ended - middle) / 10
        print(
            f"{layout} rows {rows}: compile {compiled:.1f}s, flex-dense error {error:.4f}, "
            f"gradient norm {flex_gradient.norm():.3g}, backward {(middle - began) * 100:.1f} ms, "
            f"step {seconds * 1000:.1f} ms, "
            f"{rows * layout.documents / seconds:.0f} pairs/s, {rows * layout.length / seconds / 1e6:.2f} M tokens/s, "
            f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
