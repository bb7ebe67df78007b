"""The records, a module per modality. A new system is one `Record` in one of them.

Facts come from the system sheets; repositories, addresses and licences from what was read of the official pages (the
`licence_note` of each record says how sure that is). Nothing here was downloaded.
"""

from __future__ import annotations

from smalti.systems.record import Record
from smalti.systems.table import audio, compress, image, other, text, video

RECORDS: tuple[Record, ...] = (
    *image.RECORDS,
    *video.RECORDS,
    *audio.RECORDS,
    *other.RECORDS,
    *text.RECORDS,
    *compress.RECORDS,
)
