"""`smalti verify`: a store against its own checksums, and its codes against the tokenizer of today."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from smalti.cli.output import console, print_json


def command(
    store: Annotated[Path, typer.Argument(help="The store's folder.", metavar="STORE")],
    again: Annotated[
        int, typer.Option(min=0, help="Also encode this many samples anew and count differing codes.")
    ] = 0,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", "-t", help="Where the tokenizer is now, if it moved.")
    ] = None,
    device: Annotated[str, typer.Option(help="Where to encode anew: cpu or cuda.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Which samples are drawn.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings for programs.")] = False,
) -> None:
    """Check a token store: every byte, every count; with --again also that files still give the same codes.

    Exit code 1 means that something is wrong, 2 that this is no store.
    """
    from smalti.cli.tokenizers import open_tokenizer
    from smalti.store import TokenStore, encode_again, verify

    report = verify(store)
    repeated = None
    if again:
        model, _ = open_tokenizer(tokenizer or TokenStore(store).header["tokenizer"], device)
        repeated = encode_again(store, model, again, seed=seed)
    sound = report.sound and (repeated is None or not (repeated.differing or repeated.unreadable))
    if as_json:
        print_json({**asdict(report), "sound": sound, "again": None if repeated is None else asdict(repeated)})
    else:
        out = console()
        for problem in report.problems:
            out.print(problem, style="red", markup=False)
        if report.unfinished:
            out.print(f"{report.unfinished} planned shards are not encoded yet: give the same encode command again")
        state = "NOT sound" if report.problems else "unfinished" if report.unfinished else "sound"
        rows = f" in {report.rows} rows" if report.rows != report.samples else ""
        out.print(f"{report.shards} shards, {report.samples} samples{rows}: {state}")
        if repeated is not None:
            for line in repeated.unreadable:
                out.print(f"can't be encoded anew: {line}", style="red", markup=False)
            out.print(f"{repeated.samples} samples encoded anew: {repeated.differing} of {repeated.codes} codes differ")
    if not sound:
        raise typer.Exit(1)
