"""Muon for the matrices (orthogonalised momentum), AdamW for embeddings and norms."""

from typing import Any

import torch
from torch import Tensor, nn


def orthogonalise(gradients: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, by a quintic Newton-Schulz iteration: (count, rows, columns)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = gradients.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = (x.mT if tall else x).float()
    return orthogonal


class Optimiser:
    """One `step` for both parts; matrices of one shape are orthogonalised together."""

    def __init__(
        self, model: nn.Module, matrix_rate: float = 3e-3, other_rate: float = 2e-3, decay: float = 0.02
    ) -> None:
        self.matrix_rate, self.other_rate, self.decay = matrix_rate, other_rate, decay
        self.by_shape: dict[tuple[int, ...], list[nn.Parameter]] = {}
        others = []
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "embed" not in name:
                self.by_shape.setdefault(tuple(parameter.shape), []).append(parameter)
            else:
                others.append(parameter)
        self.momenta = {shape: torch.zeros(len(p), *shape, device=p[0].device) for shape, p in self.by_shape.items()}
        fused = others[0].is_cuda
        self.adam = torch.optim.AdamW(others, lr=other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """`factor` scales both learning rates (the schedule)."""
        for group in self.adam.param_groups:
            group["lr"] = self.other_rate * factor
        self.adam.step()
        self.adam.zero_grad()
        for shape, parameters in self.by_shape.items():
            gradients = torch.stack([p.grad for p in parameters])  # type: ignore[misc]
            momentum = self.momenta[shape]
            momentum.lerp_(gradients, 0.05)
            update = orthogonalise(gradients.lerp(momentum, 0.95))
            tensors: list[Tensor] = list(parameters)
            rate = self.matrix_rate * factor * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(tensors, 1 - self.matrix_rate * factor * self.decay)
            torch._foreach_add_(tensors, list(update), alpha=-rate)
            for parameter in parameters:
                parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Moments in bfloat16: a checkpoint must fit what one GPU call can hand back."""
        adam = self.adam.state_dict()
        small = {
            n: {k: v.bfloat16() if k != "step" else v for k, v in state.items()} for n, state in adam["state"].items()
        }
        return {"momenta": [m.bfloat16() for m in self.momenta.values()], "adam": {**adam, "state": small}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for momentum, saved in zip(self.momenta.values(), state["momenta"], strict=True):
            momentum.copy_(saved)
        self.adam.load_state_dict(state["adam"])
        for values in self.adam.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                values[name] = values[name].float()
