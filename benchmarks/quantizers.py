"""Quantizers beside vector-quantize-pytorch, the library that people use today.

    pip install vector-quantize-pytorch
    python -m benchmarks.quantizers [--json] [--only 'EMA*'] [--threads N] [--repeat N]

Peer and ours take turns in one process on the same latents; of each the quickest turn counts, in seconds of all
processors. Neighbours on the machine move seconds, the ratio hardly. A training step is forward, backward to the
latents and the update of the codebook. `ratio` is the peer's seconds over ours; in the rows without a peer it is the
share of the rate that a product of two 4096 x 4096 matrices reaches on this machine, or the goal's megabytes over ours.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from smalti import quantize
from smalti.bench.resources import Meter
from smalti.quantize import BoundFSQ, Quantize, Quantizer, Scalars, nearest, prepare

SIDE = 4096  # of the matrices that say what the machine can do
MEGABYTE = 2**20

Work = Callable[[], object]


@dataclass(frozen=True)
class Case:
    """A line of the benchmark.

    Args:
        name: what `--only` matches.
        goal: lowest ratio.
        build: gives the peer's work and ours.
        slow: the peer takes seconds a turn, so it gets fewer.
    """

    name: str
    goal: float
    build: Callable[[], tuple[Work, Work]]
    slow: bool = False


def peer(name: str, **options: Any) -> nn.Module:
    """A quantizer of vector-quantize-pytorch."""
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        raise SystemExit(f"the peer is not installed: pip install vector-quantize-pytorch ({error})") from None
    return getattr(vector_quantize_pytorch, name)(**options)


def latents(count: int, dim: int) -> Tensor:
    return torch.randn(1, count, dim, generator=torch.Generator().manual_seed(0))


def training(theirs: nn.Module, ours: Quantizer, z: Tensor) -> tuple[Work, Work]:
    """A training step of each: the gradient of a sum that weighs the output, and the loss of the quantizer."""
    weights = torch.linspace(0, 1, z.numel()).reshape(z.shape)

    def their_step() -> None:
        x = z.clone().requires_grad_()
        quantized, _, *loss = theirs(x)
        ((quantized * weights).sum() + sum(part.sum() for part in loss)).backward()

    def our_step() -> None:
        x = z.clone().requires_grad_()
        out = ours(x)
        ((out.z * weights).sum() + out.loss).backward()
        ours.update()

    theirs.train()
    ours.train()
    return their_step, our_step


def encoding(theirs: nn.Module, ours: Quantizer, z: Tensor) -> tuple[Work, Work]:
    """Codes of the same latents, exact in ours."""
    theirs.eval()
    ours.eval()
    return torch.no_grad()(lambda: theirs(z)), lambda: ours.encode(z)


Way = Callable[[nn.Module, Quantizer, Tensor], tuple[Work, Work]]


def ema(way: Way, count: int, dim: int, codes: int) -> tuple[Work, Work]:
    """Moving averages, the rotation trick, replacement of dead codes; usage is counted too in ours."""
    theirs = peer("VectorQuantize", dim=dim, codebook_size=codes, decay=0.8, threshold_ema_dead_code=2)
    ours = quantize.create(
        "ema", dim=dim, codes=codes, decay=0.8, kmeans_iterations=0, expire=2.0, rotation=True, commitment_weight=1.0
    )
    return way(theirs, ours, latents(count, dim))


def residual(way: Way, count: int, dim: int, codes: int, *, shared: bool = False) -> tuple[Work, Work]:
    """Eight residual levels."""
    theirs = peer("ResidualVQ", dim=dim, codebook_size=codes, num_quantizers=8, shared_codebook=shared)
    options = {"decay": 0.8, "kmeans_iterations": 0, "expire": 0.0, "rotation": True, "commitment_weight": 1.0}
    name = "shared-residual" if shared else "residual"
    ours = quantize.create(name, dim=dim, codes=codes, levels=8, **options)
    return way(theirs, ours, latents(count, dim))


def simvq(way: Way, count: int, dim: int, codes: int) -> tuple[Work, Work]:
    theirs = peer("SimVQ", dim=dim, codebook_size=codes)
    return way(theirs, quantize.create("simvq", dim=dim, codes=codes), latents(count, dim))


def fsq(way: Way, count: int, dim: int) -> tuple[Work, Work]:
    """Projected to five dimensions and back."""
    levels = [8, 8, 8, 6, 5]
    ours = Quantize(
        Scalars(levels, grid="fsq"),
        before=nn.Sequential(nn.Linear(dim, len(levels)), BoundFSQ(levels)),
        after=nn.Linear(len(levels), dim),
        dim=dim,
    )
    return way(peer("FSQ", levels=levels, dim=dim), ours, latents(count, dim))


def lookup_free(way: Way, count: int, bits: int, *, spherical: bool = False) -> tuple[Work, Work]:
    """The published entropy term over all 2^bits codes. Spherical LFQ is what BSQ computes in factorised form."""
    theirs = peer("LFQ", codebook_size=2**bits, dim=bits, entropy_loss_weight=0.1, spherical=spherical)
    ours = quantize.create("bsq" if spherical else "lookup-free", bits=bits)
    return way(theirs, ours, latents(count, bits))


EMA_GOALS = (((16384, 32, 1024), 15.0), ((8192, 32, 8192), 15.0), ((16384, 256, 1024), 4.5), ((4096, 256, 8192), 4.5))
ENCODE_GOALS = (
    ((16384, 32, 1024), 15.0),
    ((8192, 32, 8192), 15.0),
    ((4096, 256, 8192), 3.2),
    ((1024, 32, 65536), 8.0),
)
SIMVQ_GOALS = (((4096, 128, 8192), 1.4), ((8192, 32, 8192), 4.0))

CASES: Sequence[Case] = (
    *(Case(f"EMA training {shape}", goal, partial(ema, training, *shape)) for shape, goal in EMA_GOALS),
    Case("residual 8 levels training (4096, 128, 1024)", 3.6, partial(residual, training, 4096, 128, 1024)),
    Case(
        "residual 8 levels training, shared codebook",
        3.0,
        partial(residual, training, 4096, 128, 1024, shared=True),
    ),
    *(Case(f"SimVQ training {shape}", goal, partial(simvq, training, *shape)) for shape, goal in SIMVQ_GOALS),
    Case("FSQ training (16384, 64)", 0.8, partial(fsq, training, 16384, 64)),
    Case("LFQ entropy training, 4096 x 2^10", 10.0, partial(lookup_free, training, 4096, 10)),
    Case("LFQ entropy training, 1024 x 2^16", 100.0, partial(lookup_free, training, 1024, 16), slow=True),
    Case(
        "BSQ against spherical LFQ, 1024 x 2^16",
        100.0,
        partial(lookup_free, training, 1024, 16, spherical=True),
        slow=True,
    ),
    *(Case(f"encode {shape}", goal, partial(ema, encoding, *shape)) for shape, goal in ENCODE_GOALS),
    Case("encode residual 8 (4096, 128, 1024)", 2.3, partial(residual, encoding, 4096, 128, 1024)),
)


def compared(case: Case, repeat: int) -> dict[str, Any]:
    """A row with a peer."""
    torch.manual_seed(0)
    theirs, ours = case.build()
    peaks = [Meter()(work)[1].peak for work in (theirs, ours)]
    meter = Meter()
    turns = [(meter(theirs)[1], meter(ours)[1]) for _ in range(1 if case.slow else repeat)]
    peer_seconds, seconds = (min(cost.cpu_seconds for cost in side) for side in zip(*turns, strict=True))
    return {
        "case": case.name,
        "ratio": peer_seconds / seconds,
        "goal": case.goal,
        "peer": peer_seconds,
        "ours": seconds,
        "peer_peak": peaks[0],
        "peak": peaks[1],
    }


def shares(repeat: int, pattern: str) -> Iterator[dict[str, Any]]:
    """Certified searches against the machine's matrix product."""
    a, b, out = (torch.randn(SIDE, SIDE) for _ in range(3))
    for count, dim, codes in ((4096, 256, 8192), (4096, 512, 8192)):
        name = f"share of sgemm, certified ({count}, {dim}, {codes})"
        if not fnmatch(name, pattern):
            continue
        z, ready = torch.randn(count, dim), prepare(torch.randn(codes, dim))
        peak = Meter()(lambda z=z, ready=ready: nearest(z, ready))[1].peak  # type: ignore[misc]
        meter = Meter()
        works = (lambda: torch.mm(a, b, out=out), lambda z=z, ready=ready: nearest(z, ready))
        turns = [tuple(meter(work)[1] for work in works) for _ in range(repeat)]
        product, search = (min(cost.cpu_seconds for cost in side) for side in zip(*turns, strict=True))
        rates = 2 * SIDE**3 / product, 2 * count * dim * codes / search
        yield {
            "case": name,
            "ratio": rates[1] / rates[0],
            "goal": 0.75,  # of a plain search; 0.65 was asked of a certified one, and there is no other here
            "peer": product,
            "ours": search,
            "peer_peak": None,
            "peak": peak,
        }


def memory(pattern: str) -> Iterator[dict[str, Any]]:
    """What a search needs beyond its inputs, its table and its codes."""
    count, dim, codes = 16384, 32, 65536
    name = f"memory of a search ({count}, {dim}, {codes}), at most 64 MB"
    if fnmatch(name, pattern):
        z, table = torch.randn(1, count, dim), quantize.create("vq", dim=dim, codes=codes).eval()
        _, cost = Meter()(lambda: table.encode(z))
        if cost.peak is not None:
            extra = cost.peak - 8 * count
            ratio = 64 * MEGABYTE / extra
            yield {
                "case": name,
                "ratio": ratio,
                "goal": 1.0,
                "peer": None,
                "ours": cost.cpu_seconds,
                "peer_peak": None,
                "peak": extra,
            }


def show(row: dict[str, Any]) -> str:
    """A row as a line."""
    times = [" " * 9 if row[side] is None else f"{1e3 * row[side]:9.1f}" for side in ("peer", "ours")]
    peaks = ["-" if row[side] is None else f"{row[side] / MEGABYTE:.0f}" for side in ("peer_peak", "peak")]
    met = "" if row["ratio"] >= row["goal"] else "  MISSED"
    return (
        f"{row['case']:54} {times[0]} {times[1]} {row['ratio']:8.2f} {row['goal']:7.2f} "
        f"{peaks[0]:>6} {peaks[1]:>6}{met}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="a shell pattern over the names of rows")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--without-onednn", action="store_true", help="what remains where MKL is as fast")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.without_onednn:
        torch.backends.mkldnn.set_flags(False)
    rows = []
    if not args.json:
        print(f"{'CPU milliseconds':54} {'peer':>9} {'ours':>9} {'ratio':>8} {'goal':>7} {'MiB':>6} {'ours':>6}")

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        if not args.json:
            print(show(row), flush=True)

    for case in CASES:
        if fnmatch(case.name, args.only):
            add(compared(case, args.repeat))
    for row in (*shares(args.repeat, args.only), *memory(args.only)):
        add(row)
    if args.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
