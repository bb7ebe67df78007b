"""Reading strictly: every option is known, every tensor is used or named as not needed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from smalti.errors import CheckpointError, ConfigError

LEGACY = "legacy_training"
# Options that say how latents lie in memory, or how ranks are kept equal, which ours always are.
ELSEWHERE: Mapping[str, Any] = {
    "channel_last": True,
    "accept_image_fmap": False,
    "accept_3d_fmap": False,
    "return_zeros_for_masked_padding": True,
    "sync_codebook": None,
    "sync_kmeans": True,
    "sync_affine_param": False,
    "manual_ema_update": False,
    "manual_in_place_optimizer_update": False,
}
REQUIRED = object()


class Options:
    """The options of one of their classes.

    Args:
        class_name: theirs.
        given: what the user passed to it.
        defaults: option -> default, or REQUIRED.

    Raises:
        ConfigError: if an option is unknown or a required one is missing.
    """

    def __init__(self, class_name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        known = {**defaults, LEGACY: False}
        if unknown := sorted(given.keys() - known.keys()):
            raise ConfigError(
                f"{class_name} has no option {', '.join(map(repr, unknown))}: known are {sorted(defaults)}"
            )
        self.class_name, self.values = class_name, {**known, **given}
        if missing := sorted(name for name, value in self.values.items() if value is REQUIRED):
            raise ConfigError(f"{class_name} needs the option {', '.join(map(repr, missing))}")

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def only(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """The values of the options that another class has too."""
        return {name: value for name, value in self.values.items() if name in names or name == LEGACY}

    def refuse(self, name: str, why: str) -> None:
        """Raises ConfigError about an option."""
        raise ConfigError(f"{self.class_name}: {name}={self.values[name]!r} {why}")


class State:
    """A state dict, of which every key must be used.

    Args:
        tensors: key -> tensor.
        prefix: of the keys that are looked at.
        used: keys that have been used; shared with the states of other prefixes.
    """

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str = "", used: set[str] | None = None) -> None:
        self.tensors, self.prefix, self.used = tensors, prefix, set() if used is None else used

    def under(self, prefix: str) -> State:
        """The part below a prefix."""
        return State(self.tensors, self.prefix + prefix, self.used)

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.tensors

    def take(self, name: str) -> Tensor:
        """A tensor, float32 if it is floating."""
        key = self.prefix + name
        if key not in self.tensors:
            raise CheckpointError(f"the state lacks {key}")
        self.used.add(key)
        tensor = self.tensors[key].detach()
        return tensor.float() if tensor.is_floating_point() else tensor

    def ignore(self, *names: str) -> None:
        """Marks keys that need not be there and that nothing is made of."""
        self.used.update(self.prefix + name for name in names)

    def below(self) -> dict[str, Tensor]:
        """All tensors under the prefix, by the rest of their names."""
        names = [key[len(self.prefix) :] for key in self.tensors if key.startswith(self.prefix)]
        return {name: self.take(name) for name in names}

    def linear(self, name: str, *, bias: bool = True) -> nn.Linear:
        """A linear layer."""
        weight = self.take(f"{name}.weight")
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias)
        with torch.no_grad():
            layer.weight.copy_(weight)
            if bias:
                layer.bias.copy_(self.take(f"{name}.bias"))
        return layer

    def load(self, module: nn.Module) -> nn.Module:
        """Fills a module, which must take all that lies under the prefix."""
        own = self.below()
        wrong = sorted(own.keys() ^ module.state_dict().keys())
        if wrong:
            raise CheckpointError(
                f"{self.prefix or 'the state'} and {type(module).__name__} differ in {', '.join(wrong)}"
            )
        module.load_state_dict(own)
        return module

    def finish(self) -> None:
        """Raises CheckpointError if a key was not used."""
        if left := sorted(self.tensors.keys() - self.used):
            raise CheckpointError(f"keys that mean nothing here: {', '.join(left)}")
