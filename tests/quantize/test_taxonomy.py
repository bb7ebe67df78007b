"""The survey's table: it loads, filters, and every name in it leads somewhere."""

from __future__ import annotations

import json
import re
from importlib import import_module

import pytest

from smalti.errors import ConfigError, SmaltiError
from smalti.quantize import taxonomy
from smalti.systems import list_systems

HERE = import_module("smalti.quantize.taxonomy")  # the package shows the function under this name


def named(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def test_records_load_and_no_method_occurs_twice() -> None:
    records = taxonomy()
    assert len(records) >= 200
    assert len({record.method for record in records}) == len(records)
    assert len(json.loads(HERE.FILE.read_text())) == len(records)


def test_values_are_of_the_vocabulary() -> None:
    for record in taxonomy():
        assert set(record.quantizers) <= set(HERE.FAMILIES) and record.stage in HERE.STAGES
        assert record.year is None or 2009 < record.year < 2027
        assert record.arxiv is None or re.fullmatch(r"\d{4}\.\d{4,5}", record.arxiv)
        assert record.survey_section is None or record.survey_section[0] in "2345"
        # The first two digits of an arXiv number are a year.
        assert record.arxiv is None or record.year is None or int(record.arxiv[:2]) + 2000 - record.year in (0, 1, -1)


def test_filters() -> None:
    found = {record.method for record in taxonomy(quantizer="RVQ", modality="audio", stage="classical")}
    assert {"SoundStream", "EnCodec", "DAC", "VALL-E"} <= found and "WavTokenizer" not in found
    assert {record.method for record in taxonomy(quantizer="AQ")} == {
        "CQ",
        "Sparse CQ",
        "AQ",
        "LSQ",
        "LSQ++",
        "Online AQ",
    }
    assert "AnyGPT" in {record.method for record in taxonomy(llm="llama")}
    assert all(record.in_library for record in taxonomy(in_library=True))
    assert len(taxonomy(in_library=True)) + len(taxonomy(in_library=False)) == len(taxonomy())
    for wrong in ({"quantizer": "XVQ"}, {"modality": "smell"}, {"stage": "late"}):
        with pytest.raises(ConfigError):
            taxonomy(**wrong)


def test_everything_said_to_be_here_is_here() -> None:
    for record in taxonomy(in_library=True):
        assert callable(record.ours()), record.in_library
    with pytest.raises(SmaltiError):
        taxonomy(in_library=False)[0].ours()


def test_every_family_has_a_class_of_ours() -> None:
    for family in HERE.FAMILIES:
        ours = [record.ours() for record in taxonomy(quantizer=family, in_library=True)]
        assert any(isinstance(each, type) for each in ours), family


def test_every_tokenizer_of_the_library_has_a_record_or_a_reason() -> None:
    methods = {named(record.method) for record in taxonomy()}
    for system in {record.system for record in list_systems(kind="tokenizer")}:
        known = named(HERE.RECORD_OF.get(system, system))
        assert known in methods or system in HERE.WITHOUT_RECORD, system


def test_markdown_has_a_line_per_record() -> None:
    lines = HERE.markdown(taxonomy(quantizer="GART")).splitlines()
    assert len(lines) == 2 + len(taxonomy(quantizer="GART"))
    assert "NodePiece" in HERE.markdown(taxonomy(quantizer="GART"))
