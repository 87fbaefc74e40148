"""The storage of moments between steps: in floating-point dtypes, or in codes of 8 or 4 bits."""

from jaxopt_adam.storage.blockwise import Blocks, Blockwise
from jaxopt_adam.storage.choice import NAMED, Storage, StorageChoice, StorageName, storage_of, valid_storage
from jaxopt_adam.storage.codes import Code, Quotient, Root
from jaxopt_adam.storage.dense import SQUARES, Dense, as_stored, dithered, is_dithered, undithered
from jaxopt_adam.storage.layout import Layout, block_length
from jaxopt_adam.storage.pairs import packed, unpacked
from jaxopt_adam.storage.rounding import NEAREST, ROUNDINGS, mixed, phases, salted
from jaxopt_adam.storage.words import Word, joined_scales, parted_scales, words

__all__ = [
    "NAMED",
    "NEAREST",
    "ROUNDINGS",
    "SQUARES",
    "Blocks",
    "Blockwise",
    "Code",
    "Dense",
    "Layout",
    "Quotient",
    "Root",
    "Storage",
    "StorageChoice",
    "StorageName",
    "Word",
    "as_stored",
    "block_length",
    "dithered",
    "is_dithered",
    "joined_scales",
    "mixed",
    "packed",
    "parted_scales",
    "phases",
    "salted",
    "storage_of",
    "undithered",
    "unpacked",
    "valid_storage",
    "words",
]
