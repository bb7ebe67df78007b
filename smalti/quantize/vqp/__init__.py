"""from_vqp: checkpoints of vector-quantize-pytorch as quantizers of ours.

    state = theirs.state_dict()
    from_vqp("ResidualVQ", {"dim": 128, ...}, state)  ──►  Residual(...): the same codes and vectors

`docs/from-vector-quantize-pytorch.md` says what each of their options becomes. Read from the maths of their version
1.31; nothing of theirs is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from smalti.errors import ConfigError
from smalti.quantize.base import Quantizer
from smalti.quantize.vqp import residual, scalars, vectors
from smalti.quantize.vqp.reading import LEGACY

READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], Quantizer]] = {
    **vectors.READERS,
    **residual.READERS,
    **scalars.READERS,
}


def from_vqp(
    class_name: str, options: Mapping[str, Any], state: Mapping[str, Tensor], *, legacy_training: bool = False
) -> Quantizer:
    """A quantizer from a checkpoint of vector-quantize-pytorch.

    Args:
        class_name: theirs, such as "ResidualVQ".
        options: what was passed to its constructor. Options about memory layout are taken and change nothing: ours are
            channels-last.
        state: its state dict, whole.
        legacy_training: train with the gradients and losses of theirs also where they are defects.

    Raises:
        ConfigError: for an unknown class or option, or options that exclude each other.
        CheckpointError: if keys are missing, or are left over.
    """
    if class_name not in READERS:
        raise ConfigError(
            f"no class {class_name!r} of vector-quantize-pytorch is read: choose one of {sorted(READERS)}"
        )
    if legacy_training:
        options = {**options, LEGACY: True}
    return READERS[class_name](options, state)
