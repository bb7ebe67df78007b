"""VQBridge: a transformer over the whole codebook, seen as a picture of code vectors, gives the codebook that is used.

    rows (K, dim) ──picture (dim, h, w)──► patches ──► tokens ──► blocks ──► linear ──► patches ──► codebook (K, dim)

Through attention each effective row depends on all rows, so that every row gets a gradient in every step, chosen or
not. Afterwards `materialise` keeps the effective rows alone. Row n lies at line n // w, column n % w.

    VQBridge            the paper's form
    ModulatedBridge     with fixed positions; a trained condition shifts, scales and gates every block (adaLN-Zero)
    LinearBridge        ablation: linear layers on each row alone; one over frozen rows is SimVQ

The last layer starts at zero, as published: the codebook starts at the origin, where all latents take code 0, and a
warm-up of the learning rate takes it from there.

Source: "Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization" (FVQ, 2025).
"""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from smalti.errors import ConfigError
from smalti.quantize.base import Quantizer
from smalti.quantize.table import Table
from smalti.quantize.vectors import Frozen, Trained

EPS = 1e-6  # of layer normalisation; published


def picture(codes: int, patch: int) -> tuple[int, int]:
    """Height and width of the picture of a codebook: a square, or the rectangle nearest to it.

    The paper has squares only; rectangles of whole patches are our extension.

    Raises:
        ConfigError: if no rectangle of whole patches has so many codes.
    """
    if patch < 1 or codes % patch**2:
        raise ConfigError(f"{codes} codes are no rectangle of patches of {patch} x {patch}")
    patches = codes // patch**2
    height = next(side for side in range(math.isqrt(patches), 0, -1) if patches % side == 0)
    return height * patch, patches // height * patch


class VQBridge(nn.Module):
    """The bridge in the paper's form: patches, transformer blocks without positions, patches.

    Args:
        codes: rows K.
        dim: their dimension.
        patch: side of a patch; 1 takes each row as a token.
        head_dim: 8, 16, 32, 64, 128 in the published sizes XS, S, B, L, XL.
        heads: of attention; the width is heads * head_dim.
        depth: blocks.
        mlp_ratio: width of a block's hidden layer over the width.
        registers: trained tokens that attention sees beside those of the codebook; the paper has none.

    Shape:
        (codes, dim) -> (codes, dim)

    Raises:
        ConfigError: if the codes form no rectangle of patches.
    """

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        patch: int = 4,
        head_dim: int = 64,
        heads: int = 4,
        depth: int = 2,
        mlp_ratio: float = 2.0,
        registers: int = 0,
    ) -> None:
        super().__init__()
        self.height, self.width = picture(codes, patch)
        self.patch, self.dim, self.hidden = patch, dim, heads * head_dim
        self.to_tokens = nn.Conv2d(dim, self.hidden, patch, patch)
        self.registers = nn.Parameter(torch.randn(registers, self.hidden) * 0.02)
        self.blocks = nn.ModuleList(self._block(heads, mlp_ratio) for _ in range(depth))
        self.to_patches = nn.Linear(self.hidden, patch * patch * dim)
        _start(self.to_tokens)
        _start_at_zero(self.to_patches)

    def _block(self, heads: int, mlp_ratio: float) -> nn.Module:
        return Block(self.hidden, heads, mlp_ratio)

    def forward(self, rows: Tensor) -> Tensor:
        image = rows.t().reshape(1, self.dim, self.height, self.width)
        tokens = self._placed(self.to_tokens(image).flatten(2).transpose(1, 2))
        count = tokens.shape[1]
        tokens = torch.cat([tokens, self.registers[None]], 1)
        for block in self.blocks:
            tokens = self._through(block, tokens)
        patches = self.to_patches(self._last(tokens[0, :count]))
        lines, columns, p = self.height // self.patch, self.width // self.patch, self.patch
        return patches.view(lines, columns, p, p, self.dim).transpose(1, 2).reshape(-1, self.dim)

    def _placed(self, tokens: Tensor) -> Tensor:
        return tokens

    def _through(self, block: nn.Module, tokens: Tensor) -> Tensor:
        return block(tokens)

    def _last(self, tokens: Tensor) -> Tensor:
        return normed(tokens)


class ModulatedBridge(VQBridge):
    """The bridge of FVQ's training scripts: fixed sine positions, and adaLN-Zero blocks under one trained condition.

    Args: those of VQBridge; the width must be a multiple of 4.
    """

    positions: Tensor

    def __init__(
        self,
        codes: int,
        dim: int,
        *,
        patch: int = 4,
        head_dim: int = 64,
        heads: int = 4,
        depth: int = 2,
        mlp_ratio: float = 2.0,
        registers: int = 0,
    ) -> None:
        super().__init__(
            codes,
            dim,
            patch=patch,
            head_dim=head_dim,
            heads=heads,
            depth=depth,
            mlp_ratio=mlp_ratio,
            registers=registers,
        )
        grid = sine_positions(self.height // patch, self.width // patch, self.hidden)
        self.register_buffer("positions", grid)
        self.condition = nn.Parameter(torch.randn(self.hidden) * 0.02)
        self.modulation = nn.Linear(self.hidden, 2 * self.hidden)
        _start_at_zero(self.modulation)

    def _block(self, heads: int, mlp_ratio: float) -> nn.Module:
        return ModulatedBlock(self.hidden, heads, mlp_ratio)

    def _placed(self, tokens: Tensor) -> Tensor:
        return tokens + self.positions

    def _through(self, block: nn.Module, tokens: Tensor) -> Tensor:
        return block(tokens, self.condition)

    def _last(self, tokens: Tensor) -> Tensor:
        shift, scale = self.modulation(F.silu(self.condition)).chunk(2)
        return normed(tokens) * (1 + scale) + shift


class LinearBridge(nn.Sequential):
    """Linear layers with ReLU between them on each row alone: FVQ's ablations `lin/1` and `lin/5`.

    Args:
        dim: of the rows.
        layers: how many.

    Shape:
        (codes, dim) -> (codes, dim)
    """

    def __init__(self, dim: int, layers: int = 1) -> None:
        if layers < 1:
            raise ConfigError(f"a linear bridge needs at least one layer, got {layers}")
        parts: list[nn.Module] = [nn.Linear(dim, dim)]
        for _ in range(layers - 1):
            parts += [nn.ReLU(), nn.Linear(dim, dim)]
        super().__init__(*parts)


# --- blocks ----------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """x += attention(norm x); x += mlp(norm x), where norms have no weights.

    Shape:
        (1, tokens, hidden) -> (1, tokens, hidden)
    """

    def __init__(self, hidden: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        wide = int(hidden * mlp_ratio)
        self.attention = Attention(hidden, heads)
        self.mlp = nn.Sequential(nn.Linear(hidden, wide), nn.GELU(approximate="tanh"), nn.Linear(wide, hidden))
        self.apply(_start)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(normed(x))
        return x + self.mlp(normed(x))


class ModulatedBlock(Block):
    """A block whose normalised inputs are shifted and scaled, and whose steps are gated, by a condition (hidden,)."""

    def __init__(self, hidden: int, heads: int, mlp_ratio: float) -> None:
        super().__init__(hidden, heads, mlp_ratio)
        self.modulation = nn.Linear(hidden, 6 * hidden)
        _start_at_zero(self.modulation)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:  # type: ignore[override]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(F.silu(condition)).chunk(6)
        x = x + gate * self.attention(normed(x) * (1 + scale) + shift)
        return x + mlp_gate * self.mlp(normed(x) * (1 + mlp_scale) + mlp_shift)


class Attention(nn.Module):
    """Multi-head attention of all tokens to all, with one projection for queries, keys and values."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def normed(x: Tensor) -> Tensor:
    """Layer normalisation without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def sine_positions(height: int, width: int, hidden: int) -> Tensor:
    """Fixed positions (height * width, hidden): the first half says the column, the second the line.

    Each half is sines, then cosines, of the coordinate over 10000^(i / (hidden / 4)).

    Raises:
        ConfigError: if hidden is no multiple of 4.
    """
    if hidden % 4:
        raise ConfigError(f"sine positions need a multiple of 4 channels, got {hidden}")
    rates = 10000.0 ** -(torch.arange(hidden // 4, dtype=torch.float64) / (hidden // 4))
    line, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis.flatten()[:, None] * rates for axis in (column, line)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], 1).float()


def _start(module: nn.Module) -> None:
    """Xavier-uniform weights, a convolution's as one matrix, and zero biases."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.data.flatten(1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _start_at_zero(linear: nn.Linear) -> None:
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


# --- after training --------------------------------------------------------------------------------------------------


@torch.no_grad()
def materialise(quantizer: Quantizer) -> Quantizer:
    """A copy whose tables hold their effective rows as plain parameters; bridges, maps and learning rules are gone.

    It gives the same codes and vectors: its state is that of an ordinary codebook.
    """
    plain = copy.deepcopy(quantizer)
    tables = [module for module in plain.modules() if isinstance(module, Table)]
    instead = {table: _plain(table) for table in tables}
    for parent in list(plain.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, Table) and child in instead:
                parent._modules[name] = instead[child]
    return plain


def _plain(table: Table) -> Table:
    rows = table.vectors().detach()
    if isinstance(table.vectors, Frozen):
        return Table(Frozen(rows), space=table.space)
    new = Table(Trained(table.vectors.codes, table.dim, init=lambda weight: weight.copy_(rows)), space=table.space)
    return new.to(rows.device).train(table.training)
