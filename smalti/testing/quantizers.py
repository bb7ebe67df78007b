"""The contract of quantizers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from smalti.quantize.base import DROPPED, Quantizer
from smalti.testing.expect import close, expect, expect_error, unchanged


def check_quantizer(quantizer: Quantizer, *, seed: int = 0) -> None:
    """Runs the contract of `smalti.quantize.Quantizer`.

    Args:
        quantizer: any; its parameters are not changed.
        seed: of the random latents.
    """
    generator = torch.Generator().manual_seed(seed)
    was_training = quantizer.training
    try:
        quantizer.eval()
        with unchanged(quantizer, "evaluation"):
            for positions in ((), (5,), (3, 4), (2, 2, 2)):
                _check_shapes(quantizer, torch.randn(2, *positions, quantizer.dim, generator=generator))
            z = torch.randn(3, 7, quantizer.dim, generator=generator)
            _check_independence(quantizer, z, generator)
            _check_dropped(quantizer, z)
            _check_precision(quantizer, z)
            _check_candidates(quantizer, z)
            _check_margin(quantizer, z)
            _check_tables(quantizer, z)
            _check_refusals(quantizer, z)
        _check_gradient(quantizer, z)
    finally:
        quantizer.train(was_training)


def _check_shapes(quantizer: Quantizer, z: Tensor) -> None:
    out = quantizer(z)
    slots = len(quantizer.vocab)
    expect(out.z.shape == z.shape, f"z {tuple(z.shape)} became {tuple(out.z.shape)}")
    expect(out.codes.shape == (*z.shape[:-1], slots), f"codes have shape {tuple(out.codes.shape)}")
    expect(out.codes.dtype == torch.int64, f"codes are {out.codes.dtype}")
    expect(bool((out.codes >= 0).all()), "evaluation gave negative codes")
    expect(bool((out.codes < torch.tensor(quantizer.vocab)).all()), "codes reach beyond the vocabulary")
    expect(out.loss.ndim == 0, f"the loss has shape {tuple(out.loss.shape)}")
    expect(torch.equal(quantizer.encode(z), out.codes), "encode and forward choose different codes")
    expect(close(quantizer.decode(out.codes), out.z), "decode of the codes is not forward's z")


def _check_independence(quantizer: Quantizer, z: Tensor, generator: torch.Generator) -> None:
    codes = quantizer.encode(z)
    alone = torch.cat([quantizer.encode(row[None]) for row in z])
    expect(torch.equal(codes, alone), "codes of a sample depend on its batch")
    order = torch.randperm(z.shape[1], generator=generator)
    expect(torch.equal(quantizer.encode(z[:, order]), codes[:, order]), "codes depend on the order of positions")
    mask = torch.ones(z.shape[:-1], dtype=torch.bool)
    mask[:, 5:] = False
    one = quantizer(z, mask=mask)
    for padding in (1e4, math.nan):
        garbled = z.masked_fill(~mask[..., None], padding)
        other = quantizer(garbled, mask=mask)
        expect(torch.equal(one.codes, other.codes), f"latents of {padding} at masked positions change codes")
        expect(
            torch.equal(one.codes, quantizer.encode(garbled, mask=mask)), f"encode meets masked latents of {padding}"
        )
        expect(close(one.loss, other.loss), f"latents of {padding} at masked positions change the loss")
        expect(close(one.z, other.z), f"latents of {padding} at masked positions change z")
    expect(bool((one.codes[:, 5:] == DROPPED).all()), "masked positions must have code -1")
    expect(not bool(one.z[:, 5:].any()), "masked positions must decode to zero")


def _check_dropped(quantizer: Quantizer, z: Tensor) -> None:
    codes = torch.full_like(quantizer.encode(z), DROPPED)
    expect(not bool(quantizer.decode(codes).any()), "code -1 must decode to zero")


def _check_precision(quantizer: Quantizer, z: Tensor) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        rough = z.to(dtype)
        expect(
            torch.equal(quantizer.encode(rough), quantizer.encode(rough.float())), f"{dtype} latents get other codes"
        )
        expect(quantizer(rough).z.dtype == dtype, f"z of {dtype} latents has another type")


def _check_candidates(quantizer: Quantizer, z: Tensor) -> None:
    k = min(3, min(quantizer.vocab))
    codes, values, costs = quantizer.candidates(z, k)
    slots = len(quantizer.vocab)
    expect(codes.shape == (*z.shape[:-1], k, slots), f"candidates have shape {tuple(codes.shape)}")
    expect(values.shape == (*z.shape[:-1], k, quantizer.dim), f"candidate values have shape {tuple(values.shape)}")
    expect(bool((costs.diff(dim=-1) >= 0).all()), "candidates must come best first")
    expect(close(values, quantizer.decode(codes)), "candidate values are not what the codes decode to")
    one, *_ = quantizer.candidates(z, 1)
    expect(torch.equal(one[..., 0, :], quantizer.encode(z)), "the best candidate is not the code of encode")


def _check_margin(quantizer: Quantizer, z: Tensor) -> None:
    mask = torch.ones(z.shape[:-1], dtype=torch.bool)
    mask[0] = False
    padded = z.masked_fill(~mask[..., None], math.nan)
    for latents, chosen in ((z, None), (padded, mask)):
        codes, margin = quantizer.encode_with_margin(latents, mask=chosen)
        expect(torch.equal(codes, quantizer.encode(z, mask=chosen)), "the codes beside margins are those of encode")
        expect(margin.shape == codes.shape and margin.dtype == torch.float32, "a margin for each code, float32")
        expect(bool((margin >= 0).all()), "the second best code is not better than the best")
        expect(bool(torch.isinf(margin[codes < 0]).all()), "margins of masked positions are infinite")


def _check_tables(quantizer: Quantizer, z: Tensor) -> None:
    codes = quantizer.encode(z)
    own = quantizer.lookup(codes)
    for slot, table in enumerate(quantizer.codebooks()):
        expect(len(table) == quantizer.vocab[slot], f"codebook {slot} has {len(table)} rows")
        expect(close(table[codes[..., slot]], own[..., slot, :]), f"lookup differs from codebook {slot}")


def _check_refusals(quantizer: Quantizer, z: Tensor) -> None:
    for value in (math.nan, math.inf):
        broken = z.clone()
        broken[0, 0, 0] = value
        expect_error(lambda: quantizer.encode(broken), f"latents with {value}")  # noqa: B023  (called at once)
        expect_error(lambda: quantizer(broken), f"latents with {value} in forward")  # noqa: B023
        expect_error(lambda: quantizer.candidates(broken, 1), f"latents with {value} among candidates")  # noqa: B023
    expect_error(lambda: quantizer.encode(z[..., :-1]), "latents of another dimension")
    beyond = quantizer.encode(z)
    beyond[0, 0, 0] = quantizer.vocab[0]
    expect_error(lambda: quantizer.decode(beyond), "a code beyond the vocabulary")


def _check_gradient(quantizer: Quantizer, z: Tensor) -> None:
    z = z.clone().requires_grad_()
    out = quantizer(z)
    (out.z.square().sum() + out.loss).backward()
    expect(z.grad is not None and bool(torch.isfinite(z.grad).all()), "no finite gradient reaches the latents")
    expect(z.grad is not None and bool(z.grad.any()), "the gradient to the latents is zero")
    quantizer.zero_grad()
