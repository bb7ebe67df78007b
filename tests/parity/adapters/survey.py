"""Golden cases of the survey's graph family: NodePiece's anchors and node tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from smalti.graph import Graph, NodeTokenizer, choose_anchors, degree, nearest_anchors, pagerank, relation_context
from tests.parity.adapters.images import asked
from tests.parity.golden import Case


def run(case: Case) -> dict[str, Tensor]:
    return asked(_tokens(case), case.outputs)


def run_quantizer(case: Case) -> dict[str, Tensor]:
    return asked(_tokens(case), case.quantizer_outputs())


def _tokens(case: Case) -> dict[str, Tensor]:
    config = case.config
    relations = 2 * config["num_relations_without_inverse"]
    graph = Graph(case.inputs["triples_with_inverses"], config["num_entities"], relations)
    anchors = choose_anchors(graph, config["num_anchors"], config["anchor_strategy"])
    ids, distances = nearest_anchors(
        graph, anchors, config["limit_shortest"], identity=config["add_identity"], strict_parity=config["mode"]
    )
    tokenizer = NodeTokenizer(anchors, relations, config["limit_shortest"], 0)
    return {
        "anchors": anchors,
        "anchor_entity_ids": ids,
        "anchor_distances": distances,
        "anchor_token_ids": tokenizer.anchor_tokens(ids),
        "relation_context": relation_context(graph),
        "degree": degree(graph),
        "pagerank": pagerank(graph).to(torch.float64),
    }
