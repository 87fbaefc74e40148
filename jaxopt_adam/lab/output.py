"""Output into a folder, in which no file is ever half-written."""

import contextlib
import errno
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxopt_adam.lab import interrupt


@contextlib.contextmanager
def new_folder(out: Path, names: Iterable[str] = ()) -> Iterator[Path]:
    """A temporary folder in `out` whose files move into `out` if the block succeeds, and are removed otherwise.

    Files of the same names are replaced. Other files in `out` are left alone.

    Args:
        out: the folder to write; it and its parents are made if they are missing.
        names: the files to write, as far as they are known. That there is no folder where one of them should go is
            certain before the block is entered.

    Raises:
        OSError: if `out` cannot be written; before the block is entered.
    """
    for folder in (out, *out.parents):
        if folder.is_symlink() and not folder.exists():
            raise FileNotFoundError(errno.ENOENT, "is a link to what does not exist", str(folder))
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, where a folder should go", str(out))
    _no_folders(out, names)
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _unfinished(out) as temporary:
            yield Path(temporary)
            interrupt.check()
            finished = sorted(Path(temporary).iterdir())
            _no_folders(out, [path.name for path in finished])
            for path in finished:
                path.replace(out / path.name)
    except BaseException:
        if missing:
            shutil.rmtree(missing[-1], ignore_errors=True)
        raise


def _unfinished(out: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix=".unfinished-", dir=out)
    except OSError as error:
        error.filename = str(out)  # the name that was given
        raise


def _no_folders(out: Path, names: Iterable[str]) -> None:
    for name in names:
        if (out / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder, where a file should go", str(out / name))


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON; NaN and infinity, which JSON lacks, become null."""
    path.write_text(json.dumps(_finite(content), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float):
        return content if abs(content) < float("inf") else None
    return content
