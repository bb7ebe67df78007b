"""Systems whose tokens are brain waves, robot actions, shapes or graphs."""

from __future__ import annotations

from smalti.systems.record import NONE_PUBLISHED, UNKNOWN, Checkpoint, Record

RECORDS: tuple[Record, ...] = (
    Record(
        name="neurorvq",
        title="NeuroRVQ: Multi-Scale EEG Tokenization for Generative Large Brainwave Models",
        year=2025,
        paper="arXiv 2510.13068",
        kind="tokenizer",
        modality=("eeg",),
        repository="KonstantinosBarmpas/NeuroRVQ",
        code_licence=UNKNOWN,
        weights=(
            *(
                Checkpoint(
                    hub="ntinosbarmpas/NeuroRVQ",
                    file=f"pretrained_models/tokenizers/NeuroRVQ_{signal}_tokenizer_v1.pt",
                    licence="CC-BY-NC-4.0",
                )
                for signal in ("EEG", "EMG", "ECG")
            ),
            Checkpoint(
                hub="ntinosbarmpas/NeuroRVQ",
                file="pretrained_models/foundation_models/NeuroRVQ_EEG_foundation_model_v1.pt",
                licence="CC-BY-NC-4.0",
                note="the masked-token model",
            ),
        ),
        licence_note="code: README read, licence not found. Weights: non-commercial as quoted by the braindecode "
        "conversions; another re-upload says Apache-2.0: do not rely on it.",
        summary="Four temporal scales of an EEG patch, each residually quantized.",
    ),
    Record(
        name="vq-vla",
        title="VQ-VLA: Improving Vision-Language-Action Models via Scaling Vector-Quantized Action Tokenizers",
        year=2025,
        paper="arXiv 2507.01016",
        kind="tokenizer",
        modality=("action",),
        repository="xiaoxiao0406/VQ-VLA",
        code_licence="MIT",
        weights=(
            Checkpoint(hub="VQ-VLA/vq-vla-weight", file="action_tokenizer_weight/all_data_vq.pth"),
            Checkpoint(hub="VQ-VLA/vq-vla-weight", file="vqvla_weight", note="the policy, a folder"),
            Checkpoint(hub="VQ-VLA/openvla-7b-finetuned-libero-90", note="the policy"),
        ),
        licence_note="code: LICENSE read. Weights: not stated (the README says MIT of 'this repository'); hub page not "
        "found.",
        summary="Five robot actions at a time become four residual codes.",
    ),
    Record(
        name="vat",
        title="3D representation in 512-Byte: Variational tokenizer is the key for autoregressive 3D generation",
        year=2024,
        paper="arXiv 2412.02202",
        kind="tokenizer",
        modality=("shape",),
        repository="sparse-mvs-2/VAT",
        code_licence=None,
        weights=NONE_PUBLISHED,
        licence_note="the repository holds a page and figures only",
        summary="A point cloud as variational latents, residually quantized over growing scales.",
    ),
    Record(
        name="survey",
        title="Discrete Tokenization for Multimodal LLMs: A Comprehensive Survey",
        year=2025,
        paper="arXiv 2507.22920, TPAMI",
        kind="tokenizer",
        modality=("graph",),
        repository="jindongli-Ai/LLM-Discrete-Tokenization-Survey",
        code_licence=UNKNOWN,
        weights=NONE_PUBLISHED,
        licence_note="listing read; a reading list has no weights",
        summary="Eight families of quantizers over all modalities; the two that no other system brings are additive "
        "quantization and graph tokens of anchors and relations (what this entry tokenizes).",
    ),
)
