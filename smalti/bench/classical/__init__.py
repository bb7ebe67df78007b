"""The classical codec at the same bytes: what JPEG, AVIF or Opus make of the bytes that tokens take.

    picture ──scaled down?──► codec, highest quality of at most BUDGET bytes ──► decoded, scaled back ──► compared
    sound   ──another rate?─► codec, highest bit rate of at most BUDGET bytes ──► decoded, rate restored ► compared

Whole files are counted, headers too. Where even a codec's smallest file is larger than the budget, that file is given,
and says so by its size. Few bytes are better spent on fewer pixels, as everybody who shrinks pictures knows, so each
codec may also choose its best scale (or sample rate).
"""

from smalti.bench.classical.coded import Coded, Ladder, highest
from smalti.bench.classical.pictures import PICTURE_CODECS, SCALES, PictureCodec, PictureLadder, pictures
from smalti.bench.classical.sound import CODEC2, OPUS_RATES, SOUND_CODECS, Codec2Ladder, OpusLadder, codec2, opus

__all__ = [
    "CODEC2",
    "OPUS_RATES",
    "PICTURE_CODECS",
    "SCALES",
    "SOUND_CODECS",
    "Codec2Ladder",
    "Coded",
    "Ladder",
    "OpusLadder",
    "PictureCodec",
    "PictureLadder",
    "codec2",
    "highest",
    "opus",
    "pictures",
]
