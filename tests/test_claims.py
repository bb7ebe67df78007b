"""The command of claims: which there are, what it prints, how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.claims import Claim, __main__

FIELDS = {"system", "claim", "metric", "better", "baseline", "ours", "holds", "seconds"}


def made_up(holds: bool) -> Iterator[Claim]:
    yield Claim("simvq", "more codes are used", "share of codes", "higher", 0.1, 1.0, holds, 2.0)


def test_every_claim_is_a_line_of_json_with_the_agreed_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.report(made_up(True), as_json=True) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line).keys() == FIELDS


def test_a_claim_that_does_not_hold_shows_in_text_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.report(made_up(False), as_json=False) == 1
    assert "NO" in capsys.readouterr().out


def test_unknown_slugs_and_missing_data_are_wrong_usage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        __main__.main(["nothing"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert all(slug in told for slug in ("simvq", "wavtokenizer"))
    assert __main__.main(["simvq", "--data", str(tmp_path)]) == 2


@pytest.mark.parametrize("slug", __main__.known())
def test_every_module_has_its_claims(slug: str) -> None:
    assert callable(__main__.claims_of(slug))
