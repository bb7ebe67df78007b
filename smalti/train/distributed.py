"""What the loop needs of ranks and shards: whole states out, whole states in, gradients of small networks averaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from smalti.errors import ConfigError


def whole(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on its device; all ranks must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, `value`, on the device and in the shards of another one."""
    moved = value.to(tensor.device)
    return distribute_tensor(moved, tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else moved


def full(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor, on the CPU; all ranks must ask for it."""
    return whole(tensor).detach().cpu().clone()


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """The whole state dict."""
    return {name: full(tensor) for name, tensor in module.state_dict().items()}


@torch.no_grad()
def load_full_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Fills a module, sharded or not, from a whole state dict of the same names and shapes.

    Raises:
        ConfigError: if they are those of another network.
    """
    own = module.state_dict()
    other = own.keys() ^ state.keys() or {name for name in own if own[name].shape != state[name].shape}
    if other:
        names = ", ".join(sorted(other)[:8])
        raise ConfigError(f"the checkpoint is of another {type(module).__name__}: {names} differ in name or shape")
    for name, tensor in own.items():
        tensor.copy_(placed_like(tensor, state[name]))


def full_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of an optimizer."""
    return {
        name: _mapped(part, lambda each: full(each) if isinstance(each, Tensor) else each)
        for name, part in optimizer.state_dict().items()
    }


def load_full_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Fills an optimizer from `full_optimizer_state`, its shards where its parameters have them.

    Rates, decays and the like stay as they are now, because a resumed recipe may have changed them.

    Raises:
        ConfigError: if its parameters are grouped in another way, or learn by another rule.
    """
    own = optimizer.state_dict()["param_groups"]
    if _grouping(own) != _grouping(state["param_groups"]):
        changed = "rates, muon, decay_vectors, freeze"
        raise ConfigError(f"--resume: the optimizer's parameters are grouped otherwise ({changed})")
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    placed = {
        index: {
            name: placed_like(parameters[index], value) if isinstance(value, Tensor) and value.ndim else value
            for name, value in entry.items()
        }
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({"state": placed, "param_groups": own})


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """The mean over ranks of gradients that nothing else averages, in one message; a sharded gradient is left alone."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    gradients = [each.grad for each in parameters if each.grad is not None and not isinstance(each.grad, DTensor)]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, part in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators; ranks draw alike, so the first one's stands for all."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _grouping(groups: Iterable[Mapping[str, Any]]) -> list[tuple[Any, bool]]:
    """The parameters of each group, and whether Muon trains them; checkpoints older than Muon do not say."""
    return [(group["params"], group.get("momentum") is not None) for group in groups]


def _mapped(data: Any, change: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _mapped(value, change) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_mapped(value, change) for value in data]
    return change(data)
