"""Nodes of a knowledge graph as sets of tokens: their nearest anchors, and the relations that leave them.

Source: "NodePiece: Compositional and Parameter-Efficient Representations of Large Knowledge Graphs" (2021); family
"graph anchor-relation tokens" of "Discrete Tokenization for Multimodal LLMs: A Comprehensive Survey" (2025).

    triples ──with_inverses──► graph ──choose_anchors──► anchors (A)
    node ──nearest_anchors──► k anchors with distances ─┐
    node ──relation_tokens──► m outgoing relations ─────┴─► code (k + m); a new node needs its edges, no training
    code ──Jaccard──► the known node whose code shares most (the code is lossy: nothing decodes it to a graph)

A code's numbers: anchors 0..A-1 in the order of their choice, four service tokens A..A+3 (the last one stands for "no
anchor"), then A+4+r for relation r, and A+4+R for "no relation".
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smalti.errors import InputError
from smalti.graph.anchors import NOTHING, PADDING, Mode, nearest_anchors, within_groups
from smalti.graph.graph import Graph, Ints

SERVICE_TOKENS = 4  # CLS, MASK, PAD, SEP follow the anchors; the last one doubles as NOTHING


def relation_context(graph: Graph) -> Tensor:
    """Which relations leave each node: (nodes, relations), bool."""
    head, relation, _ = graph.edges
    context = torch.zeros(graph.nodes, graph.relations, dtype=torch.bool)
    context[torch.from_numpy(head), torch.from_numpy(relation)] = True
    return context


def relation_tokens(graph: Graph, m: int, *, seed: int | None = None) -> Tensor:
    """m of the relations that leave each node: (nodes, m), int64, filled up with the number of relations.

    Args:
        graph: with inverse edges.
        m: how many for each node.
        seed: draws them at random, as published; None takes the most frequent of the node (lowest id where equal).
    """
    head, relation, _ = graph.edges
    pairs, count = np.unique(head * graph.relations + relation, return_counts=True)
    nodes, kinds = pairs // graph.relations, pairs % graph.relations
    key = -count if seed is None else np.random.default_rng(seed).random(len(pairs))
    order = np.lexsort((kinds, key, nodes))
    nodes, kinds = nodes[order], kinds[order]
    place = within_groups(nodes)
    tokens = np.full((graph.nodes, m), graph.relations, dtype=np.int64)
    kept = place < m
    tokens[nodes[kept], place[kept]] = kinds[kept]
    return torch.from_numpy(tokens)


@dataclass(frozen=True)
class NodeTokens:
    """Codes of nodes.

    Args:
        codes: (nodes, k + m), int32: anchors, then relations (see the numbers in the module's docstring).
        distances: (nodes, k), int64, steps to the anchors.
    """

    codes: Tensor
    distances: Tensor


@dataclass(frozen=True)
class NodeTokenizer:
    """A vocabulary of anchors and relations, and nodes in it. Nothing is trained, so new nodes are coded like old ones.

    Args:
        anchors: (A,), node ids in order of choice, from `choose_anchors`.
        relations: number of relation types, inverses included.
        k: anchors for each node.
        m: relations for each node.
        identity: as in `nearest_anchors`.
        strict_parity: as in `nearest_anchors`.
        seed: as in `relation_tokens`.
    """

    anchors: Tensor
    relations: int
    k: int
    m: int
    identity: bool = True
    strict_parity: Mode | None = None
    seed: int | None = None
    _rank: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rank", {node: rank for rank, node in enumerate(self.anchors.tolist())})

    @property
    def nothing(self) -> int:
        """The token of "no anchor"."""
        return len(self.anchors) + SERVICE_TOKENS - 1

    @property
    def vocab(self) -> int:
        """Anchors, service tokens, relations, and "no relation"."""
        return len(self.anchors) + SERVICE_TOKENS + self.relations + 1

    def anchor_tokens(self, entities: Tensor) -> Tensor:
        """Tokens of entity ids that `nearest_anchors` gave."""
        special = {NOTHING: self.nothing, PADDING: len(self.anchors) + 2}
        numbers = {**self._rank, **special}
        return torch.tensor([numbers[entity] for entity in entities.flatten().tolist()]).view(entities.shape)

    def encode(self, graph: Graph) -> NodeTokens:
        """Codes of all nodes of a graph, which may have grown since the anchors were chosen.

        Raises:
            InputError: if the graph lacks an anchor, or counts relations differently.
        """
        if graph.relations != self.relations or int(self.anchors.max()) >= graph.nodes:
            raise InputError(
                f"a graph of {graph.nodes} nodes and {graph.relations} relations does not fit anchors up to "
                f"{int(self.anchors.max())} and {self.relations} relations"
            )
        entities, distances = nearest_anchors(
            graph, self.anchors, self.k, identity=self.identity, strict_parity=self.strict_parity
        )
        kinds = relation_tokens(graph, self.m, seed=self.seed) + len(self.anchors) + SERVICE_TOKENS
        return NodeTokens(torch.cat([self.anchor_tokens(entities), kinds], 1).int(), distances)

    def decode(self, codes: Tensor, known: Tensor) -> Tensor:
        """The node among known ones (n, k + m) whose code shares most with each of codes (q, k + m): (q,), int64.

        Sharing is measured by Jaccard's index of the two sets of tokens; fillers do not count; lowest node where equal.
        """
        sets = _Members(known, self._fillers)
        return torch.tensor([int(sets.jaccard(row).argmax()) for row in _tokens(codes, self._fillers)])

    @property
    def _fillers(self) -> tuple[int, ...]:
        first = len(self.anchors)
        return (*range(first, first + SERVICE_TOKENS), self.vocab - 1)


@dataclass(frozen=True)
class CodeReport:
    """How well codes tell nodes apart.

    Args:
        nodes: how many there are.
        distinct: how many different codes (as sets).
        shared: nodes that share their code with another node.
        largest: nodes under the most frequent code.
        entropy: of the distribution of codes, in bits; log2(nodes) at most.
        jaccard: mean distance 1 - |both| / |either| of random pairs of nodes.
        groups: the nodes under each code that several share.
    """

    nodes: int
    distinct: int
    shared: int
    largest: int
    entropy: float
    jaccard: float
    groups: tuple[tuple[int, ...], ...]


def report(tokens: NodeTokens, tokenizer: NodeTokenizer, *, pairs: int = 1000, seed: int = 0) -> CodeReport:
    """Counts collisions ("random entity quantization" asks only that codes differ)."""
    sets = _tokens(tokens.codes, tokenizer._fillers)
    under: dict[tuple[int, ...], list[int]] = {}
    for node, row in enumerate(sets):
        under.setdefault(tuple(row.tolist()), []).append(node)
    sizes = np.array([len(group) for group in under.values()])
    p = sizes / len(sets)
    chosen = np.random.default_rng(seed).integers(len(sets), size=(pairs, 2))
    distances = [_distance(sets[a], sets[b]) for a, b in chosen.tolist() if a != b]
    return CodeReport(
        nodes=len(sets),
        distinct=len(under),
        shared=int(sizes[sizes > 1].sum()),
        largest=int(sizes.max()),
        entropy=float(-(p * np.log2(p)).sum()),
        jaccard=float(np.mean(distances)) if distances else 0.0,
        groups=tuple(tuple(group) for group in under.values() if len(group) > 1),
    )


def _tokens(codes: Tensor, fillers: tuple[int, ...]) -> list[Ints]:
    """Each code as a sorted set without fillers."""
    return [np.setdiff1d(row, fillers) for row in codes.cpu().numpy().astype(np.int64)]


def _distance(a: Ints, b: Ints) -> float:
    both = len(np.intersect1d(a, b, assume_unique=True))
    either = len(a) + len(b) - both
    return 1 - both / either if either else 0.0


class _Members:
    """Which nodes hold each token."""

    def __init__(self, codes: Tensor, fillers: tuple[int, ...]) -> None:
        sets = _tokens(codes, fillers)
        self.sizes = np.array([len(row) for row in sets])
        tokens = np.concatenate(sets)
        nodes = np.repeat(np.arange(len(sets)), self.sizes)
        order = tokens.argsort(kind="stable")
        self.tokens, self.nodes = tokens[order], nodes[order]

    def jaccard(self, row: Ints) -> NDArray[np.float64]:
        left, right = np.searchsorted(self.tokens, row), np.searchsorted(self.tokens, row, side="right")
        holders = [self.nodes[a:b] for a, b in zip(left, right, strict=True)]
        both = np.bincount(np.concatenate(holders) if holders else [], minlength=len(self.sizes))
        either = len(row) + self.sizes - both
        return np.where(either > 0, both / np.maximum(either, 1), 1.0)  # two codes without tokens are equal
