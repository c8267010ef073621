"""The Muon optimizer in float32, for training small models on a CPU or a GPU.

torch.optim.Muon makes its products in bfloat16, which CPUs without bf16 instructions emulate
slowly, and knows neither GPT-2's fused query-key-value weight nor its (in, out) layout.
"""

from __future__ import annotations

import torch


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Brings the singular values of (..., m, n) matrices near 1 by five Newton-Schulz steps.

    The quintic's coefficients are those of Jordan et al., "Muon: An optimizer for hidden layers
    in neural networks" (2024).
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT.contiguous() if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (2.0315 * (a @ a) - 4.7750 * a) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):  # torch is not checked
    """Momentum whose step is made orthogonal; in f32, since CPUs without bf16 are a target.

    Weights are (out, in) or, with `inputs_first`, (in, out) as in GPT-2's Conv1D, where the fused
    query-key-value weight counts as three matrices.
    """

    def __init__(
        self, weights: list[torch.nn.Parameter], lr: float, weight_decay: float, *, inputs_first: bool
    ) -> None:
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self._inputs_first = inputs_first

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self) -> None:
        """Updates all weights once, those of one shape together; every one must have a gradient.

        The first weight of a shape holds the momentum of all of them.
        """
        for group in self.param_groups:
            shapes: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for weight in group["params"]:
                shapes.setdefault(weight.shape, []).append(weight)
            for (rows, columns), weights in shapes.items():
                gradients = torch.stack([weight.grad for weight in weights])
                state = self.state[weights[0]]
                velocity = state.setdefault("velocity", torch.zeros_like(gradients))
                velocity.lerp_(gradients, 1 - group["momentum"])
                ahead = gradients.lerp(velocity, group["momentum"])
                parts = 3 if self._inputs_first and columns == 3 * rows else 1
                split = ahead.view(len(weights), rows, parts, -1).transpose(1, 2).contiguous()
                update = orthogonalize(split).transpose(1, 2).reshape_as(ahead)
                shape = (columns / parts, rows) if self._inputs_first else (rows, columns)
                scale = -group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
                for weight, change in zip(weights, update, strict=True):
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(change, alpha=scale)
