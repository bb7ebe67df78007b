"""Systems whose tokens are text or executables, and transfers between text tokenizers."""

from __future__ import annotations

from smalti.systems.record import NONE_PUBLISHED, UNKNOWN, Checkpoint, Record

RECORDS: tuple[Record, ...] = (
    Record(
        name="binary-bpe",
        title="Binary BPE: A Family of Cross-Platform Tokenizers for Binary Analysis",
        year=2025,
        paper="arXiv 2511.17573",
        kind="tokenizer",
        modality=("executable",),
        repository="mjbommar/binary-bpe",
        code_licence="Apache-2.0",
        weights=(
            *(
                Checkpoint(
                    hub=f"mjbommar/binary-tokenizer-001-{size}",
                    file="tokenizer.json",
                    name=f"001-{size}",
                    licence="MIT" if size in ("8k", "16k") else UNKNOWN,
                )
                for size in ("64k", "32k", "16k", "8k", "4k")
            ),
            Checkpoint(hub="mjbommar/binary-tokenizer-005", file="tokenizer.json", name="005"),
            Checkpoint(
                hub="mjbommar/glaurung-binary-tokenizer-002",
                file="tokenizer.json",
                name="glaurung-002",
                licence="Apache-2.0",
            ),
        ),
        licence_note="code: README read. Weights: the pages 001-8k, 001-16k and glaurung-002 read; 005 has no tag.",
        status="works",
        entry="smalti.text.binary_bpe:BinaryBPE",
        ships=True,
        summary="Byte pair encoding of executables, five nested vocabularies.",
    ),
    Record(
        name="visual-unicode",
        title="Emergent Semantics Beyond Token Embeddings: Transformer LMs with Frozen Visual Unicode Representations",
        year=2025,
        paper="arXiv 2507.04886, TMLR 2025",
        kind="tokenizer",
        modality=("text",),
        repository="AVBochkov/Embeddings",
        code_licence=UNKNOWN,
        weights=tuple(
            Checkpoint(
                hub=f"Bochkov/bvv241-{name}",
                file="tokenizer.json",
                name=f"bvv241-{name}",
                licence="Apache-2.0" if name == "max" else UNKNOWN,
                note="its table, normalized_embeddings_weights.pt, lies beside it: give the folder that holds both"
                + (". The vocabulary of Mistral-Nemo, over bytes: only its table is of this kind" * (name == "nemo")),
            )
            for name in ("max", "2-3", "nemo", "abs")
        ),
        licence_note="code: README read (one line), licence not found; also AVBochkov/PGT. Weights: the page "
        "bvv241-max read, the others not.",
        status="works",
        summary="A Unicode-centred vocabulary whose embeddings are frozen pictures of its tokens.",
        entry="smalti.text.visual_unicode:VisualUnicode",
    ),
    Record(
        name="visual-unicode/lm",
        title="Emergent Semantics Beyond Token Embeddings: Transformer LMs with Frozen Visual Unicode Representations",
        year=2025,
        paper="arXiv 2507.04886, TMLR 2025",
        kind="generator",
        modality=("text",),
        repository="AVBochkov/Embeddings",
        code_licence=UNKNOWN,
        weights=tuple(
            Checkpoint(hub=f"Bochkov/{name}", name=name, note="file names, and names of tensors, not read")
            for name in (
                "emergent-semantics-model-1024-float-335m",
                "pro_bvv_en",
                "pro_bvv_unfrozen",
                *(f"{family}_bvv_{part}" for family in ("best", "max", "nemo") for part in ("ru", "zh", "moe")),
                *(f"best_bvv_unfrozen_{part}" for part in ("ru", "zh")),
                *(f"abs-bvv-{layers}" for layers in range(1, 7)),
            )
        ),
        licence_note="code: README read (one line), licence not found; also AVBochkov/PGT. Weights: pages not read.",
        status="works",
        summary="A language model whose input table is frozen pictures of its tokens.",
        entry="smalti.text.visual_unicode:VisualLanguageModel",
    ),
    Record(
        name="equal-info",
        title="Training LLMs over Neurally Compressed Text",
        year=2024,
        paper="arXiv 2404.03626, TMLR 12/2024",
        kind="tokenizer",
        modality=("text",),
        repository=None,
        code_licence=None,
        weights=NONE_PUBLISHED,
        licence_note="nothing official was found",
        summary="Windows of text that an arithmetic coder compresses to equally many bits.",
        status="works",
        entry="smalti.text.equal_info.tokenizer:EqualInfoTokenizer",
        ships=True,
    ),
    Record(
        name="tokenizer-json",
        title="tokenizer.json, the file format of Hugging Face's tokenizers",
        year=2019,
        paper="none: a file format, by its reference implementation",
        kind="tokenizer",
        modality=("text",),
        repository="huggingface/tokenizers",
        code_licence="Apache-2.0",
        weights=NONE_PUBLISHED,
        licence_note="every file has its own; code: package metadata of tokenizers 0.23.3",
        status="works",
        entry="smalti.text.tokenizer_json:JsonTokenizer",
        summary="Any tokenizer.json: byte pair encoding by our engine where it is exact, the rest by `tokenizers`.",
    ),
    Record(
        name="word-pooled",
        title="Learn Your Tokens: Word-Pooled Tokenization for Language Modeling",
        year=2023,
        paper="EMNLP 2023 Findings",
        kind="model",
        modality=("text",),
        repository="avi-jit/eTok",
        code_licence=UNKNOWN,
        weights=NONE_PUBLISHED,
        licence_note="no LICENSE in a listing that looks complete; README not opened",
        summary="Pools the bytes or characters of each word into a few vectors, and spells the next word from them.",
    ),
    Record(
        name="token-merging-code",
        title="On the Effect of Token Merging on Pre-trained Models for Code",
        year=2025,
        paper="arXiv 2507.14423",
        kind="model",
        modality=("text",),
        repository=None,
        code_licence=None,
        weights=NONE_PUBLISHED,
        licence_note="nothing official was found",
        summary="Merges the hidden states of an identifier's sub-tokens inside a model of code.",
    ),
    Record(
        name="zett",
        title="Zero-Shot Tokenizer Transfer",
        year=2024,
        paper="arXiv 2405.07883",
        kind="transfer",
        modality=("text",),
        repository="bminixhofer/zett",
        code_licence=UNKNOWN,
        weights=tuple(
            Checkpoint(hub=f"benjamin/zett-hypernetwork-{name}", file="model.safetensors", name=name)
            for name in (
                "xlm-roberta-base",
                "Mistral-7B-v0.1",
                "multilingual-Mistral-7B-v0.1",
                "TinyLlama-1.1B-intermediate-step-1431k-3T",
                "Meta-Llama-3-8B-experimental",
            )
        ),
        licence_note="code: front page read in part, licence not found. Weights: cards seen for Mistral, multilingual "
        "and TinyLlama state none; the terms of the base models apply on top.",
        summary="A hypernetwork that predicts the embeddings of a new vocabulary.",
    ),
    Record(
        name="tokenadapt",
        title="Achieving Tokenizer Flexibility in Language Models through Heuristic Adaptation and Supertoken Learning",
        year=2025,
        paper="arXiv 2505.09738",
        kind="transfer",
        modality=("text",),
        repository="Tinycompany-AI/tokenadapt",
        code_licence=UNKNOWN,
        weights=(
            Checkpoint(hub="tinycompany/Llamified-128k-1", note="an adapted language model"),
            Checkpoint(
                address="https://huggingface.co/tinycompany, the repositories Qwentify-* and Llamaify-*",
                name="tinycompany",
                note="adapted language models",
            ),
        ),
        licence_note="code: no LICENSE in the listing of the copy sakhmatd/tokenadapt, pyproject.toml not opened. "
        "Weights: not found; the terms of the base models apply.",
        summary="Gives a language model another tokenizer without training; Supertokens may span words.",
    ),
)
