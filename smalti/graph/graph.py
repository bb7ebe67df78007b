"""A directed graph with typed edges, and the two measures of its nodes by which anchors are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smalti.errors import InputError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Graph:
    """A directed graph with typed edges.

    Args:
        triples: (edges, 3), integer: head, relation, tail. Parallel edges count as often as they occur.
        nodes: number of nodes; ids are 0..nodes-1.
        relations: number of relation types, inverses included.

    Raises:
        InputError: if a triple names a node or a relation that does not exist.
    """

    triples: Tensor
    nodes: int
    relations: int

    def __post_init__(self) -> None:
        triples = self.triples
        if triples.ndim != 2 or triples.shape[1] != 3 or triples.is_floating_point():
            raise InputError(f"triples must be integers (edges, 3), got {triples.dtype} {tuple(triples.shape)}")
        tops = torch.tensor([self.nodes, self.relations, self.nodes])
        if len(triples) and bool(((triples.cpu() < 0) | (triples.cpu() >= tops)).any()):
            raise InputError(f"a triple lies outside {self.nodes} nodes and {self.relations} relations")

    @classmethod
    def with_inverses(cls, triples: Tensor, nodes: int, relations: int) -> Graph:
        """Adds to every edge (head, r, tail) its inverse (tail, r + relations, head)."""
        head, relation, tail = triples.unbind(1)
        inverse = torch.stack([tail, relation + relations, head], 1)
        return cls(torch.cat([triples, inverse]), nodes, 2 * relations)

    @cached_property
    def edges(self) -> tuple[Ints, Ints, Ints]:
        """Heads, relations and tails."""
        head, relation, tail = self.triples.cpu().numpy().astype(np.int64).T
        return head, relation, tail

    @cached_property
    def incoming(self) -> tuple[Ints, Ints]:
        """Distinct heads of the edges into each node, ascending: where each node's heads start (nodes + 1), heads."""
        head, _, tail = self.edges
        pairs = np.unique(tail * self.nodes + head)
        starts = np.searchsorted(pairs, np.arange(self.nodes + 1) * self.nodes)
        return starts, pairs % self.nodes


def degree(graph: Graph) -> Tensor:
    """Edges at each node, in and out: (nodes,), int64."""
    head, _, tail = graph.edges
    return torch.from_numpy(np.bincount(np.concatenate([head, tail]), minlength=graph.nodes))


def pagerank(graph: Graph, *, damping: float = 0.85, tolerance: float = 1e-14, iterations: int = 1000) -> Tensor:
    """Stationary probabilities (nodes,), float64, of a walk along edges that jumps anywhere with chance 1 - damping.

    Parallel edges draw the walk as often as they occur; from a node without edges it jumps.
    """
    head, _, tail = graph.edges
    out = np.bincount(head, minlength=graph.nodes)
    share = 1.0 / np.maximum(out, 1)
    p = np.full(graph.nodes, 1.0 / graph.nodes)
    for _ in range(iterations):
        moved = np.bincount(tail, weights=(p * share)[head], minlength=graph.nodes) + p[out == 0].sum() / graph.nodes
        fresh = (1 - damping) / graph.nodes + damping * moved
        change, p = np.abs(fresh - p).sum(), fresh
        if change < tolerance:
            break
    return torch.from_numpy(p / p.sum())
