"""One process a GPU: the ranks that torchrun starts agree on the progress and average their gradients.

Weights are equal at the start, and every rank takes the same step with the same gradients, so they stay equal.
Without torchrun there is one rank, and nothing is exchanged.
"""

import os

import torch
from torch import Tensor, distributed, nn


class Ranks:
    def __init__(self, device: str) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.number = int(os.environ.get("RANK", "0"))
        self.device = device
        if self.count > 1:
            if device.startswith("cuda"):
                # recipe.sh shows each process one GPU, torchrun alone shows all of them.
                self.device = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
                torch.cuda.set_device(self.device)
            distributed.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")

    @property
    def first(self) -> bool:
        return self.number == 0

    def meet(self) -> None:
        """Wait for every rank: kernels are compiled here in half a minute and there in two."""
        if self.count > 1:
            distributed.all_reduce(torch.zeros(1))

    def agree(self, progress: float, go_on: bool) -> tuple[float, bool]:
        """The first rank's progress, and whether it goes on: clocks differ, the schedule must not."""
        if self.count == 1:
            return progress, go_on
        values = torch.tensor([progress, float(go_on)], dtype=torch.float64)
        distributed.broadcast(values, 0)
        return float(values[0]), bool(values[1])

    def average(self, model: nn.Module) -> None:
        """Replace every gradient by its mean over the ranks."""
        if self.count == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.count
        means = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, mean in zip(gradients, means, strict=True):
            gradient.copy_(mean.view_as(gradient))

    def largest_difference(self, tensor: Tensor) -> float:
        """How far `tensor` is from the first rank's copy of it, at most, over all ranks."""
        if self.count == 1:
            return 0.0
        first = tensor.detach().clone()
        distributed.broadcast(first, 0)
        difference = (tensor.detach() - first).abs().max()
        distributed.all_reduce(difference, distributed.ReduceOp.MAX)
        return float(difference)

    def close(self) -> None:
        """Leave together: a rank that ends while the first still saves may take it along."""
        if self.count > 1:
            if self.device.startswith("cuda"):
                self.meet()  # a broadcast does not wait for every rank
            else:  # Gloo alone: acknowledged by every rank, or one of 16 runs ended in an abort after all was saved
                distributed.monitored_barrier()
            distributed.destroy_process_group()
