"""Systems whose tokens are videos."""

from __future__ import annotations

from smalti.systems.record import NONE_PUBLISHED, Checkpoint, Record

RECORDS: tuple[Record, ...] = (
    Record(
        name="e-vilm",
        title="E-ViLM: Efficient Video-Language Model via Masked Video Modeling with Semantic Vector-Quantized "
        "Tokenizer",
        year=2023,
        paper="arXiv 2311.17267, WACV-W 2024",
        kind="tokenizer",
        modality=("video",),
        repository=None,
        code_licence=None,
        weights=NONE_PUBLISHED,
        licence_note="nothing official was found",
        summary="Semantic labels of video patches, the targets of masked video modelling.",
    ),
    Record(
        name="vqtoken",
        title="Neural Discrete Token Representation Learning for Extreme Token Reduction in Video Large "
        "Language Models",
        year=2025,
        paper="arXiv 2503.16980, NeurIPS 2025",
        kind="tokenizer",
        modality=("video",),
        repository="Hai-chao-Zhang/VQToken",
        code_licence="BSD-3-Clause",
        weights=(Checkpoint(hub="haichaozhang/VQ-Token-llava-ov-0.5b"),),
        licence_note="code: LICENSE read. Weights: not stated; the base model "
        "lmms-lab/llava-onevision-qwen2-0.5b-ov is Apache-2.0.",
        summary="Clusters a video's visual tokens into a codebook of its own and a map of cluster ids.",
    ),
    Record(
        name="omnitokenizer",
        title="OmniTokenizer: A Joint Image-Video Tokenizer for Visual Generation",
        year=2024,
        paper="arXiv 2406.09399",
        kind="tokenizer",
        modality=("image", "video"),
        repository="FoundationVision/OmniTokenizer",
        code_licence="MIT",
        weights=(
            *(
                Checkpoint(hub="Daniel0724/OmniTokenizer", file=f"{name}.ckpt")
                for name in (
                    "imagenet_k600",
                    "imagenet_ucf",
                    "imagenet_only",
                    "celebahq",
                    "ffhq",
                    "imagenet_mit",
                    "imagenet_sthv2",
                    "celebahq_ucf",
                    "celebahq_k600",
                    "ffhq_ucf",
                    "ffhq_k600",
                    "imagenet_ucf_vae",
                    "imagenet_k600_vae",
                )
            ),
            *(
                Checkpoint(hub="Daniel0724/OmniTokenizer", file=f"{name}.ckpt", note="language model over the tokens")
                for name in ("imagenet_class_lm", "ucf_class_lm", "k600_fp_lm")
            ),
            Checkpoint(hub="Daniel0724/OmniTokenizer", file="dit.pt", note="diffusion transformer"),
            Checkpoint(hub="Daniel0724/OmniTokenizer", file="latte_17frms.pt", note="diffusion transformer"),
        ),
        licence_note="code: README read. Weights: not stated now; the first upload's card said MIT.",
        summary="One set of weights for images and videos: window attention in space, causal attention in time.",
    ),
    Record(
        name="hitvideo",
        title="HiTVideo: Hierarchical Tokenizers for Enhancing Text-to-Video Generation with Autoregressive Large "
        "Language Models",
        year=2025,
        paper="arXiv 2503.11513, AAAI 2026",
        kind="tokenizer",
        modality=("video",),
        repository=None,
        code_licence=None,
        weights=NONE_PUBLISHED,
        licence_note="nothing official was found",
        summary="A causal 3-D autoencoder with codebooks on several levels, coarse ones first.",
    ),
)
