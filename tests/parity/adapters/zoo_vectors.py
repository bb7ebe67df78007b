"""Sub-cases of the quantizer zoo whose codebook is explicit, through `from_vqp`.

Each function takes the official options, state and inputs of one sub-case and the names of the outputs asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from smalti.quantize import Heads, Orthogonal, Parallel, Quantize, Quantizer, Residual, Rotation, kmeans
from smalti.quantize.code_terms import code_cross_entropy
from smalti.quantize.dropout import Dropout
from smalti.quantize.vqp import from_vqp

Run = Callable[[Mapping[str, Any], Mapping[str, Tensor], Mapping[str, Tensor], Collection[str]], dict[str, Tensor]]
SEED = "rand_quantize_dropout_fixed_seed"
BREAKDOWN = {"commit": "commitment", "orth": "orthogonal", "diversity": "diversity"}


class Layout:
    """Their memory layouts: channels first or last, two axes or more, one head without an axis."""

    def __init__(self, options: Mapping[str, Any], x: Tensor) -> None:
        first = options.get("accept_image_fmap") or options.get("accept_3d_fmap") or options.get("channel_first")
        self.first = bool(first) or options.get("channel_last") is False
        self.row = x.ndim == 2

    def latents(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1) if self.first else x

    def vectors(self, z: Tensor) -> Tensor:
        return z.movedim(-1, 1) if self.first else z

    def codes(self, codes: Tensor) -> Tensor:
        return codes[..., 0] if codes.shape[-1] == 1 else codes


def _step(quantizer: Quantizer, layout: Layout, x: Tensor, mask: Tensor | None, noise: Mapping[str, Tensor]) -> Any:
    """One training step on sum(quant * ramp) + loss; gives the latents with their gradient, the output, and z."""
    x = x.clone().requires_grad_()
    quantizer.train()
    out = quantizer(layout.latents(x), mask=mask, noise=noise)
    quant = layout.vectors(out.z)
    ramp = torch.arange(quant.numel()).view_as(quant) / quant.numel()
    ((quant * ramp).sum() + out.loss).backward()
    return x, out, quant.detach()


def vector_quantize(
    options: Mapping[str, Any], state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], wanted: Collection[str]
) -> dict[str, Tensor]:
    quantizer = from_vqp("VectorQuantize", options, state, legacy_training=True)
    assert isinstance(quantizer, Quantize)
    x, layout = inputs["x"], Layout(options, inputs["x"])
    mask = _mask(inputs)
    quantizer.eval()
    evaluated = quantizer(layout.latents(x), mask=mask)
    outputs = {"eval_quant": layout.vectors(evaluated.z), "eval_indices": layout.codes(evaluated.codes)}
    leaf, out, quant = _step(quantizer, layout, x, mask, {})
    if options.get("return_zeros_for_masked_padding") is False and mask is not None:
        quant = torch.where(mask[..., None], quant, x)
    quantizer.update()
    values = {name: out.terms.get(term, torch.zeros(())).detach() for name, term in BREAKDOWN.items()}
    weights = {term.name: term.weight for term in quantizer.terms}
    outputs |= {name: value / weights.get(BREAKDOWN[name], 1.0) for name, value in values.items()}
    outputs |= {"train_quant": quant, "train_indices": layout.codes(out.codes), "train_loss": out.loss.detach()}
    outputs |= _orthogonality_after(quantizer, outputs, out.codes)
    outputs["grad_x"] = torch.zeros_like(x) if leaf.grad is None else leaf.grad
    outputs |= {name: _stored(quantizer, name[len("after/") :]) for name in wanted if name.startswith("after/")}
    if "grad_embed" in wanted:
        outputs["grad_embed"] = torch.stack([_gradient(table) for table in _tables(quantizer)])
    outputs |= {name: _gradient_of(quantizer, name[len("grad/") :]) for name in wanted if name.startswith("grad/")}
    outputs |= _decoded(quantizer, layout, evaluated.codes)
    return outputs


def _mask(inputs: Mapping[str, Tensor]) -> Tensor | None:
    return inputs["mask"].bool() if "mask" in inputs else None


def _orthogonality_after(quantizer: Quantize, outputs: Mapping[str, Tensor], codes: Tensor) -> dict[str, Tensor]:
    """Their term sees the codebook that the same forward pass has updated; it has no gradient then."""
    terms = [term for term in quantizer.terms if isinstance(term, Orthogonal)]
    if not terms or any(table.vectors.stored().weight.requires_grad for table in _tables(quantizer)):
        return {}
    real = codes.reshape(-1, codes.shape[-1])
    real = real[(real >= 0).all(1)]
    from smalti.quantize.assign import Assigned

    with torch.no_grad():
        vectors = quantizer.alphabet.lookup(real)
        after = terms[0](vectors, Assigned(real, vectors), quantizer.alphabet)
    loss = outputs["train_loss"] + terms[0].weight * (after - outputs["orth"])
    return {"orth": after, "train_loss": loss}


def _tables(quantizer: Quantizer) -> list[Any]:
    assert isinstance(quantizer, Quantize)
    alphabet = quantizer.alphabet
    return list(alphabet.tables) if isinstance(alphabet, Heads) else [alphabet]


def _gradient(table: Any) -> Tensor:
    weight = table.vectors.stored().weight
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def _at(quantizer: Quantizer, key: str) -> tuple[Quantizer, str]:
    """The part of a quantizer that a key of theirs belongs to, and the rest of the key."""
    parts = key.split(".")
    while parts[0] in ("rvqs", "layers"):
        assert isinstance(quantizer, Parallel | Residual)
        quantizer = (quantizer.parts if isinstance(quantizer, Parallel) else quantizer.levels)[int(parts[1])]
        parts = parts[2:]
    return quantizer, ".".join(parts)


def _stored(quantizer: Quantizer, key: str) -> Tensor:
    """A buffer of theirs by its key."""
    part, name = _at(quantizer, key)
    name = name.removeprefix("_codebook.")
    return (
        torch.stack([_of_table(table, name) for table in _tables(part)])
        if "needs_init" not in name
        else (_of_table(_tables(part)[0], name))
    )


def _of_table(table: Any, name: str) -> Tensor:
    if name in ("cluster_size", "embed_avg"):
        return table.ema_count if name == "cluster_size" else table.ema_sum
    if name == "embed":
        return table.vectors.stored().weight.detach()
    if name == "initted":
        return table.started
    whose, moment, *rest = name.split("_")
    affine = table.vectors
    if rest:
        return ~affine.started[["batch", "codebook"].index(whose)]
    moments = affine.latent_moments if whose == "batch" else affine.codebook_moments
    return moments[["mean", "variance"].index(moment)][None]


def _gradient_of(quantizer: Quantizer, key: str) -> Tensor:
    """The gradient of a parameter of theirs by its key."""
    part, name = _at(quantizer, key)
    assert isinstance(part, Quantize)
    if name.startswith("code_transform."):
        parameter = dict(part.alphabet.vectors.network.named_parameters())[name.removeprefix("code_transform.")]  # type: ignore[union-attr]
        assert parameter.grad is not None
        return parameter.grad
    return torch.stack([_gradient(table) for table in _tables(part)])


def _decoded(quantizer: Quantizer, layout: Layout, codes: Tensor) -> dict[str, Tensor]:
    return {"output_from_indices": layout.vectors(quantizer.decode(codes))}


def residual_vq(
    options: Mapping[str, Any], state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], wanted: Collection[str]
) -> dict[str, Tensor]:
    return _residual("ResidualVQ", options, state, inputs, wanted)


def grouped_residual_vq(
    options: Mapping[str, Any], state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], wanted: Collection[str]
) -> dict[str, Tensor]:
    return _residual("GroupedResidualVQ", options, state, inputs, wanted)


def residual_sim_vq(
    options: Mapping[str, Any], state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], wanted: Collection[str]
) -> dict[str, Tensor]:
    return _residual("ResidualSimVQ", options, state, inputs, wanted)


def _residual(
    name: str,
    options: Mapping[str, Any],
    state: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    wanted: Collection[str],
) -> dict[str, Tensor]:
    quantizer = from_vqp(name, options, state, legacy_training=True)
    groups = len(quantizer.parts) if isinstance(quantizer, Parallel) else 0
    x, layout, mask = inputs["x"], Layout(options, inputs["x"]), _mask(inputs)
    noise = {}
    if SEED in inputs and isinstance(quantizer.dropout, Dropout):
        noise["levels"] = quantizer.dropout.from_seed(int(inputs[SEED]), _levels(quantizer))
    quantizer.eval()
    evaluated = quantizer(layout.latents(x), mask=mask)
    outputs = {
        "eval_quant": layout.vectors(_padded(quantizer, evaluated.z, mask)),
        "eval_indices": _by_group(evaluated.codes, groups),
        "output_from_indices": layout.vectors(quantizer.decode(evaluated.codes)),
        "codes_from_indices": _level_vectors(quantizer, evaluated.codes),
    }
    leaf, out, quant = _step(quantizer, layout, x, mask, noise)
    quantizer.update()
    losses = out.terms["level_loss"]
    outputs |= {
        "train_quant": layout.vectors(_padded(quantizer, layout.latents(quant), mask)),
        "train_indices": _by_group(out.codes, groups),
        "train_losses": losses.view(groups, -1) if groups else losses,
        "grad_x": leaf.grad,
    }
    outputs["train_loss"] = outputs["train_losses"]
    outputs |= {key: _stored(quantizer, key[len("after/") :]) for key in wanted if key.startswith("after/")}
    outputs |= {key: _gradient_of(quantizer, key[len("grad/") :]) for key in wanted if key.startswith("grad/")}
    return outputs


def _levels(quantizer: Quantizer) -> int:
    return _levels(quantizer.parts[0]) if isinstance(quantizer, Parallel) else len(quantizer.vocab)


def _by_group(codes: Tensor, groups: int) -> Tensor:
    return torch.stack(codes.chunk(groups, -1)) if groups else codes


def _level_vectors(quantizer: Quantizer, codes: Tensor) -> Tensor:
    if isinstance(quantizer, Parallel):
        pieces = zip(quantizer.parts, codes.chunk(len(quantizer.parts), -1), strict=True)
        return torch.stack([_level_vectors(part, piece) for part, piece in pieces])
    assert isinstance(quantizer, Residual)
    return torch.stack(list(quantizer.level_vectors(codes))).detach()


def _padded(quantizer: Quantizer, z: Tensor, mask: Tensor | None) -> Tensor:
    """Their masked positions hold what the output projection makes of zero."""
    if mask is None or not isinstance(quantizer, Residual):
        return z
    return torch.where(mask[..., None], z, quantizer.after(z.new_zeros(quantizer.inner_dim)))


def sim_vq(
    options: Mapping[str, Any], state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], wanted: Collection[str]
) -> dict[str, Tensor]:
    quantizer = from_vqp("SimVQ", options, state)
    x, layout = inputs["x"], Layout(options, inputs["x"])
    quantizer.eval()
    evaluated = quantizer(layout.latents(x))
    leaf, out, quant = _step(quantizer, layout, x, None, {})
    return {
        "eval_quant": layout.vectors(evaluated.z),
        "eval_indices": layout.codes(evaluated.codes),
        "train_quant": quant,
        "train_indices": layout.codes(out.codes),
        "train_loss": out.loss.detach(),
        "grad_x": leaf.grad,
        **{key: _gradient_of(quantizer, key[len("grad/") :]) for key in wanted if key.startswith("grad/")},
        **_decoded(quantizer, layout, evaluated.codes),
    }


def lacks_projection(options: Mapping[str, Any], state: Mapping[str, Tensor]) -> bool:
    """Whether a RandomProjectionQuantizer's state lacks the projection that the size of its codebooks asks for."""
    heads, _, dim = state["vq._codebook.embed"].shape
    needed = heads * dim != options.get("num_codebooks", 1) * options["codebook_dim"]
    return needed and "vq.project_in.weight" not in state


def random_projection(
    options: Mapping[str, Any], state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], wanted: Collection[str]
) -> dict[str, Tensor]:
    if lacks_projection(options, state):
        return {}
    quantizer = from_vqp("RandomProjectionQuantizer", options, state).eval()
    assert isinstance(quantizer, Quantize)
    codes = quantizer.encode(inputs["x"])
    rows = quantizer.alphabet.project(quantizer.before(inputs["x"].flatten(0, -2)))
    loss = code_cross_entropy(rows, codes.flatten(0, -2), quantizer.alphabet)
    return {"indices": Layout(options, inputs["x"]).codes(codes), "ce_of_own_indices": loss}


def rotate_to(
    options: Mapping[str, Any], state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], wanted: Collection[str]
) -> dict[str, Tensor]:
    source = inputs["src"].clone().requires_grad_()
    out = Rotation()(source, inputs["tgt"])
    (out * torch.arange(out.numel()).view_as(out) / out.numel()).sum().backward()
    assert source.grad is not None
    return {"out": out.detach(), "grad_src": source.grad}


def kmeans_function(
    options: Mapping[str, Any], state: Mapping[str, Tensor], inputs: Mapping[str, Tensor], wanted: Collection[str]
) -> dict[str, Tensor]:
    rows, start = inputs["samples"][0], inputs["initial_means"][0]
    outputs: dict[str, Tensor] = {}
    for suffix, unit in (("", False), ("_cosine", True)):
        x, first = (F.normalize(each, dim=1) if unit else each for each in (rows, start))
        means, counts = kmeans(x, len(start), options["num_iters"], start=first, unit=unit)
        outputs |= {f"means{suffix}": means[None], f"bins{suffix}": counts[None]}
    return outputs


RUNS: dict[str, Run] = {
    "VectorQuantize": vector_quantize,
    "ResidualVQ": residual_vq,
    "GroupedResidualVQ": grouped_residual_vq,
    "SimVQ": sim_vq,
    "ResidualSimVQ": residual_sim_vq,
    "RandomProjectionQuantizer": random_projection,
    "rotate_to": rotate_to,
    "kmeans function": kmeans_function,
}
