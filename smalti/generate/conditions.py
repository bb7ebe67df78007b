"""What stands before the tokens of a sequence: a class, text features, or other tokens.

label (B,)           ──► one row of a table ──────► (B, 1, width)         null: a row of its own
features (B,L,D)     ──► MLP ─────────────────────► (B, L, width), mask   null: a fixed array of features
condition (B,L) ids  ──► the tokens' own table ───► (B, L, width)         null: none
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

import smalti.config
from smalti.errors import ConfigError, InputError
from smalti.tokenizer import Condition


@dataclass(frozen=True)
class Prefix:
    """Vectors (batch, length, width) before the first token, and which of them others may see (batch, length)."""

    vectors: Tensor
    visible: Tensor | None = None

    def __len__(self) -> int:
        return self.vectors.shape[1]

    def cat(self, other: Prefix) -> Prefix:
        """Both batches as one."""
        visible = None
        if self.visible is not None and other.visible is not None:
            visible = torch.cat([self.visible, other.visible])
        return Prefix(torch.cat([self.vectors, other.vectors]), visible)


class PrefixModule(nn.Module, ABC):
    """Turns conditions into a Prefix.

    Attributes:
        conditions: the keywords it takes.
    """

    conditions: ClassVar[Mapping[str, Condition]]

    @abstractmethod
    def forward(self, batch: int, embedding: nn.Embedding, **conditions: Any) -> Prefix:
        """The prefix of a batch; in training it may drop conditions, for guidance.

        Args:
            batch: number of samples.
            embedding: the table of token vectors.
            **conditions: as declared in `conditions`.
        """

    @abstractmethod
    def null(self, batch: int, embedding: nn.Embedding, **conditions: Any) -> Prefix:
        """The prefix without its condition, which guidance needs.

        Raises:
            ConfigError: if the model has none.
        """


class ClassCondition(smalti.config.Config):
    """A class label.

    Args:
        classes: how many there are.
        dropout: how often training replaces a label by "no class".
    """

    type: Literal["class"] = "class"
    classes: int = Field(1000, ge=1)
    dropout: float = Field(0.1, ge=0, le=1)

    def build(self, width: int) -> PrefixModule:
        return ClassPrefix(self, width)

    @property
    def length(self) -> int:
        return 1


class ClassPrefix(PrefixModule):
    """One vector per class, and one for no class (label `classes`, or none given)."""

    conditions: ClassVar[Mapping[str, Condition]] = {"label": Condition(Tensor)}

    def __init__(self, config: ClassCondition, width: int) -> None:
        super().__init__()
        self.classes, self.dropout = config.classes, config.dropout
        self.embedding = nn.Embedding(config.classes + 1, width)

    def forward(self, batch: int, embedding: nn.Embedding, **conditions: Any) -> Prefix:
        device = self.embedding.weight.device
        label = conditions.get("label")
        if label is None:
            return self.null(batch, embedding)
        label = torch.as_tensor(label, device=device)
        if label.shape != (batch,) or label.dtype != torch.int64:
            raise InputError(f"label must be int64 ({batch},), got {label.dtype} {tuple(label.shape)}")
        if not self.training and bool(((label < 0) | (label > self.classes)).any()):
            raise InputError(
                f"labels must be in 0..{self.classes - 1} (or {self.classes}, no class), got {label.tolist()}"
            )
        if self.training and self.dropout > 0:
            label = torch.where(torch.rand(batch, device=device) < self.dropout, self.classes, label)
        return Prefix(self.embedding(label)[:, None])

    def null(self, batch: int, embedding: nn.Embedding, **conditions: Any) -> Prefix:
        label = torch.full((batch,), self.classes, device=self.embedding.weight.device)
        return Prefix(self.embedding(label)[:, None])


class FeatureCondition(smalti.config.Config):
    """Features of a text encoder.

    Args:
        length: how many there are per sample.
        dim: their dimension.
        dropout: how often training replaces them by "no text".
    """

    type: Literal["features"] = "features"
    length: int = Field(120, ge=1)
    dim: int = Field(2048, ge=1)
    dropout: float = Field(0.1, ge=0, le=1)

    def build(self, width: int) -> PrefixModule:
        return FeaturePrefix(self, width)


class FeaturePrefix(PrefixModule):
    """Features through an MLP; a fixed random array stands for no text."""

    conditions: ClassVar[Mapping[str, Condition]] = {
        "features": Condition(Tensor),
        "features_mask": Condition(Tensor),
    }
    empty: Tensor

    def __init__(self, config: FeatureCondition, width: int) -> None:
        super().__init__()
        self.length, self.dim, self.dropout = config.length, config.dim, config.dropout
        self.up = nn.Linear(config.dim, width, bias=False)
        self.down = nn.Linear(width, width, bias=False)
        self.register_buffer("empty", torch.randn(config.length, config.dim) * config.dim**-0.5)

    def forward(self, batch: int, embedding: nn.Embedding, **conditions: Any) -> Prefix:
        features = conditions.get("features")
        if features is None:
            return self.null(batch, embedding)
        features = features.to(self.empty)
        if features.shape != (batch, self.length, self.dim):
            raise InputError(
                f"features must be ({batch}, {self.length}, {self.dim}), padded where a text is shorter, "
                f"got {tuple(features.shape)}"
            )
        if self.training and self.dropout > 0:
            dropped = torch.rand(batch, 1, 1, device=features.device) < self.dropout
            features = torch.where(dropped, self.empty, features)
        return Prefix(self._project(features), self._mask(batch, conditions))

    def null(self, batch: int, embedding: nn.Embedding, **conditions: Any) -> Prefix:
        # The mask of the text stays, as published: what is hidden with the text is hidden without it.
        return Prefix(self._project(self.empty.expand(batch, -1, -1)), self._mask(batch, conditions))

    def _project(self, features: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(features), approximate="tanh"))

    def _mask(self, batch: int, conditions: Mapping[str, Any]) -> Tensor | None:
        mask = conditions.get("features_mask")
        if mask is None:
            return None
        if mask.shape != (batch, self.length):
            raise InputError(f"features_mask must be ({batch}, {self.length}), got {tuple(mask.shape)}")
        return mask.to(self.empty.device).bool()


class TokenCondition(smalti.config.Config):
    """Other tokens that share the table of the sequence's own (a class id, a coarser map, a start token).

    Args:
        length: how many there are per sample.
        start: the id that stands for all of them where no condition is given (an unconditional model).
    """

    type: Literal["tokens"] = "tokens"
    length: int = Field(1, ge=1)
    start: int = Field(0, ge=0)

    def build(self, width: int) -> PrefixModule:
        return TokenPrefix(self)


class TokenPrefix(PrefixModule):
    """Vectors of the condition's tokens."""

    conditions: ClassVar[Mapping[str, Condition]] = {"condition": Condition(Tensor)}

    def __init__(self, config: TokenCondition) -> None:
        super().__init__()
        self.length, self.start = config.length, config.start

    def forward(self, batch: int, embedding: nn.Embedding, **conditions: Any) -> Prefix:
        ids = conditions.get("condition")
        if ids is None:
            ids = torch.full((batch, self.length), self.start)
        if ids.shape != (batch, self.length) or ids.dtype != torch.int64:
            raise InputError(f"condition must be int64 ({batch}, {self.length}), got {ids.dtype} {tuple(ids.shape)}")
        return Prefix(embedding(ids.to(embedding.weight.device)))

    def null(self, batch: int, embedding: nn.Embedding, **conditions: Any) -> Prefix:
        raise ConfigError("this model was not trained without its condition, so it has no guidance: use guidance=1")


PrefixConfig = Annotated[ClassCondition | FeatureCondition | TokenCondition, Field(discriminator="type")]
