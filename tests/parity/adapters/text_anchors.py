"""Adapter for `text-anchors`: five tokenizers of Hugging Face, each as its tokenizer.json.

The merges of byte pair encodings are trained anew from the case's corpus, by the options that the case names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch

from smalti.text.tokenizer_json import JsonTokenizer
from smalti.text.training import TextTraining, train_text
from tests.parity.golden import Case

OPTIONS = ("min_frequency", "max_token_length", "limit_alphabet")


def run(case: Case) -> dict[str, Any]:
    given: dict[str, Any] = {}
    engines = {}
    for name, engine in case.json["engines"].items():
        content = json.dumps(engine["tokenizer_json"]).encode()
        tokenizer = JsonTokenizer(JsonTokenizer.Config(special=True), content)
        ids = [torch.from_numpy(tokenizer.ids(text.encode())).long() for text in case.json["tests"]]
        given[f"{name}_ids"] = torch.cat(ids)
        given[f"{name}_lengths"] = torch.tensor([len(each) for each in ids])
        given[f"{name}_offsets"] = torch.cat([torch.from_numpy(tokenizer.offsets(text)) for text in case.json["tests"]])
        engines[name] = {
            "tokenizer_json": trained(case, engine["tokenizer_json"], case.config["trainers"].get(name, "")),
            "decoded": [tokenizer.data(each.numpy()).decode("utf-8", "replace") for each in ids],
        }
    given["json/engines"] = engines
    return given


def trained(case: Case, file: Mapping[str, Any], options: str) -> dict[str, Any]:
    """The file with a vocabulary and merges of our trainer, if it is byte pair encoding; else as it is."""
    model = file["model"]
    if model.get("type") != "BPE":
        return dict(file)
    number = {key: int(found[1]) for key in OPTIONS if (found := re.search(rf"{key} (\d+)", options))}
    specials = [each["content"] for each in file["added_tokens"] if each["id"] < len(file["added_tokens"])]
    training = TextTraining(
        vocab=len(model["vocab"]) + 1, min_count=max(1, number.get("min_frequency", 1)),
        max_token_length=number.get("max_token_length"), specials=tuple(specials),
        alphabet="bytes" if "byte alphabet" in options else (), limit_alphabet=number.get("limit_alphabet"),
        normalizer=file["normalizer"], pre_tokenizer=file["pre_tokenizer"],
    )  # fmt: skip
    again = train_text(case.json["corpus"], training)
    if len(again.model["vocab"]) > len(model["vocab"]):  # it ended because the vocabulary was full
        again = train_text(case.json["corpus"], training.replace(vocab=len(model["vocab"])))
    return {**file, "model": {**model, "vocab": again.model["vocab"], "merges": written(again.model["merges"], model)}}


def written(pairs: list[list[str]], model: Mapping[str, Any]) -> list[Any]:
    """Merges as the file writes them: pairs, or strings in old files."""
    old = bool(model["merges"]) and isinstance(model["merges"][0], str)
    return [" ".join(pair) for pair in pairs] if old else pairs
