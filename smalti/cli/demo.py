"""`smalti demo`: the whole way once, on real photos, speech, text and programs, and a page to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from smalti.cli.output import console, print_json


def command(
    images: Annotated[
        Path | None, typer.Option(help="Your own photos: a folder or a file. By default four from scikit-image.")
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="Your own recordings: a folder or a file. By default a clip that is installed.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Your own text: a folder or a file. By default a README and a module.")
    ] = None,
    programs: Annotated[
        Path | None, typer.Option(help="Your own executables: a folder or a file. By default one that is installed.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where stores, decoded files and the page go.")] = Path(
        "smalti-demo"
    ),
    image_tokenizer: Annotated[str, typer.Option(help="A name (`smalti list`) or a saved folder.")] = "smalti-photo-f8",
    audio_tokenizer: Annotated[str, typer.Option(help="A name (`smalti list`) or a saved folder.")] = "smalti-speech",
    text_tokenizer: Annotated[str, typer.Option(help="A name, a saved folder or a tokenizer.json.")] = "equal-info",
    program_tokenizer: Annotated[str, typer.Option(help="A name, a saved folder or a tokenizer.json.")] = "binary-bpe",
    limit: Annotated[int, typer.Option(min=1, help="At most so many of your files of each kind.")] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables for programs.")] = False,
) -> None:
    """Tokenize photos, speech, text and programs, decode them again, and write a page that shows what became of them.

    Nothing is downloaded. Files that can't be read are reported and skipped; the exit code is then 1.
    """
    from smalti.bench.demo import demo_photos, demo_programs, demo_speech, demo_text, own_files, run_demo
    from smalti.cli.tokenizers import open_neural, open_tokenizer

    tokenizers = [
        open_neural(image_tokenizer), open_neural(audio_tokenizer),
        open_tokenizer(text_tokenizer), open_tokenizer(program_tokenizer),
    ]  # fmt: skip
    sources = [
        demo_photos() if images is None else own_files(images, "image", limit),
        demo_speech() if audio is None else own_files(audio, "audio", limit),
        demo_text() if text is None else own_files(text, "text", limit),
        demo_programs() if programs is None else own_files(programs, "executable", limit),
    ]
    terminal = console()
    with terminal.status("starting") as status:
        demo = run_demo(tokenizers, sources, out, lambda doing: None if as_json else status.update(doing))
    if as_json:
        tables = {
            title: [dict(zip(table.headings, row, strict=True)) for row in table.rows]
            for title, table in demo.comparisons
        }
        print_json({"page": str(demo.page.resolve()), "tables": tables, "problems": list(demo.problems)})
    else:
        for title, comparison in demo.comparisons:
            table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
            for index, heading in enumerate(comparison.headings):
                table.add_column(heading, justify="right" if index else "left")
            for row in comparison.rows:
                table.add_row(*row)
            terminal.print(table)
            terminal.print()
        for line in demo.problems:
            terminal.print(line, style="red", markup=False)
        terminal.print(f"open in a browser: {demo.page.resolve()}", markup=False, soft_wrap=True)
    if demo.problems:
        raise typer.Exit(1)
