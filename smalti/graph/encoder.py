"""Vectors of nodes from their codes: what replaces a table with a row per node.

Source: "NodePiece: Compositional and Parameter-Efficient Representations of Large Knowledge Graphs" (2021; its "cat").

    anchors (k) ─embedding + that of the distance─┐
    relations (m) ─embedding──────────────────────┴─► side by side (D (k + m)) ─► linear, ReLU ─► linear ─► D
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from smalti.errors import InputError
from smalti.graph.anchors import FARTHEST
from smalti.graph.nodes import NodeTokenizer, NodeTokens


class NodeEncoder(nn.Module):
    """Node vectors by concatenation and two layers.

    Args:
        tokenizer: whose codes are encoded.
        dim: D.
        dropout: after the first layer.

    Shape:
        codes (nodes, k + m), distances (nodes, k) -> (nodes, D)
    """

    def __init__(self, tokenizer: NodeTokenizer, dim: int, *, dropout: float = 0.1) -> None:
        super().__init__()
        self.k, self.m = tokenizer.k, tokenizer.m
        self.tokens = nn.Embedding(tokenizer.vocab, dim)
        self.distances = nn.Embedding(FARTHEST, dim)
        self.layers = nn.Sequential(
            nn.Linear(dim * (self.k + self.m), 2 * dim), nn.Dropout(dropout), nn.ReLU(), nn.Linear(2 * dim, dim)
        )
        nn.init.xavier_uniform_(self.tokens.weight)
        nn.init.xavier_uniform_(self.distances.weight)

    def forward(self, tokens: NodeTokens) -> Tensor:
        if tokens.codes.shape[1] != self.k + self.m:
            raise InputError(f"codes must be (nodes, {self.k + self.m}), got {tuple(tokens.codes.shape)}")
        vectors = self.tokens(tokens.codes.long())
        anchors = vectors[:, : self.k] + self.distances(tokens.distances)
        return self.layers(torch.cat([anchors, vectors[:, self.k :]], 1).flatten(1))
