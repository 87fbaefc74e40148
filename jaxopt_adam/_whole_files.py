"""Files of a folder with their sizes and checksums, and the agreement of several processes about them."""

import concurrent.futures
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_CHUNK = 2**24
_TIMEOUT = 20 * 60  # seconds, as orbax waits for a save
_SEAL = ',\n "crc32": "'

Files = Mapping[str, Sequence[int]]
"""The size and the CRC-32 of each file, by its path in the folder."""


def files_of(folder: Any) -> list[str]:
    """The paths of all files in a folder, relative to it and sorted."""
    found: list[str] = []

    def look(inside: Any, prefix: str) -> None:
        for each in inside.iterdir():
            if each.is_dir():
                look(each, f"{prefix}{each.name}/")
            else:
                found.append(f"{prefix}{each.name}")

    look(folder, "")
    return sorted(found)


def checksums(folder: Any, names: Sequence[str]) -> dict[str, list[int]]:
    """The size and the CRC-32 of files; -1 and 0 for a file that is missing."""
    # Reading and zlib both release the interpreter's lock.
    with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
        return dict(zip(names, pool.map(lambda name: _checksum(folder / name), names), strict=True))


def _checksum(path: Any) -> list[int]:
    size, checksum = 0, 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                size += len(chunk)
                checksum = zlib.crc32(chunk, checksum)
    except FileNotFoundError:
        return [-1, 0]
    return [size, checksum]


def damage(folder: Any, files: Files) -> str:
    """The first file that is not as it was written, in words; empty if all are. It reads each file."""
    for name, wanted in files.items():
        try:
            size = (folder / name).stat().length
        except FileNotFoundError:
            return f"{name} is missing"
        if size != wanted[0]:
            return f"{name} has {size:,} bytes in place of {wanted[0]:,}"
    for name, found in checksums(folder, list(files)).items():
        if list(found) != list(files[name]):
            return f"{name} does not have the bytes that were written: its checksum differs"
    return ""


# -------------------------------------------------------------------------------------------------------- sealed JSON


def sealed(record: Mapping[str, Any]) -> str:
    """A record as JSON whose last entry is the checksum of all text before it."""
    text = json.dumps(record, indent=1, ensure_ascii=False).removesuffix("\n}")
    return f'{text}{_SEAL}{zlib.crc32(text.encode()):08x}"\n}}\n'


def unsealed(text: str) -> dict[str, Any]:
    """The record that :func:`sealed` wrote; ValueError if a byte of it is another."""
    body, found, tail = text.rpartition(_SEAL)
    if not found or tail != f'{zlib.crc32(body.encode()):08x}"\n}}\n':
        raise ValueError("it does not match its own checksum")
    return json.loads(f"{body}\n}}")


# ------------------------------------------------------------------------------------------------- several processes


def share(names: Sequence[str]) -> list[str]:
    """The files that this process reads, of those that all processes read together."""
    return list(names[jax.process_index() :: jax.process_count()])


def gathered(text: str) -> list[str]:
    """The text of each process, on every process. All call it together, from their main threads."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).reshape(-1)
    padded = np.zeros(max(1, int(lengths.max())), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1)
    return [row[:length].tobytes().decode() for row, length in zip(rows, lengths, strict=True)]


def exchanged(key: str, text: str) -> list[str]:
    """The text of each process, on process 0; only its own on the others. It may be called from any thread.

    Args:
        key: a name that is the same on all processes, and used once.
        text: the text of this process.
    """
    if jax.process_count() == 1:
        return [text]
    # JAX has no public name for the store of its coordination service, which needs no collective on devices: one would
    # run between those of the training step.
    from jax._src.distributed import global_state

    client: Any = global_state.client
    if jax.process_index():
        client.key_value_set(f"{key}/{jax.process_index()}", text)
        return [text]
    others = range(1, jax.process_count())
    texts = [text, *(client.blocking_key_value_get(f"{key}/{index}", _TIMEOUT * 1000) for index in others)]
    for index in others:
        client.key_value_delete(f"{key}/{index}")
    return texts
