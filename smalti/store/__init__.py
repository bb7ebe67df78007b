"""Token stores: codes of many files on disk, written exactly once, readable by anything that reads Parquet."""

from smalti.store.coder import Progress
from smalti.store.decode import Decoded, decode_store
from smalti.store.encode import encode_paths
from smalti.store.format import ByteRecipe, SampleRecipe
from smalti.store.kinds import coder_class
from smalti.store.reader import TokenDataset, TokenStore
from smalti.store.verify import Again, Report, encode_again, verify

__all__ = [
    "Again",
    "ByteRecipe",
    "Decoded",
    "Progress",
    "Report",
    "SampleRecipe",
    "TokenDataset",
    "TokenStore",
    "coder_class",
    "decode_store",
    "encode_again",
    "encode_paths",
    "verify",
]
