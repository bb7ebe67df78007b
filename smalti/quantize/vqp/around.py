"""What vector-quantize-pytorch's scalar classes share: layouts, projections, rotations, residual levels, groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from smalti.quantize.base import Quantizer
from smalti.quantize.bounds import Turn
from smalti.quantize.dropout import Dropout
from smalti.quantize.parallel import Parallel
from smalti.quantize.residual import Residual
from smalti.quantize.vqp.reading import REQUIRED, Options, State

Given = Mapping[str, Any]
Around = tuple[list[nn.Module], list[nn.Module]]  # what stands before an alphabet and after it

# Options that say how latents lie in memory or what is returned.
LAYOUT: Given = dict.fromkeys(
    (
        "accept_image_fmap",
        "allowed_dtypes",
        "channel_first",
        "force_quantization_f32",
        "is_channel_first",
        "keep_num_codebooks_dim",
        "return_indices",
    )
)
DROPOUT: Given = {"quantize_dropout": False, "quantize_dropout_cutoff_index": 0, "quantize_dropout_multiple_of": 1}


def projections(s: State, dim: int | None, inner: int, bias: bool = True) -> tuple[Around, int]:
    """The linear layers around a codebook, which exist where its dimension is another one; and the outer dimension."""
    if dim is None or dim == inner:
        return ([], []), inner
    return ([s.linear("project_in", bias=bias)], [s.linear("project_out", bias=bias)]), dim


def rotation(o: Options, s: State, groups: int = 1) -> Around:
    if not o["orthogonal_rotation"]:
        return [], []
    turn = Turn(s.take("orthogonal_rot"), groups)
    return [turn], [turn.back()]


def residual(o: Options, parts: Sequence[Quantizer], around: Around, dim: int) -> Quantizer:
    before, after = around
    return Residual(
        parts,
        before=nn.Sequential(*before),
        after=nn.Sequential(*after),
        dim=dim,
        estimator="levels",
        dropout=dropout(o, len(parts)),
    )


def dropout(o: Options, levels: int) -> Dropout | None:
    if not o["quantize_dropout"] or levels < 2:
        return None
    return Dropout(o["quantize_dropout_cutoff_index"] + 1, o["quantize_dropout_multiple_of"])


def grouped(name: str, known: Given, read: Callable[[Options, State], Quantizer]) -> Any:
    """A residual quantizer for each of equal parts of the dimensions; they drop the same levels."""

    def grouped(options: Given, state: Mapping[str, Tensor]) -> Quantizer:
        o, s = Options(name, options, {**known, "dim": REQUIRED, "groups": 1}), State(state)
        groups = o["groups"]
        if o["dim"] % groups:
            o.refuse("groups", f"does not divide dim={o['dim']}")
        own = Options(name, {**o.only(known), "dim": o["dim"] // groups}, known)
        parts = [read(own, s.under(f"rvqs.{group}.")) for group in range(groups)]
        s.finish()
        return Parallel(parts, dropout=dropout(o, o["num_quantizers"]))

    return grouped
