"""python -m benchmarks.claims SLUG --seed N [--data FOLDER] [--json]

Exit code: 0 if every claim holds, 1 if one does not, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import claims
from benchmarks.claims import Claim
from smalti.errors import SmaltiError

DATA = Path("../shared/data")


def main(arguments: list[str] | None = None) -> int:
    """Runs the claims of one system, printing each as soon as it is known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=claims.__doc__)
    parser.add_argument("slug", help=f"one of: {', '.join(known())}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the data sets")
    parser.add_argument("--json", action="store_true", help="one JSON object per line and claim")
    options = parser.parse_args(arguments)
    if options.slug not in known():
        parser.error(f"no claims of {options.slug!r}; there are claims of: {', '.join(known())}")
    try:
        return report(claims_of(options.slug)(options.data, options.seed), as_json=options.json)
    except (SmaltiError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def known() -> list[str]:
    """Slugs that have claims."""
    return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(claims.__path__) if is_slug(module))


def is_slug(module: pkgutil.ModuleInfo) -> bool:
    """Whether a module of this package is a system's: those that begin with an underscore help the others."""
    return not module.name.startswith("_")


def claims_of(slug: str) -> Callable[[Path, int], Iterator[Claim]]:
    """The function of a slug's module."""
    function: Callable[[Path, int], Iterator[Claim]] = importlib.import_module(
        f"benchmarks.claims.{slug.replace('-', '_')}"
    ).claims
    return function


def report(found: Iterator[Claim], *, as_json: bool) -> int:
    """Prints claims and says by the exit code whether all hold."""
    held = True
    if not as_json:
        print(f"{'holds':6} {'baseline':>10} {'ours':>10} {'better':7} {'seconds':>8}  metric: claim")
    for claim in found:
        held = held and claim.holds
        if as_json:
            print(claim.json(), flush=True)
            continue
        verdict = "yes" if claim.holds else "NO"
        numbers = f"{claim.baseline:10.4g} {claim.ours:10.4g}"
        print(f"{verdict:6} {numbers} {claim.better:7} {claim.seconds:8.1f}  {claim.metric}: {claim.claim}", flush=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
