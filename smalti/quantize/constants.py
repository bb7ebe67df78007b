"""Numbers that belong to a method, not to a model: they move with the module and keep every bit.

`module.half()` would round float buffers, and with them the codes. So float64 numbers are kept as the integers that
have their bits, which no change of a module's type touches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def keep(module: nn.Module, name: str, numbers: Sequence[float] | Tensor) -> None:
    """Stores numbers under a module's buffer `name`; it is not part of the state dict."""
    module.register_buffer(name, torch.as_tensor(numbers, dtype=torch.float64).contiguous().view(torch.int64), False)


def kept(buffer: Tensor) -> Tensor:
    """The float64 numbers of a buffer that `keep` made."""
    return buffer.view(torch.float64)
