"""Systems whose tokens are images."""

from __future__ import annotations

from smalti.systems.record import NONE_PUBLISHED, UNKNOWN, Checkpoint, Record

TAMING_README = "short link in the repository's README"
OMMER_LAB = "https://ommer-lab.com/files/latent-diffusion/"
HEIBOX = "https://heibox.uni-heidelberg.de"


def _simvq_image(size: str) -> Checkpoint:
    return Checkpoint(
        hub="youngsheen/SimVQ",
        file=f"vq_log/simvq_{size}/epoch=49-step=250250.ckpt",
        name=f"simvq_{size}",
        preset=f"simvq_{size}",
        licence="MIT",
        note="the README names zyx123/SimVQ, the same tree",
    )


RECORDS: tuple[Record, ...] = (
    *(
        Record(
            name=f"smalti-photo-f{factor}",
            title="Smalti's photo tokenizer",
            year=2026,
            paper="none: trained by recipes/ of this project",
            kind="tokenizer",
            modality=("image",),
            repository=None,
            code_licence="Apache-2.0",
            weights=NONE_PUBLISHED,
            licence_note="part of this package, under its licence",
            status="works",
            entry="smalti.image.photo:PhotoTokenizer",
            ships=True,
            saved_as="smalti-photo",
            summary=f"A small image tokenizer, downsampling {factor}, whose weights ship with the package.",
        )
        for factor in (8, 16)
    ),
    Record(
        name="vqgan",
        title="Taming Transformers for High-Resolution Image Synthesis",
        year=2020,
        paper="arXiv 2012.09841, CVPR 2021",
        kind="tokenizer",
        modality=("image",),
        repository="CompVis/taming-transformers",
        code_licence="MIT",
        weights=(
            Checkpoint(
                name="vqgan_imagenet_f16_16384",
                address=f"{HEIBOX}/d/a7530b09fed84f80a887",
                file="last.ckpt",
                preset="imagenet_f16_16384",
            ),
            Checkpoint(
                name="vqgan_imagenet_f16_1024",
                address=f"{HEIBOX}/d/8088892a516d4e3baf92",
                file="last.ckpt",
                preset="imagenet_f16_1024",
            ),
            Checkpoint(
                name="vqgan_gumbel_f8",
                address=f"{HEIBOX}/d/2e5662443a6b4307b470",
                file="last.ckpt",
                preset="gumbel_f8",
                note="OpenImages, 8192 codes, Gumbel",
            ),
            Checkpoint(
                address=f"{OMMER_LAB}vq-f8.zip",
                name="vq-f8",
                preset="openimages_f8_16384",
                note="OpenImages, of CompVis/latent-diffusion; unpack the zip first",
            ),
            Checkpoint(
                address=f"{OMMER_LAB}vq-f8-n256.zip",
                name="vq-f8-n256",
                preset="openimages_f8_256",
                note="OpenImages, of CompVis/latent-diffusion; unpack the zip first",
            ),
            Checkpoint(
                address=TAMING_README,
                name="2020-11-09T13-33-36_faceshq_vqgan",
                preset="imagenet_f16_1024",
                note="CelebA-HQ and FFHQ",
            ),
            Checkpoint(
                address=TAMING_README,
                name="2020-09-23T17-56-33_imagenet_vqgan",
                preset="imagenet_f16_1024",
                note="first stage of D-RIN",
            ),
            Checkpoint(
                address=TAMING_README,
                name="2020-11-03T15-34-24_imagenetdepth_vqgan",
                note="depth maps of ImageNet, the condition of D-RIN",
            ),
        ),
        licence_note="code: own knowledge and a third party's list. Weights: the README, which states no licence for "
        "any file. The title's arXiv number is own knowledge too.",
        status="works",
        entry="smalti.image.taming:VQGAN",
        summary="Convolutional autoencoder with one codebook, trained with perceptual and adversarial losses.",
    ),
    Record(
        name="vqgan/mingpt",
        title="Taming Transformers for High-Resolution Image Synthesis",
        year=2020,
        paper="arXiv 2012.09841, CVPR 2021",
        kind="generator",
        modality=("image",),
        repository="CompVis/taming-transformers",
        code_licence="MIT",
        weights=(
            Checkpoint(
                address=f"{HEIBOX}/d/73487ab6e5314cb5adba",
                name="2020-11-09T13-31-51_sflckr",
                note="with its first stage, 1024 codes",
            ),
            Checkpoint(address=TAMING_README, name="faceshq_transformer", note="with its first stage, 1024 codes"),
            Checkpoint(address=TAMING_README, name="drin_transformer", note="with its first stage, 1024 codes"),
            Checkpoint(address=TAMING_README, name="ffhq_transformer", note="with its first stage"),
            Checkpoint(address=TAMING_README, name="celebahq_transformer", note="with its first stage"),
            Checkpoint(address=TAMING_README, name="cin_transformer", note="1.4 B parameters, with its first stage"),
            Checkpoint(address=TAMING_README, name="ade20k_transformer", note="with its first stage"),
            Checkpoint(address=TAMING_README, name="coco_transformer", note="with its first stage"),
        ),
        licence_note="code: own knowledge and a third party's list. Weights: the README, which states no licence for "
        "any file.",
        status="works",
        entry="smalti.image.taming:MinGPT",
        summary="Autoregressive transformer over VQGAN's tokens in raster order, after a condition prefix.",
    ),
    Record(
        name="llamagen",
        title="Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation",
        year=2024,
        paper="arXiv 2406.06525",
        kind="tokenizer",
        modality=("image",),
        repository="FoundationVision/LlamaGen",
        code_licence="MIT",
        weights=(
            Checkpoint(hub="FoundationVision/LlamaGen", file="vq_ds16_c2i.pt", preset="vq_ds16", licence="MIT"),
            Checkpoint(hub="FoundationVision/LlamaGen", file="vq_ds8_c2i.pt", preset="vq_ds8", licence="MIT"),
            Checkpoint(
                hub="FoundationVision/LlamaGen", file="vq_ds16_c2i_training.pt", preset="vq_ds16", licence="MIT"
            ),
            Checkpoint(hub="peizesun/llamagen_t2i", file="vq_ds16_t2i.pt", preset="vq_ds16"),
        ),
        licence_note="code: README read; it says MIT for 'the majority of this project' and other licences for parts. "
        "Weights: both FoundationVision pages read, llamagen_t2i not. The title's arXiv number is own knowledge.",
        status="works",
        entry="smalti.image.llamagen:LlamaGen",
        summary="VQGAN with 16384 unit-length codes of 8 dimensions.",
    ),
    Record(
        name="llamagen/ar",
        title="Autoregressive Model Beats Diffusion: Llama for Scalable Image Generation",
        year=2024,
        paper="arXiv 2406.06525",
        kind="generator",
        modality=("image",),
        repository="FoundationVision/LlamaGen",
        code_licence="MIT",
        weights=(
            *(
                Checkpoint(
                    hub="FoundationVision/LlamaGen",
                    file=f"{preset}.pt",
                    preset=preset,
                    config={"block_size": tokens},
                    licence="MIT",
                )
                for preset, tokens in (
                    ("c2i_B_256", 256),
                    ("c2i_L_256", 256),
                    ("c2i_L_384", 576),
                    ("c2i_XL_384", 576),
                    ("c2i_XXL_384", 576),
                    ("c2i_3B_384", 576),
                )
            ),
            Checkpoint(hub="peizesun/llamagen_t2i", name="llamagen_t2i", note="text to image; file names not read"),
        ),
        licence_note="code: README read. Weights: the FoundationVision page read for its licence; the single c2i file "
        "names are own knowledge, the page was read as c2i_*.pt.",
        status="works",
        entry="smalti.image.llamagen:LlamaGenAR",
        summary="Llama-style transformer over LlamaGen's tokens, conditioned on a class or on text features.",
    ),
    Record(
        name="simvq/image",
        title="Addressing Representation Collapse in Vector Quantized Models with One Linear Layer",
        year=2024,
        paper="arXiv 2411.02038, ICCV 2025",
        kind="tokenizer",
        modality=("image",),
        repository="youngsheen/SimVQ",
        code_licence="MIT",
        weights=tuple(_simvq_image(size) for size in ("65k", "1k", "8k", "262k")),
        licence_note="code: LICENSE read. Weights: hub page read.",
        status="works",
        entry="smalti.image.simvq:SimVQImage",
        summary="A codebook that moves as a whole: one linear map over frozen random vectors.",
    ),
    Record(
        name="vit-vqgan",
        title="Vector-quantized Image Modeling with Improved VQGAN",
        year=2021,
        paper="arXiv 2110.04627",
        kind="tokenizer",
        modality=("image",),
        repository=None,
        code_licence=None,
        weights=(
            Checkpoint(hub="thuanz123/vitvqgan-imagenet-small", file="imagenet_vitvq_small.ckpt"),
            Checkpoint(hub="thuanz123/vitvqgan-imagenet-base", file="imagenet_vitvq_base.ckpt"),
        ),
        licence_note="nothing official. The weights are of the re-implementation thuanz123/enhancing-transformers "
        "(MIT, README read); their pages were listed without a licence tag. Stage 2 was never released.",
        summary="Vision transformer encoder and decoder around unit-length codes; VIM generates from its tokens.",
    ),
    Record(
        name="fvq",
        title="Scalable Training for Vector-Quantized Networks with 100% Codebook Utilization",
        year=2025,
        paper="arXiv 2509.10140, ICLR 2026",
        kind="tokenizer",
        modality=("image",),
        repository="yfChang-cv/FVQ",
        code_licence=UNKNOWN,
        weights=tuple(
            Checkpoint(hub="yfChang/FVQ", file=f"fvq2vq/fvq2vqgan_{codes}.pt")
            for codes in ("16384_ep120", "16384_ep40", "65536_ep40", "262144_ep40", "262144_ep120")
        ),
        licence_note="code: the README names no licence. Weights: file names read, licence not found.",
        summary="LlamaGen's autoencoder with a codebook that a small transformer (VQBridge) computes.",
    ),
    Record(
        name="fqgan",
        title="Factorized Visual Tokenization and Generation",
        year=2024,
        paper="arXiv 2411.16681",
        kind="tokenizer",
        modality=("image",),
        repository="showlab/FQGAN",
        code_licence=UNKNOWN,
        weights=tuple(
            Checkpoint(hub="ZechenBai/FQGAN", file=f"fqgan_{books}_ds{down}.pt", licence="CC-BY-NC-4.0")
            for books in ("dual", "triple")
            for down in (16, 8)
        ),
        licence_note="code: licence not found. Weights: non-commercial by the README; the hub page has no card.",
        summary="Two or three sub-codebooks side by side, disentangled and tied to CLIP and DINOv2 features.",
    ),
    Record(
        name="wetok",
        title="WeTok: Powerful Discrete Tokenization for High-Fidelity Visual Reconstruction",
        year=2025,
        paper="arXiv 2508.05599",
        kind="tokenizer",
        modality=("image",),
        repository="zhuangshaobin/WeTok",
        code_licence="Apache-2.0",
        weights=tuple(
            Checkpoint(hub="GrayShine/WeTok", file=f"{name}/WeTok.ckpt", name=name.replace("/", "-"))
            for name in (
                "GeneralDomain/compratio24",
                "GeneralDomain/compratio48",
                "GeneralDomain/compratio192",
                "GeneralDomain/compratio768",
                "ImageNet/downsample8",
                "ImageNet/downsample16",
            )
        ),
        licence_note="code: second hand (a note of September 2026 on its LICENSE file); the README names none. "
        "Weights: the card has no licence metadata.",
        summary="Group-wise lookup-free quantization and, at the highest ratio, a generative decoder.",
    ),
    Record(
        name="tokenflow",
        title="TokenFlow: Unified Image Tokenizer for Multimodal Understanding and Generation",
        year=2024,
        paper="arXiv 2412.03069, CVPR 2025",
        kind="tokenizer",
        modality=("image",),
        repository="ByteVisionLab/TokenFlow",
        code_licence=UNKNOWN,
        weights=(
            Checkpoint(hub="ByteVisionLab/TokenFlow", file="tokenflow_clipb_32k_enhanced.pt", licence="MIT"),
            Checkpoint(hub="ByteVisionLab/TokenFlow", file="tokenflow_siglip_32k.pt", licence="MIT"),
            Checkpoint(
                hub="ByteVisionLab/TokenFlow-t2i", licence="Apache-2.0", note="text-to-image language model, 7 B"
            ),
        ),
        licence_note="code: README read, licence not found. Weights: pages read. Also under ByteFlow-AI.",
        summary="A semantic and a pixel codebook that share one index, over several scales.",
    ),
    Record(
        name="tokenbridge",
        title="Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation",
        year=2025,
        paper="arXiv 2503.16430",
        kind="tokenizer",
        modality=("image",),
        repository="YuqingWang1029/TokenBridge",
        code_licence="MIT",
        weights=(
            Checkpoint(hub="Epiphqny/TokenBridge", file="vae/kl16.ckpt", note="the VAE comes from MAR"),
            Checkpoint(
                hub="Epiphqny/TokenBridge",
                file="tokenbridge/tokenbridge_large/checkpoint-last.pth",
                name="tokenbridge_large",
                note="generator",
            ),
            Checkpoint(
                hub="Epiphqny/TokenBridge",
                file="tokenbridge/tokenbridge_huge/checkpoint-last.pth",
                name="tokenbridge_huge",
                note="generator",
            ),
        ),
        licence_note="code: LICENSE read. Weights: not stated on the card text seen; terms of MAR's VAE not looked up.",
        summary="Quantizes each dimension of a trained continuous tokenizer, and generates dimension by dimension.",
    ),
    Record(
        name="one-d-piece",
        title="One-D-Piece: Image Tokenizer Meets Quality-Controllable Compression",
        year=2025,
        paper="arXiv 2501.10064",
        kind="tokenizer",
        modality=("image",),
        repository="turingmotors/One-D-Piece",
        code_licence="Apache-2.0",
        weights=(
            Checkpoint(
                hub="turing-motors/One-D-Piece-S-256", file="pytorch_model.bin", name="S-256", licence="Apache-2.0"
            ),
            Checkpoint(hub="turing-motors/One-D-Piece-B-256", name="B-256"),
            Checkpoint(hub="turing-motors/One-D-Piece-L-256", name="L-256"),
            *(
                Checkpoint(hub=f"turing-motors/MaskGIT_One-D-Piece-{size}-256", note="generator")
                for size in ("S", "B", "L")
            ),
        ),
        licence_note="code: README read. Weights: the S-256 page read, the others not.",
        summary="One-dimensional tokens of which any prefix decodes: quality grows with the length kept.",
    ),
    Record(
        name="textok",
        title="Language-Guided Image Tokenization for Generation",
        year=2024,
        paper="arXiv 2412.05796, CVPR 2025",
        kind="tokenizer",
        modality=("image",),
        repository=None,
        code_licence=None,
        weights=NONE_PUBLISHED,
        licence_note="nothing official was found; two unofficial re-implementations exist",
        summary="Image tokens given a caption: encoder and decoder both read its text features.",
    ),
    Record(
        name="karl",
        title="Single-pass Adaptive Image Tokenization for Minimum Program Search",
        year=2025,
        paper="arXiv 2507.07995",
        kind="tokenizer",
        modality=("image",),
        repository="ShivamDuggal4/karl",
        code_licence=UNKNOWN,
        weights=tuple(
            Checkpoint(address="Dropbox, by the script in the repository", file=f"karl_small_{name}.pth")
            for name in (
                "vqgan_quantized_latents",
                "vqgan_continuous_latents",
                "vae_quantized_latents",
                "vae_continuous_latents",
            )
        ),
        licence_note="README read, licence not found. Five files are published; the quantized VQGAN one exists for "
        "ImageNet-1k and for ImageNet-100. The base VQGAN and VAE come from MAGE and MAR.",
        summary="Chooses in one pass how many tokens an image needs for a wanted reconstruction error.",
    ),
    Record(
        name="instella-t2i",
        title="Instella-T2I: Pushing the Limits of 1D Discrete Latent Space Image Generation",
        year=2025,
        paper="arXiv 2506.21022",
        kind="tokenizer",
        modality=("image",),
        repository="AMD-AIG-AIMA/Instella-T2I",
        code_licence=UNKNOWN,
        weights=(
            Checkpoint(hub="amd/Instella-T2I", file="bae/model.safetensors", name="bae"),
            Checkpoint(hub="amd/Instella-T2I", file="diffusion.pt", note="generator"),
            Checkpoint(hub="amd/Instella-T2I", file="ar.pt", note="generator"),
        ),
        licence_note="code: README read, licence not found. Weights: card read in part, no licence metadata seen.",
        summary="128 one-dimensional latents of independent bits, with a diffusion and an autoregressive generator.",
    ),
    Record(
        name="mingtok",
        title="Ming-UniVision: Joint Image Understanding and Generation with a Unified Continuous Tokenizer",
        year=2025,
        paper="arXiv 2510.06590",
        kind="tokenizer",
        modality=("image",),
        repository="inclusionAI/Ming-UniVision",
        code_licence=UNKNOWN,
        weights=(
            Checkpoint(hub="inclusionAI/MingTok-Vision", note="config.json and safetensors"),
            Checkpoint(hub="inclusionAI/Ming-UniVision-16B-A3B", note="the language model"),
        ),
        licence_note="code: first part of the README read, licence not found. Weights: ids read, licence not found.",
        summary="A continuous tokenizer in three stages: latents, causal semantic features, pixels.",
    ),
    Record(
        name="vqrae",
        title="VQRAE: Representation Quantization Autoencoders for Multimodal Understanding, Generation and "
        "Reconstruction",
        year=2025,
        paper="arXiv 2511.23386, CVPR 2026",
        kind="tokenizer",
        modality=("image",),
        repository=None,
        code_licence=None,
        weights=NONE_PUBLISHED,
        licence_note="looked for and not found; the repository KlingAIResearch/VQRAE is announced",
        summary="Quantizes the features of a vision foundation model in a high-dimensional SimVQ codebook.",
    ),
    Record(
        name="uniflow",
        title="UniFlow: A Unified Pixel Flow Tokenizer for Visual Understanding and Generation",
        year=2025,
        paper="arXiv 2510.10575, ICLR 2026",
        kind="tokenizer",
        modality=("image",),
        repository="ZhengrongYue/UniFlow",
        code_licence=UNKNOWN,
        weights=(Checkpoint(hub="yuezhengrong/UniFlow", file="model.safetensors", name="uniflow"),),
        licence_note="from the sheet; neither licence was found",
        summary="A self-distilled encoder with a flow-matching decoder per patch of pixels.",
    ),
    Record(
        name="seed",
        title="Planting a SEED of Vision in Large Language Model",
        year=2023,
        paper="arXiv 2307.08041",
        kind="tokenizer",
        modality=("image",),
        repository="AILab-CVC/SEED",
        code_licence="Apache-2.0",
        weights=(
            Checkpoint(
                hub="AILab-CVC/seed-tokenizer-2",
                file="seed_quantizer.pt",
                name="seed-tokenizer-2",
                licence="Apache-2.0",
                note="decoding also needs stabilityai/stable-diffusion-2-1-unclip",
            ),
            Checkpoint(
                hub="AILab-CVC/SEED",
                file="seed_tokenizer/seed_quantizer.pt",
                name="SEED",
                licence="Llama-2",
                note="same file name and size as seed-tokenizer-2, under another licence tag",
            ),
            *(
                Checkpoint(hub=f"AILab-CVC/seed-llama-{size}-{stage}", licence="Llama-2", note="language model")
                for size in ("8b", "14b")
                for stage in ("pretrain", "sft")
            ),
        ),
        licence_note="README and hub pages read",
        summary="32 causal semantic tokens per image, decoded through a frozen unCLIP diffusion model.",
    ),
    Record(
        name="slot-mllm",
        title="Slot-MLLM: Object-Centric Visual Tokenization for Multimodal LLM",
        year=2025,
        paper="arXiv 2505.17726",
        kind="tokenizer",
        modality=("image",),
        repository="KU-AGI/Slot-MLLM",
        code_licence=UNKNOWN,
        weights=tuple(
            Checkpoint(address="Google Drive, linked in the README", name=name)
            for name in ("SlotTok", "Slot-MLLM-7B-instruct", "Slot-MLLM-14B-instruct")
        ),
        licence_note="README read: none stated for code or weights. It also offers its own copy of unCLIP-SD.",
        summary="Slots that compete for image regions, residually quantized, decoded by a diffusion model.",
    ),
    Record(
        name="ett",
        title="End-to-End Vision Tokenizer Tuning",
        year=2025,
        paper="arXiv 2505.10562",
        kind="tokenizer",
        modality=("image",),
        repository=None,
        code_licence=None,
        weights=(
            *(
                Checkpoint(hub=f"TencentARC/IBQ-Tokenizer-{codes}", licence=licence, note="the IBQ base tokenizer")
                for codes, licence in (
                    ("262144", UNKNOWN),
                    ("16384", UNKNOWN),
                    ("8192", "Apache-2.0"),
                    ("1024", "Apache-2.0"),
                )
            ),
            *(
                Checkpoint(hub=f"TencentARC/IBQ-Tokenizer-{codes}-Pretrain", note="the IBQ base tokenizer")
                for codes in ("16384", "262144")
            ),
            *(
                Checkpoint(hub=f"TencentARC/IBQ-AR-{size}", licence=licence, note="generator over IBQ's tokens")
                for size, licence in (("B", "Apache-2.0"), ("L", "Apache-2.0"), ("XL", UNKNOWN), ("XXL", "Apache-2.0"))
            ),
        ),
        licence_note="ETT itself published nothing that could be found. These are of its base, IBQ (repository "
        "TencentARC/SEED-Voken, Apache-2.0 by own knowledge); its pages were read where a licence is given.",
        summary="Tunes an IBQ tokenizer through the language model that reads its codebook vectors.",
    ),
    Record(
        name="put",
        title="Reduce Information Loss in Transformers for Pluralistic Image Inpainting",
        year=2022,
        paper="arXiv 2205.05076, CVPR 2022; arXiv 2404.00513, TPAMI 2024",
        kind="generator",
        modality=("image",),
        repository="liuqk3/PUT",
        code_licence=UNKNOWN,
        weights=tuple(
            Checkpoint(address="OneDrive and Baidu, linked in the README", name=name)
            for name in (
                "cvpr2022_p_vqvae_ffhq",
                "cvpr2022_p_vqvae_naturalscene",
                "cvpr2022_p_vqvae_imagenet",
                "cvpr2022_transformer_ffhq",
                "cvpr2022_transformer_naturalscene",
                "cvpr2022_transformer_imagenet",
            )
        ),
        licence_note="README read, licence not found. The TPAMI 2024 models lie in the same folder.",
        summary="Inpainting: patches tokenized one by one, and a transformer that reads unquantized features.",
    ),
    Record(
        name="addp",
        title="ADDP: Learning General Representations for Image Recognition and Generation with Alternating Denoising "
        "Diffusion Process",
        year=2024,
        paper="ICLR 2024",
        kind="generator",
        modality=("image",),
        repository="ChangyaoTian/ADDP",
        code_licence="Apache-2.0",
        weights=tuple(
            Checkpoint(hub="Changyao/ADDP", file=f"addp-vit-{size}-16.pth", licence="Apache-2.0")
            for size in ("base", "large")
        ),
        licence_note="README and page read. The VQGAN and the token predictors come from MAGE (own download, terms not "
        "looked up).",
        summary="Alternates between noisy pixels and token distributions; its encoder also recognises.",
    ),
    Record(
        name="seitpp",
        title="SeiT++: Masked Token Modeling Improves Storage-efficient Training",
        year=2023,
        paper="arXiv 2312.10105",
        kind="model",
        modality=("image",),
        repository="naver-ai/seit",
        code_licence="SeiT part Apache-2.0; SeiT++ CC-BY-NC",
        weights=(
            Checkpoint(address="GitHub releases of naver-ai/seit, v0.0 and later", file="trained-vit.ckpt"),
            Checkpoint(address="GitHub releases of naver-ai/seit, v0.0 and later", file="codebook.ckpt"),
            Checkpoint(
                address="GitHub releases of naver-ai/seit, v0.0 and later",
                file="tokenizer.ckpt",
                note="a pickled module: refused as it is",
            ),
            Checkpoint(address="naver-ai/seit, in the repository", file="weights/tokenadapt.ckpt"),
        ),
        licence_note="Apache part: README read. SeiT++ part: from the sheet. Weights: not stated separately.",
        summary="Trains vision models on stored tokens, with masked token modelling and token augmentations.",
    ),
    Record(
        name="tokbench",
        title="TokBench: Evaluating Your Visual Tokenizer before Visual Generation",
        year=2025,
        paper="arXiv 2505.18142",
        kind="benchmark",
        modality=("image", "video"),
        repository="wjf5203/TokBench",
        code_licence="MIT",
        weights=NONE_PUBLISHED,
        licence_note="LICENSE read; a benchmark has no weights of its own",
        summary="Whether text is still readable and faces are still the same person after reconstruction.",
    ),
    Record(
        name="resgen",
        title="Efficient Generative Modeling with Residual Vector Quantization-Based Tokens",
        year=2024,
        paper="arXiv 2412.10208, ICML 2025",
        kind="generator",
        modality=("image", "audio"),
        repository=None,
        code_licence=None,
        weights=NONE_PUBLISHED,
        licence_note="nothing official was found",
        summary="Masked generation over residual tokens that predicts the sum of a position's embeddings.",
    ),
)
