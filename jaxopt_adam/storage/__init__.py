"""How a moment rests between steps: as it is, or in codes of 8 or 4 bits."""

from jaxopt_adam.storage.blockwise import Blocks, Blockwise
from jaxopt_adam.storage.choice import NAMED, Storage, StorageChoice, StorageName, storage_of, valid_storage
from jaxopt_adam.storage.codes import Code, Quotient, Root, root_of
from jaxopt_adam.storage.dense import Dense
from jaxopt_adam.storage.layout import Layout, block_length
from jaxopt_adam.storage.rounding import ROUNDINGS, mixed, phases, salted
from jaxopt_adam.storage.words import Word, joined_scales, parted_scales, words

__all__ = [
    "NAMED",
    "ROUNDINGS",
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
    "block_length",
    "joined_scales",
    "mixed",
    "parted_scales",
    "phases",
    "root_of",
    "salted",
    "storage_of",
    "valid_storage",
    "words",
]
