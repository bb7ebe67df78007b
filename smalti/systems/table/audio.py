"""Systems whose tokens are speech, music or sound."""

from __future__ import annotations

from smalti.systems.record import NONE_PUBLISHED, UNKNOWN, Checkpoint, Record

WAVTOKENIZER_40 = "smalldata_frame40"
WAVTOKENIZER_75 = "smalldata_frame75"


def _simvq_audio(size: str) -> Checkpoint:
    return Checkpoint(
        hub="youngsheen/SimVQ",
        file=f"vq_audio_log/simvq_{size}/epoch=49-step=138600.ckpt",
        name=f"simvq_{size}",
        preset=f"simvq_{size}",
        licence="MIT",
        note="the README names zyx123/SimVQ, the same tree",
    )


RECORDS: tuple[Record, ...] = (
    Record(
        name="smalti-speech",
        title="Smalti's speech codec",
        year=2026,
        paper="none: trained by recipes/ of this project",
        kind="tokenizer",
        modality=("audio",),
        repository=None,
        code_licence="Apache-2.0",
        weights=NONE_PUBLISHED,
        licence_note="part of this package, under its licence",
        status="works",
        entry="smalti.audio.speech:SpeechCodec",
        ships=True,
        summary="A small speech codec whose weights ship with the package.",
    ),
    Record(
        name="wavtokenizer",
        title="WavTokenizer: an Efficient Acoustic Discrete Codec Tokenizer for Audio Language Modeling",
        year=2024,
        paper="arXiv 2408.16532, ICLR 2025",
        kind="tokenizer",
        modality=("audio",),
        repository="jishengpeng/WavTokenizer",
        code_licence="MIT",
        weights=(
            Checkpoint(
                hub="novateur/WavTokenizer-large-unify-40token",
                file="wavtokenizer_large_unify_600_24k.ckpt",
                preset=WAVTOKENIZER_40,
                licence="MIT",
            ),
            Checkpoint(
                hub="novateur/WavTokenizer-large-speech-75token",
                file="wavtokenizer_large_speech_320_v2.ckpt",
                preset=WAVTOKENIZER_75,
            ),
            Checkpoint(
                hub="novateur/WavTokenizer",
                file="WavTokenizer_small_600_24k_4096.ckpt",
                preset=WAVTOKENIZER_40,
            ),
            Checkpoint(
                hub="novateur/WavTokenizer",
                file="WavTokenizer_small_320_24k_4096.ckpt",
                preset=WAVTOKENIZER_75,
            ),
            *(
                Checkpoint(
                    hub=f"novateur/WavTokenizer-medium-{domain}-75token",
                    file=f"wavtokenizer_medium_{domain.replace('-', '_')}_320_24k{version}.ckpt",
                    preset=WAVTOKENIZER_75,
                )
                for domain in ("speech", "music-audio")
                for version in ("", "_v2")
            ),
            *(
                Checkpoint(
                    hub=f"swiss-ai/wavtokenizer-{name}",
                    file="model.safetensors",
                    name=f"swiss-ai-{name}",
                    preset=WAVTOKENIZER_40 if "40token" in name else WAVTOKENIZER_75,
                    note="the same weights in the key layout of transformers",
                )
                for name in (
                    "small-speech-40token",
                    "small-speech-75token",
                    "medium-speech-75token",
                    "medium-speech-75token-v2",
                    "medium-music-audio-75token",
                    "medium-music-audio-75token-v2",
                    "large-unify-40token",
                    "large-speech-75token-v2",
                )
            ),
        ),
        licence_note="code: LICENSE read. Weights: MIT on the pages large-unify-40token and -75token (which is empty); "
        "the other pages were not seen.",
        status="works",
        entry="smalti.audio.wavtokenizer:WavTokenizer",
        summary="One codebook of 4096, 40 or 75 tokens per second of sound, decoded by attention and an inverse STFT.",
    ),
    Record(
        name="simvq/audio",
        title="Addressing Representation Collapse in Vector Quantized Models with One Linear Layer",
        year=2024,
        paper="arXiv 2411.02038, ICCV 2025",
        kind="tokenizer",
        modality=("audio",),
        repository="youngsheen/SimVQ",
        code_licence="MIT",
        weights=tuple(_simvq_audio(size) for size in ("65k", "4k", "8k", "262k")),
        licence_note="code: LICENSE read. Weights: hub page read.",
        status="works",
        entry="smalti.audio.simvq:SimVQAudio",
        summary="WavTokenizer's autoencoder, causal, with a codebook that is one linear map over frozen vectors.",
    ),
    Record(
        name="dm-codec",
        title="DM-Codec: Distilling Multimodal Representations for Speech Tokenization",
        year=2024,
        paper="arXiv 2410.15017",
        kind="tokenizer",
        modality=("audio",),
        repository="mubtasimahasan/DM-Codec",
        code_licence="Apache-2.0",
        weights=tuple(
            Checkpoint(address="Google Drive, linked in the README", name=name)
            for name in ("DM-Codec_checkpoint_LM_SM", "DM-Codec_checkpoint_LM")
        ),
        licence_note="code: LICENSE read. Weights: not stated separately (the README says it of 'this project').",
        summary="Eight residual codebooks at 50 Hz, taught by a speech model and a text language model.",
    ),
    Record(
        name="xy-tokenizer",
        title="XY-Tokenizer: Mitigating the Semantic-Acoustic Conflict in Low-Bitrate Speech Codecs",
        year=2025,
        paper="arXiv 2506.23325",
        kind="tokenizer",
        modality=("audio",),
        repository="gyt1145028706/XY-Tokenizer",
        code_licence="Apache-2.0",
        weights=(
            Checkpoint(hub="fdugyt/XY_Tokenizer", file="xy_tokenizer.ckpt", licence="Apache-2.0"),
            Checkpoint(hub="fnlp/XY_Tokenizer_TTSD_V0"),
            Checkpoint(
                hub="OpenMOSS-Team/MOSS_TTSD_tokenizer_hf", licence="Apache-2.0", note="in the layout of transformers"
            ),
        ),
        licence_note="README read ('XY-Tokenizer is released under Apache 2.0') and the page MOSS_TTSD_tokenizer_hf; "
        "the other two pages were not seen.",
        summary="A semantic and an acoustic encoder fused into eight residual codebooks at 12.5 Hz, 1 kbps.",
    ),
    Record(
        name="tadicodec",
        title="TaDiCodec: Text-aware Diffusion Speech Tokenizer for Speech Language Modeling",
        year=2025,
        paper="arXiv 2508.16790, NeurIPS 2025",
        kind="tokenizer",
        modality=("audio",),
        repository="HeCheng0625/Diffusion-Speech-Tokenizer",
        code_licence="Apache-2.0",
        weights=(
            Checkpoint(hub="amphion/TaDiCodec", licence="Apache-2.0"),
            Checkpoint(hub="amphion/TaDiCodec-old"),
            *(
                Checkpoint(hub=f"amphion/TaDiCodec-TTS-{name}", note="text to speech")
                for name in ("AR-Qwen2.5-0.5B", "AR-Qwen2.5-3B", "AR-Phi-3.5-4B", "MGM")
            ),
        ),
        licence_note="README and the page amphion/TaDiCodec read, the others not. The repository is now "
        "AmphionTeam/Diffusion-Speech-Tokenizer.",
        summary="Binary codes at 6.25 Hz; the flow-matching decoder also reads the text and a short prompt.",
    ),
    Record(
        name="speech-text-interleave",
        title="Scaling Speech-Text Pre-training with Synthetic Interleaved Data",
        year=2024,
        paper="arXiv 2411.17607, ICLR 2025",
        kind="tokenizer",
        modality=("audio", "text"),
        repository="THUDM/GLM-4-Voice",
        code_licence="Apache-2.0",
        weights=(
            Checkpoint(hub="THUDM/glm-4-voice-tokenizer", file="model.safetensors", name="glm-4-voice-tokenizer"),
            Checkpoint(hub="THUDM/glm-4-voice-decoder", note="config.yaml, flow.pt and hift.pt"),
            Checkpoint(hub="THUDM/glm-4-voice-9b", note="the language model"),
        ),
        licence_note="code: own knowledge, the READMEs name none. Weights: no tag; tokenizer and decoder carry a "
        "LICENSE file of the size of the GLM-4-9B licence (free for research, commercial use after registration); "
        "that it is the same text is an inference. The repository is now also zai-org/GLM-4-Voice.",
        summary="A supervised speech tokenizer at 12.5 Hz, and text with spans turned into speech ids to train on.",
    ),
    Record(
        name="vec-tok",
        title="Vec-Tok Speech: speech vectorization and tokenization for neural speech generation",
        year=2023,
        paper="arXiv 2310.07246",
        kind="tokenizer",
        modality=("audio",),
        repository="BakerBunker/VecTok",
        code_licence=UNKNOWN,
        weights=NONE_PUBLISHED,
        licence_note="README read: no code, no weights, every item of its roadmap is open",
        summary="Speech vectors for the sound, k-means units with byte pair encoding for the meaning.",
    ),
    Record(
        name="cosyvoice",
        title="CosyVoice: A Scalable Multilingual Zero-shot Text-to-speech Synthesizer based on Supervised Semantic "
        "Tokens",
        year=2024,
        paper="arXiv 2407.05407",
        kind="tokenizer",
        modality=("audio",),
        repository="FunAudioLLM/CosyVoice",
        code_licence="Apache-2.0",
        weights=tuple(
            Checkpoint(hub=f"FunAudioLLM/{name}", note="a folder: tokenizer, language model, flow, vocoder")
            for name in (
                "CosyVoice-300M",
                "CosyVoice-300M-25Hz",
                "CosyVoice-300M-SFT",
                "CosyVoice-300M-Instruct",
                "CosyVoice2-0.5B",
                "Fun-CosyVoice3-0.5B-2512",
            )
        ),
        licence_note="code: own knowledge; the README names none and says 'for academic purposes only' of its "
        "contents. Weights: pages read, no tag. Also ModelScope iic/...",
        summary="Speech tokens from half of a speech recogniser; a language model writes them, flow matching speaks.",
    ),
    Record(
        name="dreamfoley",
        title="DreamFoley: Scalable VLMs for High-Fidelity Video-to-Audio Generation",
        year=2025,
        paper="arXiv 2512.06022",
        kind="generator",
        modality=("audio", "video"),
        repository=None,
        code_licence=None,
        weights=NONE_PUBLISHED,
        licence_note="nothing official was found",
        summary="A vision-language model that writes the residual codes of a video's sound in a delay pattern.",
    ),
    Record(
        name="discrete-audio-tokens",
        title="Discrete Audio Tokens: More Than a Survey!",
        year=2025,
        paper="arXiv 2506.10274, TMLR",
        kind="benchmark",
        modality=("audio",),
        repository="poonehmousavi/dates-website",
        code_licence=UNKNOWN,
        weights=NONE_PUBLISHED,
        licence_note="website: none stated. Its harnesses speechbrain/benchmarks and lucadellalib/audiocodecs are "
        "Apache-2.0 by own knowledge. It measures other people's models.",
        summary="Taxonomy and benchmark of audio tokenizers: reconstruction, probes on tokens, language modelling.",
    ),
)
