"""benchmarks/codecs.py at tiny sizes: the peers compute what ours compute, and operations are counted."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.codecs import Case, Codec, audio_codec, examined, run, show
from smalti.audio.simvq import SimVQAudio
from smalti.audio.wavtokenizer import WavTokenizer
from smalti.image.llamagen import LlamaGen
from smalti.image.simvq import SimVQImage
from tests.audio import codec_reference as reference
from tests.audio import test_simvq as simvq
from tests.audio import test_wavtokenizer as wavtokenizer
from tests.image import test_simvq as simvq_image


def audio(state: dict[str, Tensor], prefix: str, *, causal: bool) -> Codec:
    ours = SimVQAudio if causal else WavTokenizer
    rows = (lambda: peers.simvq_rows(state)) if causal else (lambda: state[reference.CODEBOOK + "embed"])
    return audio_codec(ours.from_official(None, state), state, prefix, rows, 0.01, 6, causal=causal)


CASES = {
    "wavtokenizer": lambda _: audio(wavtokenizer.official(), wavtokenizer.ENCODER, causal=False),
    "simvq audio": lambda _: audio(simvq.official(), simvq.ENCODER, causal=True),
}


@pytest.mark.parametrize("name", CASES)
def test_audio_peers_give_the_same_codes_and_sound(name: str) -> None:
    encode, decode = run(Case(name, CASES[name]), length=0.01, repeat=1, threads=1, per_core=80.0)
    assert encode["same_codes"] == 1.0 and decode["difference"] < 1e-4
    for row in (encode, decode):
        assert {"case", "ratio", "goal", "peer", "ours", "peak"} <= row.keys()
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert name in show(row)


def test_the_peer_of_vqgan_gives_the_same_codes_and_picture() -> None:
    torch.manual_seed(0)
    model = LlamaGen.Config.tiny().build().eval()  # type: ignore[attr-defined]
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    rows, x = state["quantizer.alphabet.vectors.weight"], torch.rand(1, 3, 8, 12) * 2 - 1
    tokens = model.encode(x, raw=True)
    with torch.no_grad():
        assert torch.equal(peers.vqgan_encode(state, x, rows, unit=True), tokens.codes.flatten())
        decoded = peers.vqgan_decode(state, tokens.codes[..., 0], rows, unit=True)
    torch.testing.assert_close(model.decode(tokens, raw=True), decoded, atol=1e-4, rtol=0)


def test_the_peer_of_simvq_gives_the_same_codes_and_picture() -> None:
    model = simvq_image.random_model()
    assert isinstance(model, SimVQImage)
    state, x = simvq_image.official(model), simvq_image.images() * 2 - 1
    tokens = model.encode(x, raw=True)
    with torch.no_grad():
        assert torch.equal(peers.simvq_image_encode(state, x), tokens.codes.flatten())
        decoded = peers.simvq_image_decode(state, tokens.codes[..., 0])
    torch.testing.assert_close(model.decode(tokens, raw=True), decoded, atol=1e-4, rtol=0)


def test_operations_are_those_of_the_maths() -> None:
    layers = {
        2 * 50 * 30 * 20: lambda: nn.Linear(30, 20)(torch.randn(50, 30)),
        2 * 9 * 3 * 5 * 8 * 8: lambda: nn.Conv2d(3, 5, 3, padding=1)(torch.randn(1, 3, 8, 8)),
        2 * 10 * 2 * (4 * 16 * 16 * 2): lambda: nn.LSTM(16, 16, 2)(torch.randn(10, 1, 16))[0],
    }
    with torch.no_grad():
        for flops, work in layers.items():
            assert examined(work)[1] * 1e9 == pytest.approx(flops)
