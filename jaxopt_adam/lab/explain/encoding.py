"""The encoding of arrays in the page: small, and decoded by a few lines of page.js."""

import base64
import gzip
from typing import Any

import numpy as np

BITS = 17
LARGE = 50_000


def planes(values: np.ndarray) -> bytes:
    """float32 numbers as four planes of bytes, first the first byte of each. Similar neighbours compress well."""
    return np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8).reshape(-1, 4).T.tobytes()


def waves(values: np.ndarray, bits: int = BITS) -> tuple[bytes, bytes]:
    """Rows of numbers as whole multiples of a power of two, rounded.

    The encoding stores the second difference along the row, with its sign in the lowest bit. It is small where the row
    is smooth.

    Args:
        values: of shape (…, n).
        bits: the precision. The power of two is at most 2⁻ᵇⁱᵗˢ of the row's range, and more than half of that.

    Returns:
        The differences as unsigned 32-bit integers, their bytes ordered as in :func:`planes`; and a pair of float64 for
        each row: the number that was subtracted from it, and the power of two.
    """
    rows = np.asarray(values, float).reshape(-1, values.shape[-1])
    first = rows[:, :1]
    reach = np.ptp(rows, axis=1, keepdims=True)
    unit = np.exp2(np.floor(np.log2(np.where(reach > 0, reach, 1))) - bits)
    if bits < BITS:
        first = np.rint(first / unit) * unit  # fewer digits, which compress
    whole = np.rint((rows - first) / unit).astype(np.int64)
    second = np.diff(np.diff(whole, axis=1, prepend=0), axis=1, prepend=0)
    folded = ((second << 1) ^ (second >> 63)).astype("<u4")
    return folded.reshape(-1).view(np.uint8).reshape(-1, 4).T.tobytes(), np.hstack([first, unit]).astype(
        "<f8"
    ).tobytes()


def text(content: bytes) -> str:
    """The content compressed, in base64."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def packed(fields: Any) -> tuple[list[dict[str, Any]], bytes]:
    """Fields one after the other, and a list with the place and the shape of each."""
    table, content = [], b""
    for name, field in fields.items():
        entry: dict[str, Any] = {"name": name, "axes": list(field.axes)}
        if isinstance(field.values, list):
            entry["texts"] = field.values
        else:
            values = np.asarray(field.values, float)
            entry |= {"shape": list(values.shape), "at": len(content)}
            # Heights are drawn on logarithmic axes, which show the relative error of small numbers.
            if field.bits or (values.size > LARGE and not name.endswith("value")):
                numbers, frames = waves(values, field.bits or BITS)
                entry |= {"log": True} if field.log else {}
                entry |= {"kind": "waves", "frames": len(numbers)}
                content += numbers + frames
            else:
                content += planes(values)
        table.append(entry)
    return table, content
