"""What the tests share: n-grams of several scripts, texts in twenty of them, and a font that is always there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import matplotlib

from smalti.text.visual_unicode import UnicodeVocabulary

FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
DATA = Path(os.environ.get("SMALTI_DATA", Path(__file__).parents[4] / "shared" / "data")) / "text" / "tatoeba"

NGRAMS = [
    *("th", "he", "the", "in", "er", "an", "re", "nd", "and", "ing", "est", "st", "te", "ie"),
    *("ие", "ни", "ени", "ст", "ста", "ра", "αι", "και", "ος", "τη", "της", "ال", "من", "الم", "ות", "של", "ים"),
    *("है", "कि", "की", "में", "का", "এর", "বা", "ার", "ন্ত", "한국", "의한", "에서", "습니", "니다", "です", "ます", "した"),
    *("日本", "中国", "国人", "ไม่", "กา", "ที่", "որ", "այ", "ան", "და", "ის", "ელ", "தம்", "கள்", "ను", "లో"),
    *("ab", "ba", "aba", "bab", "aa", "aaa", "abc", "bca"),
]

SCRIPTS = {
    "Latin": "Żółw naïve façade Straße", "Greek": "Καλημέρα κόσμε", "Cyrillic": "Съешь же ещё этих булок",
    "Armenian": "Բարեւ աշխարհ", "Hebrew": "שלום עולם", "Arabic": "مرحبا بالعالم", "Devanagari": "नमस्ते दुनिया",
    "Bengali": "ওহে বিশ্ব", "Gurmukhi": "ਸਤ ਸ੍ਰੀ ਅਕਾਲ", "Gujarati": "કેમ છો દુનિયા", "Tamil": "வணக்கம் உலகம்",
    "Telugu": "హలో ప్రపంచం", "Kannada": "ನಮಸ್ಕಾರ", "Malayalam": "നമസ്കാരം", "Thai": "สวัสดีชาวโลก", "Lao": "ສະບາຍດີ",
    "Georgian": "გამარჯობა", "Hangul": "안녕하세요 세계", "Han": "你好，世界", "Kana": "こんにちは カタカナ",
    "Amharic": "ሰላም ልዑል", "Khmer": "សួស្តី", "Myanmar": "မင်္ဂလာပါ", "Cherokee": "ᎣᏏᏲ", "Braille": "⠓⠑⠇⠇⠕",
}  # fmt: skip
BEYOND = "🙂 𝔘𝔫𝔦 \ue000 \uf8ff \uffff 𠮷 \U0010ffff"


def tatoeba(languages: tuple[str, ...]) -> dict[str, list[str]]:
    """Sentences by language, of the shared data."""
    found: dict[str, list[str]] = {language: [] for language in languages}
    for line in (DATA / "train.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["lang"] in found:
            found[entry["lang"]].append(entry["text"])
    return found


def small_vocabulary() -> UnicodeVocabulary:
    """The characters below U+0440 and a few tokens more: what escapes need, and quick to draw."""
    tokens = [*map(chr, range(0x440)), "<unk>", "<s>", "<s>a", "</s>", "ab", "abc", "bc", "\ufffd", "<esc>"]
    merges = [["a", "bc"], ["ab", "c"], ["a", "b"], ["b", "c"]]
    ids = {token: index for index, token in enumerate(tokens)}
    return UnicodeVocabulary.of_merges(ids, merges, ["<unk>", "<s>", "<s>a", "</s>", "<esc>"])
