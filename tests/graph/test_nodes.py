"""Node tokens against scipy's shortest paths, dense linear algebra, and loops over sets."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from smalti.errors import ConfigError, InputError
from smalti.graph import (
    NOTHING,
    Graph,
    NodeEncoder,
    NodeTokenizer,
    NodeTokens,
    anchor_path,
    choose_anchors,
    degree,
    nearest_anchors,
    pagerank,
    relation_context,
    relation_tokens,
    report,
)


def random_graph(nodes: int = 60, edges: int = 80, relations: int = 4, seed: int = 0, inverses: bool = True) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    heads, tails = (torch.randint(nodes - 3, (edges,), generator=generator) for _ in range(2))  # three lonely nodes
    kinds = torch.randint(relations, (edges,), generator=generator)
    triples = torch.stack([heads, kinds, tails], 1)
    return Graph.with_inverses(triples, nodes, relations) if inverses else Graph(triples, nodes, relations)


def steps_between(graph: Graph) -> np.ndarray:  # type: ignore[type-arg]
    """All shortest distances, from row to column."""
    sparse = pytest.importorskip("scipy.sparse")
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    head, _, tail = graph.triples.T.numpy()
    ones = sparse.coo_matrix((np.ones(len(head)), (head, tail)), shape=(graph.nodes, graph.nodes)).tocsr()
    return csgraph.shortest_path(ones, unweighted=True)


@pytest.mark.parametrize("inverses", [True, False])
@pytest.mark.parametrize("identity", [True, False])
@pytest.mark.parametrize("k", [1, 4, 12])
def test_anchors_are_the_nearest_by_shortest_paths(inverses: bool, identity: bool, k: int) -> None:
    graph = random_graph(inverses=inverses, seed=k)
    anchors = choose_anchors(graph, 10, {"degree": 0.5, "pagerank": 0.3, "random": 0.2})
    ids, steps = nearest_anchors(graph, anchors, k, identity=identity)
    away = steps_between(graph)
    for node in range(graph.nodes):
        found = sorted(
            (away[anchor, node], rank)
            for rank, anchor in enumerate(anchors.tolist())
            if np.isfinite(away[anchor, node]) and (identity or anchor != node)
        )[:k]
        missing = k - len(found)
        assert ids[node].tolist() == [int(anchors[rank]) for _, rank in found] + [NOTHING] * missing
        assert steps[node].tolist() == [int(far) for far, _ in found] + [0] * missing


def test_pagerank_solves_its_linear_system() -> None:
    graph = random_graph(inverses=False, seed=1)
    head, _, tail = graph.triples.T.numpy()
    counts = np.zeros((graph.nodes, graph.nodes))
    np.add.at(counts, (tail, head), 1.0)
    out = counts.sum(0)
    move = np.where(out > 0, counts / np.maximum(out, 1), 1 / graph.nodes)
    expected = np.linalg.solve(np.eye(graph.nodes) - 0.85 * move, np.full(graph.nodes, 0.15 / graph.nodes))
    torch.testing.assert_close(pagerank(graph), torch.from_numpy(expected), rtol=0, atol=1e-12)


def test_anchors_follow_the_shares_in_order_and_skip_chosen_ones() -> None:
    graph = random_graph()
    by_degree = sorted(range(graph.nodes), key=lambda node: -int(degree(graph)[node]))
    anchors = choose_anchors(graph, 10, {"degree": 0.35, "pagerank": 0.65}).tolist()
    assert anchors[:4] == by_degree[:4]  # ceil(3.5)
    by_rank = sorted(range(graph.nodes), key=lambda node: -round(float(pagerank(graph)[node]), 11))
    assert anchors[4:] == [node for node in by_rank if node not in anchors[:4]][:7]
    assert len(set(anchors)) == 11
    one = choose_anchors(graph, 10, {"random": 1.0}, seed=3)
    assert torch.equal(one, choose_anchors(graph, 10, {"random": 1.0}, seed=3))
    for wrong in ({"degree": 0.5}, {"betweenness": 1.0}):
        with pytest.raises(ConfigError):
            choose_anchors(graph, 10, wrong)


def test_published_defects_are_those_that_the_sheet_names() -> None:
    """bfs: of an anchor's own distances only the first is overwritten. path: no way to the first anchor, no anchors."""
    graph = random_graph(edges=60)
    anchors = choose_anchors(graph, 8, {"degree": 1.0})
    right_ids, right_steps = nearest_anchors(graph, anchors, 5)
    plain_steps = nearest_anchors(graph, anchors, 5, identity=False)[1]
    ids, steps = nearest_anchors(graph, anchors, 5, strict_parity="bfs")
    members = set(anchors.tolist())
    for node in range(graph.nodes):
        if node in members:
            assert int(ids[node, 0]) == node
            assert steps[node].tolist() == [0, *plain_steps[node, 1:].tolist()]
        else:
            assert torch.equal(steps[node], right_steps[node])
    ids, steps = nearest_anchors(graph, anchors, 5, strict_parity="path")
    away = steps_between(graph)
    for node in range(graph.nodes):
        first = away[int(anchors[0]), node]
        if first == 0:
            assert ids[node].tolist() == [node] + [NOTHING] * 4
        elif np.isinf(first):
            assert set(ids[node, int(node in members) :].tolist()) == {NOTHING}
        else:
            real = right_ids[node] != NOTHING
            assert torch.equal(ids[node][real], right_ids[node][real])
            assert torch.equal(steps[node][real], right_steps[node][real])


def test_paths_are_made_of_edges_and_as_short_as_can_be() -> None:
    graph = random_graph(seed=2)
    edges = set(map(tuple, graph.triples.tolist()))
    away = steps_between(graph)
    for anchor in (0, 5, 17):
        for node in range(graph.nodes):
            path = anchor_path(graph, node, anchor)
            if np.isinf(away[anchor, node]):
                assert path is None
                continue
            assert path is not None and len(path) == away[anchor, node]
            reached = {anchor}
            for kind in path:
                reached = {tail for head, relation, tail in edges if head in reached and relation == kind}
            assert node in reached


def test_relations_are_counted_by_hand() -> None:
    triples = torch.tensor([[0, 2, 1], [0, 2, 2], [0, 1, 1], [0, 0, 2], [1, 3, 0]])
    graph = Graph(triples, 3, 4)
    assert relation_context(graph).tolist() == [
        [True, True, True, False],
        [False, False, False, True],
        [False] * 4,
    ]
    assert relation_tokens(graph, 2).tolist() == [[2, 0], [3, 4], [4, 4]]
    drawn = relation_tokens(graph, 3, seed=1)
    assert sorted(drawn[0].tolist()) == [0, 1, 2] and torch.equal(drawn, relation_tokens(graph, 3, seed=1))


def tokenizer_of(graph: Graph, anchors: int = 10, k: int = 4, m: int = 3) -> NodeTokenizer:
    return NodeTokenizer(choose_anchors(graph, anchors), graph.relations, k, m)


def test_codes_keep_their_ranges() -> None:
    graph = random_graph()
    tokenizer = tokenizer_of(graph)
    codes = tokenizer.encode(graph).codes
    assert codes.dtype == torch.int32 and codes.shape == (60, 7)
    anchors, relations = codes[:, :4], codes[:, 4:]
    total = len(tokenizer.anchors)
    assert bool(((anchors < total) | (anchors == total + 3)).all())
    assert bool(((relations >= total + 4) & (relations < tokenizer.vocab)).all())


def test_a_new_node_is_coded_without_touching_the_vocabulary() -> None:
    graph = random_graph()
    tokenizer = tokenizer_of(graph)
    before = tokenizer.encode(graph)
    head = int(tokenizer.anchors[2])
    new = torch.tensor([[head, 1, 60], [60, 1 + graph.relations // 2, head]])
    grown = Graph(torch.cat([graph.triples, new]), 61, graph.relations)
    after = tokenizer.encode(grown)
    assert int(after.codes[60, 0]) == 2 and int(after.distances[60, 0]) == 1
    far = [node for node in range(60) if node != head]
    assert torch.equal(after.codes[far, :4], before.codes[far, :4])


def test_codes_decode_to_the_node_that_shares_most() -> None:
    graph = random_graph()
    tokenizer = tokenizer_of(graph, k=5, m=4)
    codes = tokenizer.encode(graph).codes
    rows = [set(row.tolist()) - set(tokenizer._fillers) for row in codes]

    def jaccard(a: set[int], b: set[int]) -> float:
        return len(a & b) / len(a | b) if a | b else 1.0

    queries = codes[:20].clone()
    queries[:, 1] = tokenizer.nothing
    expected = []
    for query in queries:
        own = set(query.tolist()) - set(tokenizer._fillers)
        expected.append(max(range(len(rows)), key=lambda node: (jaccard(own, rows[node]), -node)))
    assert tokenizer.decode(queries, codes).tolist() == expected
    found = report(tokenizer.encode(graph), tokenizer)
    for node, other in enumerate(tokenizer.decode(codes, codes).tolist()):
        assert rows[node] == rows[other]
    assert found.nodes == 60 and found.distinct == len({frozenset(row) for row in rows})


def test_collisions_are_reported() -> None:
    graph = random_graph()
    tokenizer = tokenizer_of(graph)
    codes = tokenizer.encode(graph).codes
    codes[7] = codes[3]
    found = report(NodeTokens(codes, torch.zeros(60, 4)), tokenizer)
    assert any({3, 7} <= set(group) for group in found.groups)
    assert found.shared == sum(map(len, found.groups)) >= 2
    assert 0 < found.entropy < np.log2(60) and 0 < found.jaccard <= 1


def test_links_are_predicted_from_eight_anchors() -> None:
    """Two communities: nodes link within their own. Held-out links must rank above links across."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(20, (160, 2), generator=generator)
    side = torch.randint(2, (160, 1), generator=generator) * 20
    triples = torch.cat([pairs[:, :1] + side, torch.zeros(160, 1, dtype=torch.int64), pairs[:, 1:] + side], 1)
    train, held = triples[:120], triples[120:]
    graph = Graph.with_inverses(train, 40, 1)
    tokenizer = NodeTokenizer(choose_anchors(graph, 8), 2, 4, 1)
    tokens = tokenizer.encode(graph)
    torch.manual_seed(0)
    encoder = NodeEncoder(tokenizer, 16)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)

    def scores(vectors: Tensor, links: Tensor) -> Tensor:
        return (vectors[links[:, 0]] * vectors[links[:, 2]]).sum(1)

    for _ in range(100):
        wrong = train.clone()
        wrong[:, 2] = torch.randint(40, (len(train),))
        vectors = encoder(tokens)
        loss = torch.nn.functional.softplus(torch.cat([-scores(vectors, train), scores(vectors, wrong)])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval()
    across = held.clone()
    across[:, 2] = (across[:, 2] + 20) % 40
    with torch.no_grad():
        vectors = encoder(tokens)
        better = scores(vectors, held)[:, None] > scores(vectors, across)[None]
    assert float(better.double().mean()) > 0.75


def test_graphs_import_no_other_modality() -> None:
    code = (
        "import sys, smalti.graph;"
        "print([m for m in sys.modules if m.startswith(('smalti.image', 'smalti.audio', 'smalti.quantize'))])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_refusals() -> None:
    graph = random_graph()
    with pytest.raises(InputError):
        Graph(torch.tensor([[0, 0, 5]]), 5, 1)
    with pytest.raises(InputError):
        Graph(torch.zeros(2, 3), 5, 1)
    with pytest.raises(InputError):
        tokenizer_of(graph).encode(Graph(graph.triples[:0], 5, graph.relations))
    with pytest.raises(ConfigError):
        nearest_anchors(graph, torch.tensor([1, 1]), 2)
