"""Anchors of a graph: which nodes they are, and which of them lie nearest to each node.

Source: "NodePiece: Compositional and Parameter-Efficient Representations of Large Knowledge Graphs" (2021).

    nearest first, against the direction of edges:  anchor ──► ... ──► node
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from smalti.errors import ConfigError
from smalti.graph.graph import Graph, Ints, degree, pagerank

Mode = Literal["bfs", "path"]

NOTHING = -99  # entity id where a node has no further anchor
PADDING = -100  # entity id behind the end of a list that came out short, in the published path mode
FARTHEST = 50  # published: the search for anchors ends before this hop
SHARES: Mapping[str, float] = {"degree": 0.4, "pagerank": 0.4, "random": 0.2}


def choose_anchors(
    graph: Graph,
    anchors: int,
    shares: Mapping[str, float] = SHARES,
    *,
    seed: int = 0,
    order: Tensor | None = None,
) -> Tensor:
    """Anchors by several strategies, in order of choice, (about `anchors`,), int64.

    Args:
        graph: with inverse edges.
        anchors: how many; each strategy gives ceil(share * anchors), so rounding may add one per strategy.
        shares: of "degree" (most edges first), "pagerank", "random", taken in this order, which must sum to 1. Equal
            nodes keep the order of their ids.
        seed: of the random order.
        order: (nodes,), replaces the random order.

    Raises:
        ConfigError: if a strategy is unknown, or the shares do not sum to 1.
    """
    known = {"degree", "pagerank", "random"}
    if unknown := {name for name, share in shares.items() if share > 0} - known:
        raise ConfigError(f"anchors can be chosen by {sorted(known)}, not by {sorted(unknown)}")
    if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6 or not 1 <= anchors <= graph.nodes:
        raise ConfigError(f"shares must sum to 1 and anchors be in 1..{graph.nodes}, got {dict(shares)}, {anchors}")
    chosen: dict[int, None] = {}
    for name, share in shares.items():
        if share <= 0:
            continue
        wanted = ceil(share * anchors)
        ranking = _ranking(graph, name, seed, order)
        fresh = [node for node in ranking.tolist() if node not in chosen][:wanted]
        chosen.update(dict.fromkeys(fresh))
    return torch.tensor(list(chosen))


def _ranking(graph: Graph, strategy: str, seed: int, order: Tensor | None) -> Tensor:
    if strategy == "degree":
        return degree(graph).argsort(descending=True, stable=True)
    if strategy == "pagerank":
        # Nodes that a symmetry of the graph exchanges differ in their last bits: rounding makes them equal.
        return pagerank(graph).mul(2.0**40).round().argsort(descending=True, stable=True)
    return torch.randperm(graph.nodes, generator=torch.Generator().manual_seed(seed)) if order is None else order


def nearest_anchors(
    graph: Graph,
    anchors: Tensor,
    k: int,
    *,
    identity: bool = True,
    strict_parity: Mode | None = None,
) -> tuple[Tensor, Tensor]:
    """The k anchors from which each node is reached in the fewest steps, nearest first, by order of choice where equal.

    Args:
        graph: with inverse edges.
        anchors: (A,), node ids in order of choice.
        k: how many for each node.
        identity: anchors are their own first anchor, at distance 0.
        strict_parity: what the published code gives in its mode "bfs" or "path", defects included; None for what is
            right, where the two modes agree.

    Returns:
        entity ids of anchors (nodes, k), NOTHING where a node reaches no more; steps (nodes, k), 0 at NOTHING. int64.
    """
    if k < 1 or anchors.ndim != 1 or len(set(anchors.tolist())) != len(anchors):
        raise ConfigError(f"k must be positive and anchors distinct, got {k} and {tuple(anchors.shape)}")
    if strict_parity is not None:
        return _published(graph, anchors.tolist(), k, identity, strict_parity)
    ids, steps = _propagated(graph, anchors.numpy(), k + 1)
    own = ids[:, 0] == np.arange(graph.nodes)
    if identity:
        own[:] = False
    ids = np.where(own[:, None], ids[:, 1:], ids[:, :-1])
    steps = np.where(own[:, None], steps[:, 1:], steps[:, :-1])
    return torch.from_numpy(ids), torch.from_numpy(steps)


def _propagated(graph: Graph, anchors: Ints, k: int) -> tuple[Ints, Ints]:
    """The k nearest anchors of all nodes at once, a node that is one included.

    What is among the k nearest of a node is among the k nearest of the node before it on the way, so passing on what is
    new, hop after hop, misses nothing.
    """
    starts, heads = graph.incoming
    tails = np.repeat(np.arange(graph.nodes), np.diff(starts))
    found = np.full((graph.nodes, k), -1, dtype=np.int64)  # ranks of anchors
    steps = np.zeros((graph.nodes, k), dtype=np.int64)
    filled = np.zeros(graph.nodes, dtype=np.int64)
    nodes, ranks = anchors.astype(np.int64), np.arange(len(anchors))
    hop = 0
    while len(nodes) and hop < FARTHEST:
        order = np.lexsort((ranks, nodes))
        nodes, ranks = nodes[order], ranks[order]
        place = filled[nodes] + within_groups(nodes)
        kept = place < k
        nodes, ranks, place = nodes[kept], ranks[kept], place[kept]
        found[nodes, place], steps[nodes, place] = ranks, hop
        filled += np.bincount(nodes, minlength=graph.nodes)
        nodes, ranks = _passed_on(nodes, ranks, heads, tails, graph.nodes, len(anchors))
        fresh = (found[nodes] != ranks[:, None]).all(1)
        nodes, ranks, hop = nodes[fresh], ranks[fresh], hop + 1
    return np.where(found < 0, NOTHING, anchors[found]), steps


def within_groups(values: Ints) -> Ints:
    """The number of each element within its run of equal neighbours."""
    _, first, count = np.unique(values, return_index=True, return_counts=True)
    return np.arange(len(values)) - np.repeat(first, count)


def _passed_on(nodes: Ints, ranks: Ints, heads: Ints, tails: Ints, total: int, anchors: int) -> tuple[Ints, Ints]:
    """Distinct pairs (node after, rank) over all edges that leave the nodes, which are sorted."""
    left, right = np.searchsorted(nodes, heads), np.searchsorted(nodes, heads, side="right")
    count = right - left
    edge = np.repeat(np.arange(len(heads)), count)
    source = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + left[edge]
    pairs = np.unique(tails[edge] * anchors + ranks[source])
    return pairs // anchors, pairs % anchors


def _published(graph: Graph, anchors: list[int], k: int, identity: bool, mode: Mode) -> tuple[Tensor, Tensor]:
    """Node by node as migalkin/NodePiece does it."""
    rows = _published_bfs(graph, anchors, k) if mode == "bfs" else _published_path(graph, anchors, k)
    ids, steps = [], []
    members = set(anchors)
    for node, (near, far) in enumerate(rows):
        if identity and node in members:
            # official codes need this: in mode bfs only the first distance is overwritten, the others do not move.
            far = [0, *far[1:]] if mode == "bfs" else [0, *far[:-1]]
            near = [node, *near[:-1]]
        ids.append(near + [PADDING] * (k - len(near)))
        steps.append(far + [0] * (k - len(far)))
    return torch.tensor(ids), torch.tensor(steps)


def _published_bfs(graph: Graph, anchors: list[int], k: int) -> Iterator[tuple[list[int], list[int]]]:
    members = set(anchors)
    for node in range(graph.nodes):
        near: list[int] = []
        far: list[int] = []
        for hop, reached in enumerate(_layers(graph, node), start=1):
            if len(near) >= k or hop >= FARTHEST:
                break
            # official codes need this: within a hop the order is that of a Python set.
            fresh = list(set(reached).intersection(members).difference(set(near)))
            near += fresh
            far += [hop] * len(fresh)
        missing = max(0, k - len(near))
        yield near[:k] + [NOTHING] * missing, far[:k] + [0] * missing


def _published_path(graph: Graph, anchors: list[int], k: int) -> Iterator[tuple[list[int], list[int]]]:
    for node in range(graph.nodes):
        away = {node: 0}
        for hop, reached in enumerate(_layers(graph, node), start=1):
            away.update(dict.fromkeys(reached, hop))
        if not away.get(anchors[0]):
            # official codes need this: no path to the first anchor, or an empty one, counts as none to any.
            yield [NOTHING] * k, [0] * k
            continue
        paths = sorted((away[anchor], rank) for rank, anchor in enumerate(anchors) if away.get(anchor))[:k]
        yield [anchors[rank] for _, rank in paths], [steps for steps, _ in paths]


def _layers(graph: Graph, node: int) -> Iterator[list[int]]:
    """Nodes 1, 2, ... steps against the edges from a node, in the order of a breadth-first search."""
    starts, heads = graph.incoming
    seen, layer = {node}, [node]
    while layer:
        reached: list[int] = []
        for each in layer:
            for head in heads[starts[each] : starts[each + 1]].tolist():
                if head not in seen:
                    seen.add(head)
                    reached.append(head)
        if reached:
            yield reached
        layer = reached


def anchor_path(graph: Graph, node: int, anchor: int) -> list[int] | None:
    """The relations along a shortest way from an anchor to a node (mode "path" of the paper); None where there is none.

    Among equally short ways it is the one over the lowest node at each step, and there the lowest relation.
    """
    head, relation, tail = graph.edges
    steps = {node: 0}
    for hop, reached in enumerate(_layers(graph, node), start=1):
        steps.update(dict.fromkeys(reached, hop))
        if anchor in steps:
            break
    if anchor not in steps:
        return None
    relations = []
    here = anchor
    while here != node:
        leaving = head == here
        nearer = [
            (next_node, kind)
            for next_node, kind in zip(tail[leaving].tolist(), relation[leaving].tolist(), strict=True)
            if steps.get(next_node) == steps[here] - 1
        ]
        here, kind = min(nearer)
        relations.append(kind)
    return relations
