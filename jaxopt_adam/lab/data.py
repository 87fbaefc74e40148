"""Handwritten digits: scikit-learn's, a folder of IDX files, or the whole of MNIST."""

import dataclasses
import gzip
import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np


class DataError(Exception):
    """Data that cannot be read. The message names the data and the reason in one line."""


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images and labels in three parts.

    Args:
        name: the source of the images.
        train: the training data, a pair of images, float32 in [0, 1] of shape (n, pixels), and labels, int32.
        validation: the data to choose each rule's learning rate by.
        test: the data to measure accuracies on.
    """

    name: str
    train: tuple[np.ndarray, np.ndarray]
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]

    @property
    def sizes(self) -> dict[str, int]:
        """The number of images in each part."""
        return {part: len(getattr(self, part)[1]) for part in ("train", "validation", "test")}


def embedded() -> Digits:
    """The 1,797 digits of 8 × 8 pixels that come with scikit-learn, in a shuffled but fixed order."""
    from sklearn.datasets import load_digits  # slow to import, and not needed for other data

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int32)
    return _divided("scikit-learn's digits", (images[:-360], labels[:-360]), (images[-360:], labels[-360:]))


def from_folder(folder: Path) -> Digits:
    """Digits from IDX files, the format of MNIST, gzipped or not.

    With both of MNIST's pairs of files, ``train-…`` is for training and ``t10k-…`` for testing. With one pair alone,
    its first four fifths are for training and its last fifth is for testing.

    Args:
        folder: the folder, with ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``, or the same with ``t10k``,
            each perhaps ending in ``.gz``.

    Raises:
        DataError: if the folder, a file or its content is not as expected, or one file of a pair is missing.
    """
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise DataError(f"{folder} {problem}; expected a folder of IDX files")
    pairs = {name: pair for name in ("train", "t10k") if (pair := _pair(folder, name)) is not None}
    if not pairs:
        raise DataError(
            f"{folder} has no IDX files; expected train-images-idx3-ubyte[.gz] or t10k-images-idx3-ubyte[.gz]"
        )
    name = f"IDX files in {folder.name or folder}"
    if len(pairs) == 2:
        train, test = pairs["train"], pairs["t10k"]
        if train[0].shape[1] != test[0].shape[1]:
            raise DataError(
                f"{folder}: training images have {train[0].shape[1]} pixels, test images {test[0].shape[1]}"
            )
        return _divided(name, train, test)
    ((images, labels),) = pairs.values()
    cut = len(labels) * 4 // 5
    return _divided(name, (images[:cut], labels[:cut]), (images[cut:], labels[cut:]))


def from_openml() -> Digits:
    """The 70,000 images of MNIST, downloaded (and stored) by scikit-learn.

    Raises:
        DataError: if they are neither on disk nor available from the network.
    """
    from sklearn.datasets import fetch_openml

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about retries; the last failure is an error
            images, labels = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, parser="liac-arff")
    except OSError as error:  # urllib's errors are among them
        raise DataError(f"MNIST could not be downloaded from OpenML, is there a network? ({error})") from None
    images, labels = (images / 255).astype(np.float32), labels.astype(np.int32)
    return _divided("MNIST from OpenML", (images[:60_000], labels[:60_000]), (images[60_000:], labels[60_000:]))


def orders(examples: int, steps: int, batch_size: int | None, seed: int) -> np.ndarray:
    """The examples of each step of a training run, as indices of shape (steps, batch).

    Each example is used once before any is used again; an epoch drops the last examples if they fill no batch.

    Args:
        examples: the number of examples.
        steps: the number of steps.
        batch_size: examples in a step, at most all of them; None for all of them in their own order, which the shape
            (steps, 0) stands for.
        seed: the seed of the order.
    """
    if batch_size is None:
        return np.zeros((steps, 0), np.int32)
    batch_size = min(batch_size, examples)
    per_epoch = examples // batch_size
    generator = np.random.default_rng(seed)
    epochs = [generator.permutation(examples)[: per_epoch * batch_size] for _ in range(-(-steps // per_epoch))]
    return np.concatenate(epochs).reshape(-1, batch_size)[:steps].astype(np.int32)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array in an IDX file of unsigned bytes, gzipped if its name ends in ``.gz``.

    Args:
        path: the file.
        dimensions: how many the array should have.

    Raises:
        DataError: if it cannot be read, is no IDX file, or is longer or shorter than its header says.
    """
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    header = 4 + 4 * dimensions
    expected = bytes([0, 0, 8, dimensions])
    if not expected.startswith(content[:4]):
        raise DataError(
            f"{path} starts with {content[:4].hex()}; expected {expected.hex()}, an IDX file of unsigned bytes with "
            f"{dimensions} dimension{'s' * (dimensions > 1)}"
        )
    if len(content) < header:
        raise DataError(f"{path} ends after {len(content)} bytes; its header takes {header}")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    body = content[header:]
    if len(body) != math.prod(shape):
        raise DataError(f"{path} should hold {math.prod(shape):,} bytes of shape {shape}, but holds {len(body):,}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _pair(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """The images and the labels of one of MNIST's two parts; None if both are missing."""
    files = {}
    for what, dimensions in (("images", 3), ("labels", 1)):
        stems = [f"{name}-{what}{dot}idx{dimensions}-ubyte" for dot in "-."]
        found = [path for stem in stems for end in ("", ".gz") if (path := folder / (stem + end)).is_file()]
        files[what] = found[0] if found else None
    if not files["images"] and not files["labels"]:
        return None
    for what, other, dimensions in (("images", "labels", 3), ("labels", "images", 1)):
        if not files[what]:
            raise DataError(f"{folder} has {files[other].name} but no {name}-{what}-idx{dimensions}-ubyte[.gz]")
    images, labels = read_idx(files["images"], 3), read_idx(files["labels"], 1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {name}-images has {len(images):,} images and {name}-labels {len(labels):,} labels")
    if len(labels) < 20:
        raise DataError(f"{files['images']} has {len(labels)} images; at least 20 are needed")
    if not images.size:
        raise DataError(f"{files['images']} has images of {images.shape[1]} × {images.shape[2]} pixels")
    if labels.max() > 9:
        raise DataError(f"{files['labels']} has a label {labels.max()}; expected 0 to 9")
    return images.reshape(len(images), -1).astype(np.float32) / 255, labels.astype(np.int32)


def _divided(name: str, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> Digits:
    """The last eighth of the training data, and at most 5,000 images, becomes the validation data."""
    images, labels = train
    cut = len(labels) - min(len(labels) // 8, 5_000)
    return Digits(name, (images[:cut], labels[:cut]), (images[cut:], labels[cut:]), test)
