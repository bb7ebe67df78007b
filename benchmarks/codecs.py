"""Encode and decode of published sizes, random weights, beside the plain spelling of the same network.

    python -m benchmarks.codecs [--quick] [--json] [--only 'wavtokenizer*'] [--threads N]

Peer and ours take turns in one process, over the same weights and the same input, and the quickest of each counts, in
seconds of all processors: neighbours on the machine move seconds, the ratio hardly. `share` is how near ours comes to
the machine's matrix multiplication: operations of the network as published, over seconds, over what a product of two
4096 x 4096 matrices reaches per core here. Ours may do fewer operations than that (it merges upsampling into the
convolution behind it), so a share can pass 100 %. Fourier transforms are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peers
from smalti import create
from smalti.audio.simvq import SimVQAudio
from smalti.audio.wavtokenizer import WavTokenizer
from smalti.bench.resources import Meter
from smalti.image.simvq import SimVQImage
from smalti.tokenizer import NeuralTokenizer
from tests.audio import codec_reference as audio

SIDE = 4096  # of the matrices that say what the machine can do
SIMVQ_NAMES = {
    "quantizer.alphabet.vectors.weight": "quantize.embedding.weight",
    "quantizer.alphabet.vectors.network.": "quantize.embedding_proj.",
}


@dataclass(frozen=True)
class Codec:
    """A codec of a published size, and its peer.

    Args:
        tokenizer: ours.
        x: input in the network's own range.
        amount: images, or seconds of audio, in it.
        unit: "image" or "second".
        encode, decode: the peer's: input to codes, codes to output.
    """

    tokenizer: NeuralTokenizer
    x: Tensor
    amount: float
    unit: str
    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """A line of the benchmark.

    Args:
        name: what `--only` matches.
        build: of a length in seconds (pictures have none).
        goals: highest ratios of CPU seconds, ours over the peer's: to encode, to decode.
    """

    name: str
    build: Callable[[float], Codec]
    goals: tuple[float, float] = (1.0, 1.0)


# --- the codecs ------------------------------------------------------------------------------------------------------


def image_codec(tokenizer: NeuralTokenizer, size: int, *, unit: bool = False) -> Codec:
    """VQGAN or LlamaGen."""
    state = {key: value.contiguous() for key, value in tokenizer.state_dict().items()}
    rows = state["quantizer.alphabet.vectors.weight"]
    grid = (1, size // 16, size // 16)
    return Codec(
        tokenizer.eval(),
        torch.rand(1, 3, size, size) * 2 - 1,
        1.0,
        "image",
        lambda x: peers.vqgan_encode(state, x, rows, unit=unit).reshape(grid),
        lambda codes: peers.vqgan_decode(state, codes, rows, unit=unit),
    )


def simvq_image(size: int) -> Codec:
    tokenizer = SimVQImage.Config().build().eval()
    state = {}
    for key, value in tokenizer.state_dict().items():
        for own, official in SIMVQ_NAMES.items():
            key = key.replace(own, official)
        state[key] = value.contiguous()
    grid = (1, size // tokenizer.factor, size // tokenizer.factor)
    return Codec(
        tokenizer,
        torch.rand(1, 3, size, size) * 2 - 1,
        1.0,
        "image",
        lambda x: peers.simvq_image_encode(state, x).reshape(grid),
        lambda codes: peers.simvq_image_decode(state, codes),
    )


def audio_codec(
    tokenizer: NeuralTokenizer,
    state: dict[str, Tensor],
    prefix: str,
    rows: Callable[[], Tensor],
    length: float,
    hop: int,
    *,
    causal: bool,
) -> Codec:
    """WavTokenizer or SimVQ's, from a random checkpoint of the published layout."""
    encoder = peers.SEANet(state, prefix, causal=causal)
    x = 0.3 * torch.randn(1, 1, round(length * 24_000) // hop * hop)
    return Codec(
        tokenizer,
        x,
        x.shape[-1] / 24_000,
        "second",
        lambda x: peers.nearest(encoder(x)[0].t(), rows())[None],
        lambda codes: peers.vocos_decode(state, torch.nn.functional.embedding(codes, rows()).transpose(1, 2), hop),
    )


def networks(prefix: str, ratios: tuple[int, ...], hop: int, bandwidths: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        **audio.random_encoder(draw, prefix, filters=32, dimension=512, ratios=ratios),
        **audio.random_decoder(
            draw, dimension=512, dim=768, intermediate=2304, layers=12, bandwidths=bandwidths, n_fft=4 * hop
        ),
    }


def wavtokenizer(length: float, ratios: tuple[int, ...], hop: int) -> Codec:
    prefix = audio.FEATURES + "encoder.model."
    state = networks(prefix, ratios, hop, bandwidths=4)
    state |= audio.random_codebook(torch.Generator().manual_seed(1), audio.CODEBOOK, 4096, 512)
    rows = state[audio.CODEBOOK + "embed"]
    tokenizer = WavTokenizer.from_official(None, state)
    return audio_codec(tokenizer, state, prefix, lambda: rows, length, hop, causal=False)


def simvq_audio(length: float) -> Codec:
    prefix, draw = "encoder.model.", torch.Generator().manual_seed(1)
    state = networks(prefix, (8, 5, 4, 2), 320, bandwidths=0)
    state |= {
        "quantize.embedding.weight": torch.randn(65_536, 512, generator=draw) / 512**0.5,
        "quantize.embedding_proj.weight": torch.randn(512, 512, generator=draw) / 512**0.5,
        "quantize.embedding_proj.bias": torch.randn(512, generator=draw) / 10,
    }
    tokenizer = SimVQAudio.from_official(None, state)
    return audio_codec(tokenizer, state, prefix, lambda: peers.simvq_rows(state), length, 320, causal=True)


CASES = (
    Case(
        "llamagen vq-16, 256x256",
        lambda _: image_codec(create("llamagen", "vq_ds16"), 256, unit=True),
        (0.88, 0.88),
    ),
    Case("vqgan f16-16384, 256x256", lambda _: image_codec(create("vqgan", "imagenet_f16_16384"), 256)),
    Case("vqgan f16-1024, 256x256", lambda _: image_codec(create("vqgan", "imagenet_f16_1024"), 256)),
    Case("simvq image 65k, 128x128", lambda _: simvq_image(128)),
    Case("wavtokenizer 75/s", lambda length: wavtokenizer(length, (8, 5, 4, 2), 320), (0.80, 0.95)),
    Case("wavtokenizer 40/s", lambda length: wavtokenizer(length, (6, 5, 5, 4), 600), (0.80, 0.95)),
    Case("simvq audio 65k, 75/s", simvq_audio),
)


# --- measuring -------------------------------------------------------------------------------------------------------


def roofline(threads: int, repeat: int) -> float:
    """GFLOP per second of one processor that a product of two large matrices reaches."""
    torch.set_num_threads(threads)
    a, b, out = (torch.randn(SIDE, SIDE) for _ in range(3))
    meter = Meter()
    costs = [meter(lambda: torch.mm(a, b, out=out))[1] for _ in range(repeat + 1)]
    return 2 * SIDE**3 / min(cost.cpu_seconds for cost in costs) / 1e9


def examined(work: Callable[[], Tensor]) -> tuple[Tensor, float, int | None]:
    """What work gives, the GFLOP of its convolutions, products and recurrent layers, and by how much memory grew."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _recurrent})
    with counter:
        result, cost = Meter()(work)
    return result, counter.get_total_flops() / 1e9, cost.peak


def _recurrent(x: Any, w_input: Any, w_hidden: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    """Products of an LSTM's layer over all steps, from the shapes of its arguments."""
    steps, batch = x[0], x[1]
    return int(2 * steps * batch * (w_input[0] * w_input[1] + w_hidden[0] * w_hidden[1]))


def run(case: Case, *, length: float, repeat: int, threads: int, per_core: float) -> Iterator[dict[str, Any]]:
    """The two rows of a case: encode, decode.

    Args:
        case: what to run.
        length: of audio, seconds.
        repeat: turns that are timed, after one that is examined.
        threads: of torch.
        per_core: GFLOP per second of one processor that this machine reaches.
    """
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    codec = case.build(length)
    tokenizer, x = codec.tokenizer, codec.x
    tokens = tokenizer.encode(x, raw=True)
    codes = tokens.codes[..., 0]
    works: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "encode": (lambda: codec.encode(x), lambda: tokenizer.encode(x, raw=True).codes[..., 0]),
        "decode": (lambda: codec.decode(codes), lambda: tokenizer.decode(tokens, raw=True)),
    }
    for (way, (theirs, ours)), goal in zip(works.items(), case.goals, strict=True):
        expected, published, peer_peak = examined(theirs)
        found, own, peak = examined(ours)
        meter = Meter()
        costs = [(meter(theirs)[1], meter(ours)[1]) for _ in range(repeat)]
        peer_seconds, seconds = (min(c.cpu_seconds for c in side) / codec.amount for side in zip(*costs, strict=True))
        yield {
            "case": f"{case.name}, {way}",
            "ratio": seconds / peer_seconds,
            "goal": goal,
            "peer": peer_seconds,
            "ours": seconds,
            "peak": peak,
            "peer_peak": peer_peak,
            "unit": f"CPU seconds per {codec.unit}",
            "wall": min(cost.seconds for _, cost in costs) / codec.amount,
            "gflop": published / codec.amount,
            "own_gflop": own / codec.amount,
            "gflop_per_core": per_core,
            "share": published / codec.amount / seconds / per_core,
            "peer_share": published / codec.amount / peer_seconds / per_core,
            "same_codes": float((found == expected).double().mean()) if way == "encode" else None,
            "difference": float((found.flatten() - expected.flatten()).abs().max()) if way == "decode" else None,
            "threads": threads,
        }


def show(row: dict[str, Any]) -> str:
    """A row as a line."""
    same, far = row["same_codes"], row["difference"]
    check = f"difference {far:.1e}" if same is None else f"same codes {same:.2%}"
    peak = "-" if row["peak"] is None else f"{row['peak'] / 2**20:.0f}/{row['peer_peak'] / 2**20:.0f}"
    met = "" if row["ratio"] <= row["goal"] else "  MISSED"
    return (
        f"{row['case']:34} {row['peer']:8.3f} {row['ours']:8.3f} {row['ratio']:6.2f} {row['goal']:5.2f} "
        f"{row['gflop']:8.1f} {row['share']:6.0%} {row['peer_share']:6.0%} {peak:>10}  {check}{met}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="a shell pattern over the names of cases")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="of audio")
    parser.add_argument("--quick", action="store_true", help="time every case once; ratios are then within some 15 %%")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    repeat = 1 if args.quick else args.repeat
    counts = sorted({1, args.threads, os.cpu_count() or 1})
    peaks = {threads: roofline(threads, repeat) for threads in counts}
    rows = []
    if not args.json:
        for threads, peak in peaks.items():
            print(f"sgemm {SIDE}^3, {threads} threads: {peak:.0f} GFLOP per CPU second")
        print(
            f"{'CPU seconds per image or second':34} {'peer':>8} {'ours':>8} {'ratio':>6} {'goal':>5} "
            f"{'GFLOP':>8} {'share':>6} {'peer':>6} {'MiB o/p':>10}"
        )
    for case in CASES:
        if fnmatch(case.name, args.only):
            for row in run(
                case, length=args.seconds, repeat=repeat, threads=args.threads, per_core=peaks[args.threads]
            ):
                rows.append(row)
                if not args.json:
                    print(show(row), flush=True)
    if args.json:
        print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
