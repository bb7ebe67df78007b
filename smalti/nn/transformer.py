"""A decoder-only transformer with a key-value cache, of which minGPT and Llama are two configurations.

    x (B,T,width) ──► + learned positions ──► blocks ──► norm ──► (B,T,width)
                                               │
                      block   x + attention(norm x), then x + mlp(norm x)
                      attention sees earlier positions; rotary positions turn queries and keys

Embeddings, conditions and the head over the vocabulary belong to whoever builds it (`smalti.generate`).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

import smalti.config

Norm = Literal["layer", "rms"]
MlpType = Literal["gelu", "swiglu"]


class LearnedPositions(smalti.config.Config):
    """A trained vector for each absolute position, added to the input."""

    type: Literal["learned"] = "learned"


class GridRotary(smalti.config.Config):
    """Two-dimensional rotary positions: half of each head turns with the row, half with the column.

    Args:
        grid: rows and columns; they are the last positions of the sequence, in raster order.
        base: longest wavelength, in cells over 2 pi.
        zero_prefix: queries and keys before the grid become zero, instead of being left as they are.
    """

    type: Literal["grid"] = "grid"
    grid: tuple[int, int] = (16, 16)
    base: float = Field(10000.0, gt=1)
    # official LlamaGen weights need this: their table has zeros, not the identity, for condition tokens
    zero_prefix: bool = False


class Rotary(smalti.config.Config):
    """Rotary positions of a sequence.

    Args:
        base: longest wavelength, in positions over 2 pi.
        pairing: which dimensions of a head turn together: "neighbours", or "halves" (one of each half).
    """

    type: Literal["rotary"] = "rotary"
    base: float = Field(10000.0, gt=1)
    pairing: Literal["neighbours", "halves"] = "neighbours"


Positions = Annotated[LearnedPositions | GridRotary | Rotary, Field(discriminator="type")]


class KeyValueCache:
    """Keys and values of the positions that were computed so far, per layer."""

    def __init__(self, layers: int) -> None:
        self._keys: list[Tensor | None] = [None] * layers
        self._values: list[Tensor | None] = [None] * layers
        self._capacity = 0
        self.length = 0

    def reserve(self, steps: int) -> None:
        """Sets how many positions the buffers are allocated for."""
        self._capacity = steps

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (batch, heads, steps, head dim) to a layer; gives all that it holds."""
        end = self.length + keys.shape[2]
        return self._append(self._keys, layer, keys, end), self._append(self._values, layer, values, end)

    def _append(self, buffers: list[Tensor | None], layer: int, new: Tensor, end: int) -> Tensor:
        buffer = buffers[layer]
        if buffer is None or buffer.shape[2] < end:
            batch, heads, _, dim = new.shape
            grown = new.new_empty(batch, heads, max(end, self._capacity), dim)
            if buffer is not None:
                grown[:, :, : self.length] = buffer[:, :, : self.length]
            buffers[layer] = buffer = grown
        buffer[:, :, self.length : end] = new
        return buffer[:, :, :end]


class Transformer(nn.Module):
    """Blocks and the final norm.

    Shape:
        x: (batch, steps, width)  ->  (batch, steps, width)
    """

    class Config(smalti.config.Config):
        """Sizes and choices.

        Args:
            width: dimension of the residual stream.
            layers, heads: blocks, and attention heads in each.
            kv_heads: heads of keys and values, shared by groups of query heads; all by default.
            hidden: width inside the MLP.
            context: longest sequence, prefix included.
            norm: "layer" (with bias) or "rms", before each half of a block and at the end.
            norm_eps: added to its variance.
            mlp: "gelu" (exact) or "swiglu".
            bias: whether linear maps have one.
            positions: learned or rotary.
            bidirectional_prefix: this many leading positions see each other.
            embedding_dropout, residual_dropout, attention_dropout: probabilities, in training.
        """

        width: int = Field(1024, ge=1)
        layers: int = Field(24, ge=1)
        heads: int = Field(16, ge=1)
        kv_heads: int | None = Field(None, ge=1)
        hidden: int = Field(4096, ge=1)
        context: int = Field(256, ge=1)
        norm: Norm = "layer"
        norm_eps: float = Field(1e-5, gt=0)
        mlp: MlpType = "gelu"
        bias: bool = True
        positions: Positions = LearnedPositions()
        bidirectional_prefix: int = Field(0, ge=0)
        embedding_dropout: float = Field(0.0, ge=0, lt=1)
        residual_dropout: float = Field(0.0, ge=0, lt=1)
        attention_dropout: float = Field(0.0, ge=0, lt=1)

        @property
        def head_dim(self) -> int:
            return self.width // self.heads

        @model_validator(mode="after")
        def _check(self) -> Self:
            if self.width % self.heads:
                raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
            if self.kv_heads is not None and self.heads % self.kv_heads:
                raise ValueError(f"heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")
            if isinstance(self.positions, Rotary) and self.head_dim % 2:
                raise ValueError(f"head dimension {self.head_dim} must be even for rotary positions")
            if isinstance(self.positions, GridRotary):
                rows, columns = self.positions.grid
                if self.head_dim % 4:
                    raise ValueError(f"head dimension {self.head_dim} must be a multiple of 4 for rotary positions")
                if rows < 1 or columns < 1 or rows * columns > self.context:
                    raise ValueError(f"grid {rows}x{columns} must fit the context of {self.context}")
            return self

        def build(self) -> Transformer:
            return Transformer(self)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = make_norm(config)
        self.positions: nn.Parameter | None = None
        self.rotary: Tensor | None
        if not isinstance(config.positions, LearnedPositions):
            table = rotary_table(config.positions, config.head_dim, config.context)
            self.register_buffer("rotary", table, persistent=False)
        else:
            self.positions = nn.Parameter(torch.zeros(config.context, config.width))
            self.rotary = None
        self.apply(init_weights)

    def cache(self) -> KeyValueCache:
        """An empty cache for this stack, with room for its whole context."""
        cache = KeyValueCache(self.config.layers)
        cache.reserve(self.config.context)
        return cache

    def forward(self, x: Tensor, *, cache: KeyValueCache | None = None, visible: Tensor | None = None) -> Tensor:
        """Runs the blocks.

        Args:
            x: (batch, steps, width), the positions that follow those in the cache.
            cache: what earlier calls computed; it is extended.
            visible: (batch, leading positions), bool: which leading positions others may see. Every position sees
                itself.
        """
        start = 0 if cache is None else cache.length
        steps = slice(start, start + x.shape[1])
        if self.positions is not None:
            x = x + self.positions[steps]
        x = self.dropout(x)
        rotary = None if self.rotary is None else self.rotary[steps]
        mask = attention_mask(steps, visible, self.config.bidirectional_prefix, x.device)
        causal = mask is None and x.shape[1] > 1
        for layer, block in enumerate(self.blocks):
            x = block(x, rotary=rotary, mask=mask, causal=causal, cache=cache, layer=layer)
        if cache is not None:
            cache.length = steps.stop
        return self.norm(x)


class Block(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, config: Transformer.Config) -> None:
        super().__init__()
        self.norm1 = make_norm(config)
        self.attention = Attention(config)
        self.norm2 = make_norm(config)
        self.mlp: nn.Module = SwiGlu(config) if config.mlp == "swiglu" else GeluMlp(config)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self,
        x: Tensor,
        *,
        rotary: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        h = self.attention(self.norm1(x), rotary=rotary, mask=mask, causal=causal, cache=cache, layer=layer)
        x = x + self.dropout(h)
        return x + self.dropout(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Multi-head attention with one fused map to queries, keys and values."""

    def __init__(self, config: Transformer.Config) -> None:
        super().__init__()
        self.heads = config.heads
        self.kv_heads = config.kv_heads or config.heads
        self.dropout = config.attention_dropout
        self.halves = isinstance(config.positions, Rotary) and config.positions.pairing == "halves"
        dim = config.head_dim
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.kv_heads) * dim, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)

    def forward(
        self,
        x: Tensor,
        *,
        rotary: Tensor | None = None,
        mask: Tensor | None = None,
        causal: bool = False,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        batch, steps, width = x.shape
        qkv = self.qkv(x).view(batch, steps, self.heads + 2 * self.kv_heads, -1).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        if rotary is not None:
            q, k = rotate(q, rotary, self.halves), rotate(k, rotary, self.halves)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        h = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=self.kv_heads != self.heads,
        )
        return self.out(h.transpose(1, 2).reshape(batch, steps, width))


class GeluMlp(nn.Module):
    """down(gelu(up x))."""

    def __init__(self, config: Transformer.Config) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.hidden, bias=config.bias)
        self.down = nn.Linear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class SwiGlu(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, config: Transformer.Config) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.hidden, bias=config.bias)
        self.up = nn.Linear(config.width, config.hidden, bias=config.bias)
        self.down = nn.Linear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def make_norm(config: Transformer.Config) -> nn.Module:
    """The norm of a configuration; its statistics are float32 whatever the type of x."""
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(config.width, eps=config.norm_eps)


def init_weights(module: nn.Module) -> None:
    """GPT-2's rule, which both families keep: normal with deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def attention_mask(
    steps: slice, visible: Tensor | None, bidirectional_prefix: int, device: torch.device
) -> Tensor | None:
    """Which keys 0..stop-1 the queries start..stop-1 see, where the plain causal rule does not say it.

    Args:
        steps: start and stop of the queries.
        visible: (batch, leading positions), bool; False hides a key from every other position.
        bidirectional_prefix: this many leading positions see each other.
        device: where the mask is needed.

    Returns:
        bool, broadcastable to (batch, heads, queries, keys); None where causal attention over exactly the queries, or
        one query that sees everything, is meant.
    """
    start, stop = steps.start, steps.stop
    alone = start == 0 or stop - start == 1
    if visible is None and alone and start >= bidirectional_prefix - 1:
        return None
    queries = torch.arange(start, stop, device=device)[:, None]
    keys = torch.arange(stop, device=device)[None, :]
    mask = (keys <= queries) | ((queries < bidirectional_prefix) & (keys < bidirectional_prefix))
    if visible is None:
        return mask
    shown = F.pad(visible, (0, stop - visible.shape[1]), value=True)[:, :stop]
    return ((mask & shown[:, None, :]) | (keys == queries))[:, None]


def rotary_table(positions: GridRotary | Rotary, head_dim: int, context: int) -> Tensor:
    """Cosines and sines (context, head_dim / 2, 2) of each position; a grid comes after its prefix."""
    if isinstance(positions, Rotary):
        angles = torch.outer(torch.arange(context, dtype=torch.float32), _frequencies(positions.base, head_dim))
        return torch.stack([angles.cos(), angles.sin()], dim=-1)
    rows, columns = positions.grid
    frequencies = _frequencies(positions.base, head_dim // 2)
    by_row = torch.outer(torch.arange(rows, dtype=torch.float32), frequencies)[:, None].expand(-1, columns, -1)
    by_column = torch.outer(torch.arange(columns, dtype=torch.float32), frequencies)[None].expand(rows, -1, -1)
    angles = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    prefix = torch.zeros(context - len(table), *table.shape[1:])
    if not positions.zero_prefix:
        prefix[..., 0] = 1
    return torch.cat([prefix, table])


def _frequencies(base: float, dim: int) -> Tensor:
    return 1 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def rotate(x: Tensor, table: Tensor, halves: bool = False) -> Tensor:
    """Turns pairs of (batch, heads, steps, head dim) by the angles of each step (steps, pairs, 2).

    Args:
        x: queries or keys.
        table: as `rotary_table` gives it.
        halves: a pair is one dimension of each half, not two neighbours.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    pairs = wide.unflatten(-1, (2, -1)).transpose(-1, -2) if halves else wide.unflatten(-1, (-1, 2))
    first, second = pairs.unbind(-1)
    cos, sin = table.unbind(-1)
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return (turned.transpose(-1, -2) if halves else turned).flatten(-2).to(x.dtype)
