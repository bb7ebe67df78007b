"""Systems that quantize the weights of models, and vector search."""

from __future__ import annotations

from smalti.systems.record import NONE_PUBLISHED, UNKNOWN, Checkpoint, Record

RECORDS: tuple[Record, ...] = (
    Record(
        name="lr2vq",
        title="Learning Low-Rank Representations for Model Compression",
        year=2022,
        paper="arXiv 2211.11397",
        kind="compressor",
        modality=("weights",),
        repository=None,
        code_licence=None,
        weights=NONE_PUBLISHED,
        licence_note="nothing official was found",
        summary="Clusters low-rank representations of sub-vectors, so that rate and clustering dimension are free.",
    ),
    Record(
        name="quantease",
        title="QuantEase: Optimization-based Quantization for Language Models",
        year=2023,
        paper="arXiv 2309.01885",
        kind="compressor",
        modality=("weights",),
        repository="linkedin/QuantEase",
        code_licence="BSD-2-Clause",
        weights=NONE_PUBLISHED,
        licence_note="LICENSE read",
        summary="Layer-wise weight quantization by cyclic coordinate descent.",
    ),
    Record(
        name="pvq-llm",
        title="Pyramid Vector Quantization for LLMs",
        year=2024,
        paper="arXiv 2410.16926",
        kind="compressor",
        modality=("weights",),
        repository=None,
        code_licence=None,
        weights=NONE_PUBLISHED,
        licence_note="nothing official was found",
        summary="Groups of weights as a point of the integer pyramid and an amplitude, without a stored codebook.",
    ),
    Record(
        name="crossquant",
        title="CrossQuant: A Post-Training Quantization Method with Smaller Quantization Kernel for Precise Large "
        "Language Model Compression",
        year=2024,
        paper="arXiv 2410.07505",
        kind="compressor",
        modality=("weights",),
        repository=None,
        code_licence=None,
        weights=NONE_PUBLISHED,
        licence_note="nothing official was found",
        summary="Steps that mix the largest value of the row and of the column.",
    ),
    Record(
        name="svdquant",
        title="SVDQuant: Absorbing Outliers by Low-Rank Components for 4-Bit Diffusion Models",
        year=2024,
        paper="arXiv 2411.05007, ICLR 2025",
        kind="compressor",
        modality=("weights",),
        repository="mit-han-lab/deepcompressor",
        code_licence="Apache-2.0",
        weights=(
            *(
                Checkpoint(
                    hub=f"nunchaku-tech/nunchaku-flux.1-{name}",
                    licence=licence,
                    note="svdq-{int4,fp4}_r{32,128,256}-*.safetensors",
                )
                for name, licence in (
                    ("dev", UNKNOWN),
                    ("schnell", UNKNOWN),
                    ("kontext-dev", "non-commercial (of FLUX.1-dev)"),
                    ("krea-dev", UNKNOWN),
                    ("depth-dev", "non-commercial (of FLUX.1-dev)"),
                    ("canny-dev", "non-commercial (of FLUX.1-dev)"),
                )
            ),
            *(
                Checkpoint(hub=f"nunchaku-tech/nunchaku-{name}", note="svdq-{int4,fp4}_r{32,128,256}-*.safetensors")
                for name in ("sana", "qwen-image", "qwen-image-edit-2509", "z-image-turbo", "t5")
            ),
        ),
        licence_note="code (also nunchaku-tech/nunchaku): own knowledge. Weights follow the base model; three pages "
        "were read. Later pages lie under nunchaku-ai.",
        summary="4-bit weights and activations beside a low-rank branch that takes the outliers.",
    ),
    Record(
        name="edgeqat",
        title="EdgeQAT: Entropy and Distribution Guided Quantization-Aware Training for the Acceleration of "
        "Lightweight LLMs on the Edge",
        year=2024,
        paper="arXiv 2402.10787",
        kind="compressor",
        modality=("weights",),
        repository="shawnricecake/EdgeQAT",
        code_licence=UNKNOWN,
        weights=NONE_PUBLISHED,
        licence_note="README read: no licence stated. The student is the public BabyLlama-58M.",
        summary="Quantization-aware training with entropy and distribution losses and bits per token.",
    ),
    Record(
        name="saq",
        title="SAQ: Pushing the Limits of Vector Quantization through Code Adjustment and Dimension Segmentation",
        year=2025,
        paper="arXiv 2509.12086, SIGMOD 2026",
        kind="index",
        modality=("vector",),
        repository="howarlii/SAQ",
        code_licence=UNKNOWN,
        weights=NONE_PUBLISHED,
        licence_note="README and listing read: no licence stated. A library has no weights.",
        summary="A vector index with bits given segment by segment, and scalar codes adjusted to the vector.",
    ),
)
