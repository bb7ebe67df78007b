"""ResidualVQ, GroupedResidualVQ and ResidualSimVQ of vector-quantize-pytorch as compositions of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from smalti.quantize.base import Quantizer
from smalti.quantize.beam import Beam
from smalti.quantize.conditional import Conditional, ResidualMLP
from smalti.quantize.dropout import Dropout
from smalti.quantize.estimators import DiVeQ
from smalti.quantize.parallel import Parallel
from smalti.quantize.residual import Residual
from smalti.quantize.table import Table
from smalti.quantize.vectors import Trained
from smalti.quantize.vqp.reading import REQUIRED, Options, State
from smalti.quantize.vqp.vectors import LEVEL, SIM_VQ, VECTOR_QUANTIZE, codebook, level, sim_level

DROPOUT: Mapping[str, Any] = {
    "quantize_dropout": False,
    "quantize_dropout_cutoff_index": 0,
    "quantize_dropout_multiple_of": 1,
}
RESIDUAL_VQ: Mapping[str, Any] = {
    **VECTOR_QUANTIZE,
    **DROPOUT,
    "num_quantizers": None,
    "shared_codebook": False,
    "diveq": False,
    "implicit_neural_codebook": False,
    "mlp_kwargs": {},
    "beam_size": None,
    "eval_beam_size": None,
    "beam_score_quantizer_weights": None,
    "quant_grad_frac": 0.0,
}
MLP: Mapping[str, Any] = {"dim_hidden": None, "depth": 4}
GROUPED_RESIDUAL_VQ: Mapping[str, Any] = {**RESIDUAL_VQ, "groups": 1}
RESIDUAL_SIM_VQ: Mapping[str, Any] = {**SIM_VQ, **DROPOUT, "num_quantizers": REQUIRED, "heads": 1}


def residual_vq(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Quantizer:
    """ResidualVQ."""
    s = State(state)
    quantizer = _residual(Options("ResidualVQ", options, RESIDUAL_VQ), s)
    s.finish()
    return quantizer


def grouped_residual_vq(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Quantizer:
    """GroupedResidualVQ: a ResidualVQ for each of equal parts of the dimensions."""
    o, s = Options("GroupedResidualVQ", options, GROUPED_RESIDUAL_VQ), State(state)
    groups = o["groups"]
    if o["dim"] % groups:
        o.refuse("groups", f"does not divide dim={o['dim']}")
    own = Options("ResidualVQ", {**o.only(RESIDUAL_VQ), "dim": o["dim"] // groups}, RESIDUAL_VQ)
    parts = [_residual(own, s.under(f"rvqs.{group}.")) for group in range(groups)]
    s.finish()
    return Parallel(parts, dropout=_dropout(o, len(_sizes(own))))


def _residual(o: Options, s: State) -> Residual:
    _check(o)
    sizes = _sizes(o)
    inner = o["dim"] if o["codebook_dim"] is None else o["codebook_dim"]
    projected = inner != o["dim"]
    total = o["diveq"]
    changed: dict[str, Any] = {"dim": inner, "codebook_dim": None}
    if o["implicit_neural_codebook"]:
        changed |= {"learnable_codebook": True, "ema_update": False}
    if total:
        # One estimate on the sum; the levels' own vectors carry the gradient to their tables.
        changed |= {"directional_reparam": True, "rotation_trick": False, "route_gradients_to_input": False}
    levels: list[Quantizer] = []
    for index, size in enumerate(sizes):
        here = s.under(f"layers.{index}.")
        if o["shared_codebook"] and levels:
            here.below()  # the same numbers again
            if not o["implicit_neural_codebook"]:
                levels.append(levels[0])
                continue
            here = s.under("layers.0.")
        own = Options("VectorQuantize", {**o.only(LEVEL), **changed, "codebook_size": size}, LEVEL)
        alphabet = codebook(own, here.under("_codebook."))
        if o["implicit_neural_codebook"] and index:
            alphabet = _implicit(o, alphabet, levels[0], s.under(f"mlps.{index - 1}."), inner)
        levels.append(level(own, alphabet))
    return Residual(
        levels,
        before=s.linear("project_in") if projected else None,
        after=s.linear("project_out") if projected else None,
        dim=o["dim"],
        estimator=DiVeQ(o["directional_reparam_variance"]) if total else "levels",
        dropout=_dropout(o, len(sizes)),
        search=_beam(o, len(sizes)),
        passed_gradient=o["quant_grad_frac"],
    )


def _check(o: Options) -> None:
    if o["heads"] != 1:
        o.refuse("heads", "must be 1 in residual levels")
    if o["shared_codebook"] and len(set(_sizes(o))) != 1:
        o.refuse("codebook_size", "must be the same for all levels that share a codebook")
    if o["eval_beam_size"] is not None and o["beam_size"] is None:
        o.refuse("eval_beam_size", "needs beam_size")


def _sizes(o: Options) -> tuple[int, ...]:
    """The codebook size of each level."""
    count, size = o["num_quantizers"], o["codebook_size"]
    if isinstance(size, int):
        if count is None:
            o.refuse("num_quantizers", "is needed where codebook_size is one number")
        return (size,) * count
    if count is not None and count != len(size):
        o.refuse("num_quantizers", f"is not the number of codebook sizes {tuple(size)}")
    return tuple(size)


def _implicit(o: Options, alphabet: Any, first: Quantizer, s: State, dim: int) -> Conditional:
    mlp = Options("mlp_kwargs", o["mlp_kwargs"], MLP)
    network = s.load(ResidualMLP(dim, mlp["dim_hidden"], mlp["depth"]))
    rows = _rows(first.alphabet if o["shared_codebook"] else alphabet)
    return Conditional(rows, network)


def _rows(alphabet: Any) -> Trained:
    """The plain rows of a level's table: their levels that depend on others learn by gradient alone."""
    assert isinstance(alphabet, Table)  # levels have one head
    rows = alphabet.vectors.stored()
    assert rows is not None  # VectorQuantize has no others
    return rows


def _dropout(o: Options, levels: int) -> Dropout | None:
    if not o["quantize_dropout"] or levels < 2:
        return None
    return Dropout(o["quantize_dropout_cutoff_index"] + 1, o["quantize_dropout_multiple_of"])


def _beam(o: Options, levels: int) -> Beam | None:
    if o["beam_size"] is None:
        return None
    weights = o["beam_score_quantizer_weights"] or (1.0,) * levels
    return Beam(o["beam_size"], o["eval_beam_size"], tuple(weights))


def residual_sim_vq(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Quantizer:
    """ResidualSimVQ."""
    o, s = Options("ResidualSimVQ", options, RESIDUAL_SIM_VQ), State(state)
    if o["heads"] != 1:
        o.refuse("heads", "must be 1 in residual levels")
    own = Options("SimVQ", o.only(SIM_VQ), SIM_VQ)
    count = o["num_quantizers"]
    levels = [sim_level(own, s.under(f"layers.{index}.")) for index in range(count)]
    s.finish()
    return Residual(levels, estimator="levels", dropout=_dropout(o, count))


READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], Quantizer]] = {
    "ResidualVQ": residual_vq,
    "GroupedResidualVQ": grouped_residual_vq,
    "ResidualSimVQ": residual_sim_vq,
}
