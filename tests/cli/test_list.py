"""`smalti`, `smalti list` and `smalti show` as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
import types

import pytest
import typer
from typer.testing import CliRunner

from smalti import systems
from smalti.cli import main as cli
from smalti.errors import InputError

runner = CliRunner()


def run(*arguments: str) -> str:
    result = runner.invoke(cli.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["smalti", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


# --- the command itself ----------------------------------------------------------------------------------------------


def test_help_lists_every_command_without_importing_one() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['smalti', '--help']\n"
        "from smalti.cli.main import COMMANDS, main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "loaded = [name for name in COMMANDS if f'smalti.cli.{name}' in sys.modules]\n"
        "print('loaded:', loaded, 'torch' in sys.modules, 'smalti.systems' in sys.modules)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(f" {name} " in output for name in cli.COMMANDS)
    assert output.endswith("loaded: [] False False\n")


def test_a_command_imports_only_its_own_module() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['smalti', 'list', '--json']\n"
        "from smalti.cli.main import COMMANDS, main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in COMMANDS if f'smalti.cli.{name}' in sys.modules], 'torch' in sys.modules)\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.endswith("['list'] False\n")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name: str) -> None:
    assert "Usage" in run(name, "--help")


def test_a_command_may_be_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    group = typer.Typer(help="A group.")
    group.command("first")(lambda: typer.echo("one"))
    group.command("second")(lambda: typer.echo("two"))
    monkeypatch.setitem(sys.modules, "smalti.cli.many", types.SimpleNamespace(command=group))
    monkeypatch.setitem(cli.COMMANDS, "many", "A group.")
    assert run("many", "second") == "two\n"
    assert "first" in run("many", "--help")


def test_what_smalti_refuses_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise InputError("this is\nno image")

    monkeypatch.setitem(sys.modules, "smalti.cli.broken", types.SimpleNamespace(command=refuse))
    monkeypatch.setitem(cli.COMMANDS, "broken", "It refuses.")
    assert run_main(monkeypatch, "broken") == 2
    captured = capsys.readouterr()
    assert captured.err == "smalti: this is no image\n"
    assert captured.out == ""


def test_wrong_usage_is_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "lst") == 2
    assert "Did you mean 'list'" in capsys.readouterr().err
    assert run_main(monkeypatch, "list", "--no-such-option") == 2
    assert run_main(monkeypatch) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(sys.modules, "smalti.cli.broken", types.SimpleNamespace(command=fail))
    monkeypatch.setitem(cli.COMMANDS, "broken", "It fails.")
    monkeypatch.setattr(sys, "argv", ["smalti", "broken"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_version() -> None:
    import smalti

    assert run("--version") == f"smalti {smalti.__version__}\n"


# --- list ------------------------------------------------------------------------------------------------------------


def test_list_json_is_a_list_of_records() -> None:
    records = json.loads(run("list", "--json"))
    assert len({record["system"] for record in records}) >= 53
    for record in records:
        assert {"name", "kind", "modality", "status", "system"} <= record.keys()
        assert record["status"] in ("planned", "works")
    assert [record["name"] for record in records] == [record.name for record in systems.list_systems()]


def test_list_filters() -> None:
    names = [record["name"] for record in json.loads(run("list", "simvq*", "--modality", "audio", "--json"))]
    assert names == ["simvq/audio"]
    assert {r["kind"] for r in json.loads(run("list", "--kind", "benchmark", "--json"))} == {"benchmark"}
    assert json.loads(run("list", "--status", "works", "--kind", "index", "--json")) == []


def test_list_for_people_names_every_system() -> None:
    output = run("list")
    assert all(f"{record.name} " in output for record in systems.list_systems())
    assert "no system matches" in run("list", "nothing*")


def test_list_refuses_a_wrong_choice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "list", "--kind", "codec") == 2
    assert capsys.readouterr().err.startswith("smalti: kind must be one of tokenizer, ")


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_prints_what_the_table_knows() -> None:
    output = run("show", "fqgan")
    for part in ("Factorized Visual Tokenization", "github.com/showlab/FQGAN", "CC-BY-NC-4.0", "planned", "2411.16681"):
        assert part in output
    assert "unknown: check before use" in output
    assert "none published" in run("show", "vat")
    assert "smalti.load('simvq/image')" in run("show", "simvq/image")
    assert "ship with this package" in run("show", "smalti-speech")


@pytest.mark.parametrize("record", systems.list_systems(), ids=lambda record: record.name)
def test_show_works_for_every_record(record: systems.Record) -> None:
    output = run("show", record.name)
    assert all(checkpoint.name in output for checkpoint in record.weights)
    shown = json.loads(run("show", record.name, "--json"))
    assert (shown["name"], shown["title"]) == (record.name, record.title)


def test_show_of_an_unknown_name_helps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "show", "wavtoknizer") == 2
    assert "did you mean wavtokenizer" in capsys.readouterr().err
    assert run_main(monkeypatch, "show", "simvq") == 2
    assert "choose simvq/audio or simvq/image" in capsys.readouterr().err
