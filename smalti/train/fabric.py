"""Devices and ranks: one process, DDP, or FSDP, through Lightning Fabric."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from smalti.errors import ConfigError

STRATEGIES = ("ddp", "fsdp")
PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


def make_fabric(
    accelerator: str = "auto", devices: int = 1, nodes: int = 1, strategy: str = "ddp", precision: str = "fp32"
) -> Fabric:
    """A launched Fabric: further processes of this machine have been started when it returns.

    Args:
        accelerator: "auto", "cpu" or "cuda".
        devices: processes on this machine. Under torchrun they run already.
        nodes: machines.
        strategy: "ddp", or "fsdp"; with one process there is nothing to spread.
        precision: "fp32" or "bf16" (autocast).

    Raises:
        ConfigError: if there are no such devices.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if accelerator not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"accelerator must be auto, cpu or cuda, got {accelerator!r}")
    own = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    if accelerator == "cuda" and own == "cpu":
        raise ConfigError("accelerator cuda: this torch sees no GPU")
    if own == "cuda" and devices > torch.cuda.device_count():
        raise ConfigError(f"devices {devices}: this machine has {torch.cuda.device_count()} GPUs")
    spread: Strategy | str = "auto"
    if devices * nodes > 1:
        spread = DDPStrategy() if strategy == "ddp" else _fsdp(devices * nodes)
    fabric = Fabric(accelerator=own, devices=devices, num_nodes=nodes, strategy=spread, precision=PRECISIONS[precision])
    fabric.launch()
    return fabric


def _fsdp(ranks: int) -> ModelParallelStrategy:
    return ModelParallelStrategy(
        _shard, data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def _shard(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shards what learns by gradient over all ranks; frozen weights and EMA codebooks, which are set, stay whole."""
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # shards are cut from rows in memory; channels-last has none
    whole = {parameter for parameter in module.parameters() if not parameter.requires_grad}
    fully_shard(module, mesh=mesh["data_parallel"], ignored_params=whole)
    return module
