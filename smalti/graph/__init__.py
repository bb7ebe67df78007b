"""Graphs: nodes as tokens, a few nearest anchors and the relations around a node instead of one embedding per node."""

from smalti.graph.anchors import NOTHING, anchor_path, choose_anchors, nearest_anchors
from smalti.graph.encoder import NodeEncoder
from smalti.graph.graph import Graph, degree, pagerank
from smalti.graph.nodes import CodeReport, NodeTokenizer, NodeTokens, relation_context, relation_tokens, report

__all__ = [
    "NOTHING",
    "CodeReport",
    "Graph",
    "NodeEncoder",
    "NodeTokenizer",
    "NodeTokens",
    "anchor_path",
    "choose_anchors",
    "degree",
    "nearest_anchors",
    "pagerank",
    "relation_context",
    "relation_tokens",
    "report",
]
