"""Moving average of a model's weights: steadier than the weights themselves, and what is saved."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

FORGET = 9  # the first update keeps a tenth of the random start


class Average:
    """An exponential moving average of every floating tensor of a module's state.

    The decay grows to its value as 1 - 9 / (step + 9), so that random weights are forgotten at once. Statistics that a
    quantizer keeps are averages already and are left alone.

    Args:
        module: what is averaged; the tensors of its state must stay the same objects.
        decay: of the average.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.shadow = {name: tensor.detach().clone() for name, tensor in self._live().items()}

    def _live(self) -> dict[str, Tensor]:
        statistics = {
            f"{path}.{name}" if path else name
            for path, module in self.module.named_modules()
            for name in getattr(module, "statistics", ())
        }
        state = self.module.state_dict()
        return {name: each for name, each in state.items() if each.is_floating_point() and name not in statistics}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves towards the module's weights; `step` counts from 1."""
        weight = 1 - min(self.decay, 1 - FORGET / (step + FORGET))
        live = self._live()
        for sharded in (False, True):  # one call takes tensors of one kind
            names = [name for name, tensor in self.shadow.items() if isinstance(tensor, DTensor) is sharded]
            if names:
                torch._foreach_lerp_([self.shadow[name] for name in names], [live[name] for name in names], weight)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the average and the module's weights; a second call undoes it."""
        for name, live in self._live().items():
            kept = live.clone()
            live.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over a saved average."""
        for name, tensor in self.shadow.items():
            tensor.copy_(state[name])
