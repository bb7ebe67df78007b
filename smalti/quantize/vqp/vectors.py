"""VectorQuantize, SimVQ and RandomProjectionQuantizer of vector-quantize-pytorch as compositions of ours."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.errors import CheckpointError
from smalti.quantize.affine import Affine
from smalti.quantize.assign import Assign, Nearest
from smalti.quantize.base import Alphabet, Quantizer
from smalti.quantize.code_terms import (
    CrossEntropyCommitment,
    Diversity,
    Mutual,
    Orthogonal,
    UnprojectedCommitment,
)
from smalti.quantize.compose import Quantize
from smalti.quantize.estimators import (
    Amplified,
    CodebookOnly,
    DiVeQ,
    Estimator,
    Rotation,
    StraightThrough,
    Synchronous,
)
from smalti.quantize.heads import Heads
from smalti.quantize.learning import EMA, Gradient, InPlace, Learning, StepwiseEMA
from smalti.quantize.projection import FixedLinear
from smalti.quantize.revival import Expire
from smalti.quantize.soft import Drawn, Soft
from smalti.quantize.table import Table
from smalti.quantize.terms import Codebook, Commitment, Term
from smalti.quantize.vectors import Bridged, Frozen, Mapped, Trained, Vectors
from smalti.quantize.vqp.reading import ELSEWHERE, LEGACY, REQUIRED, Options, State

VECTOR_QUANTIZE: Mapping[str, Any] = {
    **ELSEWHERE,
    "dim": REQUIRED,
    "codebook_size": REQUIRED,
    "codebook_dim": None,
    "heads": 1,
    "separate_codebook_per_head": False,
    "decay": 0.8,
    "eps": 1e-5,
    "freeze_codebook": False,
    "kmeans_init": False,
    "kmeans_iters": 10,
    "use_cosine_sim": False,
    "layernorm_after_project_in": False,
    "threshold_ema_dead_code": 0,
    "reset_cluster_size": None,
    "commitment_weight": 1.0,
    "commitment_use_cross_entropy_loss": False,
    "orthogonal_reg_weight": 0.0,
    "orthogonal_reg_active_codes_only": False,
    "orthogonal_reg_max_codes": None,
    "codebook_diversity_loss_weight": 0.0,
    "codebook_diversity_temperature": 100.0,
    "stochastic_sample_codes": False,
    "sample_codebook_temp": 1.0,
    "straight_through": False,
    "rotation_trick": None,
    "directional_reparam": False,
    "directional_reparam_variance": 5e-3,
    "ema_update": None,
    "vq_bridge": None,
    "learnable_codebook": None,
    "in_place_codebook_optimizer": None,
    "affine_param": False,
    "affine_param_batch_decay": 0.99,
    "affine_param_codebook_decay": 0.9,
    "sync_update_v": 0.0,
    "route_gradients_to_input": True,
}
# Set by ResidualVQ for its levels: one codebook serves several of them, each of which is a step of its average; and a
# beam search finds the codes.
SHARED, SEARCHED = "shared_codebook", "beam_size"
LEVEL: Mapping[str, Any] = {**VECTOR_QUANTIZE, SHARED: False, SEARCHED: None}
SIM_VQ: Mapping[str, Any] = {
    "dim": REQUIRED,
    "codebook_size": REQUIRED,
    "codebook_transform": None,
    "init_fn": None,
    "channel_first": False,
    "rotation_trick": True,
    "input_to_quantize_commit_loss_weight": 0.25,
    "commitment_weight": 1.0,
    "frozen_codebook_dim": None,
}
RANDOM_PROJECTION: Mapping[str, Any] = {
    **ELSEWHERE,
    "dim": REQUIRED,
    "codebook_size": REQUIRED,
    "codebook_dim": REQUIRED,
    "num_codebooks": 1,
    "norm": True,
}


class Rules:
    """What their interacting options come to.

    Attributes:
        learnable: rows are parameters of the model's optimizer.
        ema: rows follow a moving average.
        rotation: the rotation trick carries gradients.
    """

    def __init__(self, o: Options) -> None:
        reparametrised = o["directional_reparam"] or o["vq_bridge"] is not None
        self.learnable = reparametrised if o["learnable_codebook"] is None else o["learnable_codebook"]
        self.ema = (not reparametrised if o["ema_update"] is None else o["ema_update"]) and not o["freeze_codebook"]
        rotates = o["dim"] > 1 and not o["directional_reparam"]
        self.rotation = rotates if o["rotation_trick"] is None else o["rotation_trick"]
        if self.learnable and self.ema:
            o.refuse("learnable_codebook", "excludes ema_update: set ema_update=False")
        if self.learnable and o["use_cosine_sim"]:
            o.refuse("use_cosine_sim", "excludes a learnable codebook")
        if o["straight_through"] + self.rotation + o["directional_reparam"] > 1:
            o.refuse("straight_through", "excludes rotation_trick and directional_reparam")
        if o["sync_update_v"] > 0 and not self.learnable:
            o.refuse("sync_update_v", "needs learnable_codebook=True")
        if o["in_place_codebook_optimizer"] is not None and not self.learnable:
            o.refuse("in_place_codebook_optimizer", "needs learnable_codebook=True")


def vector_quantize(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Quantizer:
    """VectorQuantize."""
    own, s = Options("VectorQuantize", options, VECTOR_QUANTIZE), State(state)
    o = Options("VectorQuantize", own.values, LEVEL)
    width = _head_dim(o) * o["heads"]
    before: nn.Module | None = None
    after: nn.Module | None = None
    if width != o["dim"]:
        after = s.linear("project_out")
        if o["layernorm_after_project_in"]:
            before = nn.Sequential(s.linear("project_in.0"), s.under("project_in.1.").load(nn.LayerNorm(width)))
        else:
            before = s.linear("project_in")
    quantizer = level(o, codebook(o, s.under("_codebook.")), before=before, after=after, dim=o["dim"])
    s.finish()
    return quantizer


def _head_dim(o: Options) -> int:
    return o["dim"] if o["codebook_dim"] is None else o["codebook_dim"]


def codebook(o: Options, s: State) -> Alphabet:
    """The `_codebook` of a VectorQuantize."""
    rows = s.take("embed")
    expected = (o["heads"] if o["separate_codebook_per_head"] else 1, o["codebook_size"], _head_dim(o))
    if tuple(rows.shape) != expected:
        raise CheckpointError(f"{s.prefix}embed is {tuple(rows.shape)}, the options say {expected}")
    tables = [_table(o, s, head, rows[head]) for head in range(len(rows))]
    s.ignore("initted", "cluster_size", "embed_avg")
    if o["heads"] == 1:
        return tables[0]
    return Heads(tables[0], o["heads"]) if len(tables) == 1 else Heads(tables)


def _table(o: Options, s: State, head: int, embed: Tensor) -> Table:
    rules = Rules(o)
    stored = Trained(len(embed), embed.shape[1], lambda weight: weight.copy_(embed))
    stored.weight.requires_grad_(rules.learnable)
    vectors: Vectors = stored
    if o["affine_param"]:
        vectors = _affine(o, s, head, stored)
    if o["vq_bridge"] is not None:
        bridge = copy.deepcopy(o["vq_bridge"])
        vectors = Bridged(stored, _WithHead(s.under("vq_bridge.").load(bridge)))
    dies = o["threshold_ema_dead_code"] > 0 and not o["freeze_codebook"]
    revive = Expire(o["threshold_ema_dead_code"], o["reset_cluster_size"], o["decay"]) if dies else None
    space = "unit" if o["use_cosine_sim"] else "euclidean"
    table = Table(vectors, space=space, learn=_learning(o, rules), revive=revive)  # type: ignore[arg-type]
    with torch.no_grad():
        if table.counting:
            table.ema_count.copy_(s.take("cluster_size")[head])
            table.started.copy_(s.take("initted").bool().reshape(()))
        if isinstance(table.learn, EMA):
            table.ema_sum.copy_(s.take("embed_avg")[head])
    return table


def _learning(o: Options, rules: Rules) -> Learning | None:
    iterations = o["kmeans_iters"] if o["kmeans_init"] else 0
    if o["in_place_codebook_optimizer"] is not None:
        return InPlace(o["in_place_codebook_optimizer"], decay=o["decay"], kmeans_iterations=iterations)
    if rules.ema:
        rule = StepwiseEMA if o[SHARED] else EMA
        return rule(decay=o["decay"], eps=o["eps"], kmeans_iterations=iterations)
    return Gradient(iterations, decay=o["decay"]) if iterations and not o["freeze_codebook"] else None


def _affine(o: Options, s: State, head: int, stored: Trained) -> Affine:
    affine = Affine(stored, latent_decay=o["affine_param_batch_decay"], codebook_decay=o["affine_param_codebook_decay"])
    moments = {"latent_moments": "batch", "codebook_moments": "codebook"}
    for index, (name, theirs) in enumerate(moments.items()):
        waits = f"{theirs}_mean_needs_init"
        if f"{theirs}_mean" in s and not (waits in s and bool(s.take(waits))):
            both = [s.take(f"{theirs}_{moment}")[head, 0] for moment in ("mean", "variance")]
            getattr(affine, name).copy_(torch.stack(both))
            affine.started[index] = True
        s.ignore(*(f"{theirs}_{moment}{rest}" for moment in ("mean", "variance") for rest in ("", "_needs_init")))
    return affine


class _WithHead(nn.Module):
    """Gives their bridges the leading axis that they expect."""

    def __init__(self, bridge: nn.Module) -> None:
        super().__init__()
        self.bridge = bridge

    def forward(self, rows: Tensor) -> Tensor:
        return self.bridge(rows[None])[0]


def level(o: Options, alphabet: Alphabet, **around: Any) -> Quantize:
    """A VectorQuantize around its codebook.

    Args:
        o: its options.
        alphabet: the codebook.
        around: projections, as Quantize takes them.
    """
    rules = Rules(o)
    return Quantize(alphabet, assign=_assign(o), estimator=_estimator(o, rules), terms=_terms(o, rules), **around)


def _assign(o: Options) -> Assign:
    choice = Drawn(o["sample_codebook_temp"]) if o["stochastic_sample_codes"] else Nearest()
    # official weights need this: their Gumbel gradient is overwritten by a straight-through one before it reaches x
    return Soft(choice, o["sample_codebook_temp"]) if o["straight_through"] and not o[LEGACY] else choice


def _estimator(o: Options, rules: Rules) -> Estimator:
    estimator: Estimator = Rotation() if rules.rotation else StraightThrough()
    if o["directional_reparam"]:
        estimator = DiVeQ(o["directional_reparam_variance"])
    if not o["route_gradients_to_input"]:
        return CodebookOnly()
    if o["sync_update_v"] > 0:
        # official weights need this: their share of the gradient goes to x a second time, not to the table
        legacy, share = o[LEGACY], o["sync_update_v"]
        return Amplified(1 + share, estimator) if legacy else Synchronous(share, estimator)
    return estimator


def _terms(o: Options, rules: Rules) -> list[Term]:
    terms: list[Term] = []
    weight = 0.0 if o["directional_reparam"] else o["commitment_weight"]
    if weight > 0:
        commitment: Callable[[float], Term] = Mutual if rules.learnable else Commitment
        if o[LEGACY] and not rules.learnable:
            commitment = partial(UnprojectedCommitment, masked_only=not o[SEARCHED])
        if o["commitment_use_cross_entropy_loss"]:
            commitment = CrossEntropyCommitment
        terms.append(commitment(weight))
    if o["orthogonal_reg_weight"] > 0:
        active, most = o["orthogonal_reg_active_codes_only"], o["orthogonal_reg_max_codes"]
        terms.append(Orthogonal(o["orthogonal_reg_weight"], active, most))
    if o["codebook_diversity_loss_weight"] > 0:
        # official weights need this: heads with codebooks of their own are averaged code by code all the same
        pooled = o[LEGACY] and o["separate_codebook_per_head"]
        terms.append(Diversity(o["codebook_diversity_loss_weight"], o["codebook_diversity_temperature"], pooled))
    return terms


def sim_vq(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Quantizer:
    """SimVQ."""
    o, s = Options("SimVQ", options, SIM_VQ), State(state)
    quantizer = sim_level(o, s)
    s.finish()
    return quantizer


def sim_level(o: Options, s: State) -> Quantize:
    """A SimVQ from what lies under a prefix."""
    if o["codebook_transform"] is None:
        transform: nn.Module = s.linear("code_transform", bias=False)
    else:
        transform = s.under("code_transform.").load(copy.deepcopy(o["codebook_transform"]))
    base = s.take("frozen_codebook")
    if len(base) != o["codebook_size"]:
        raise CheckpointError(f"{s.prefix}frozen_codebook has {len(base)} rows, codebook_size is {o['codebook_size']}")
    weight = o["commitment_weight"]
    return Quantize(
        Table(Mapped(base, transform, o["dim"])),
        estimator=Rotation() if o["rotation_trick"] else StraightThrough(),
        terms=[Codebook(weight), Commitment(weight * o["input_to_quantize_commit_loss_weight"])],
    )


def random_projection(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> Quantizer:
    """RandomProjectionQuantizer: latents are normalised and projected at random; codes are the directions next to them.

    Its codes are targets, so theirs decodes nothing; ours gives the shortest normalised latents with such projections.
    """
    o, s = Options("RandomProjectionQuantizer", options, RANDOM_PROJECTION), State(state)
    projections, rows = s.take("rand_projs"), s.take("vq._codebook.embed")
    total = projections.transpose(1, 2).flatten(0, 1)
    bias = torch.zeros(len(total))
    width = o["num_codebooks"] * rows.shape[-1]
    if width != len(total):
        inner = s.linear("vq.project_in")
        bias, total = inner.bias.detach(), inner.weight.detach() @ total
        s.ignore("vq.project_out.weight", "vq.project_out.bias")
    s.ignore("vq._codebook.initted", "vq._codebook.cluster_size", "vq._codebook.embed_avg")
    s.finish()
    project = FixedLinear(total, bias)
    norm = nn.LayerNorm(o["dim"], elementwise_affine=False) if o["norm"] else nn.Identity()
    tables = [Table(Frozen(F.normalize(head, dim=-1)), space="unit") for head in rows]
    alphabet = Heads(tables) if len(tables) > 1 else tables[0]
    return Quantize(alphabet, before=nn.Sequential(norm, project), after=project.preimage(), dim=o["dim"])


READERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Tensor]], Quantizer]] = {
    "VectorQuantize": vector_quantize,
    "SimVQ": sim_vq,
    "RandomProjectionQuantizer": random_projection,
}
