"""Checkpoints of a training run, which can be resumed on any devices. This module needs the extra `checkpoint`.

The arrays are written by orbax, in its own format. The file `jaxopt_adam.json` beside them has the optimizer as
:func:`~jaxopt_adam.to_config` writes it, the shapes of the tree, and the size and checksum of each file. This file is
written last. A step without it is incomplete.
"""

import dataclasses
import json
import operator
import re
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

import jaxopt_adam
from jaxopt_adam._config import from_config, to_config
from jaxopt_adam._differences import array_text, config_differences, described, first_tree_difference
from jaxopt_adam._shown import shown
from jaxopt_adam._trees import Path, leaf_name
from jaxopt_adam._whole_files import checksums, damage, exchanged, files_of, gathered, sealed, share, unsealed

try:
    import orbax.checkpoint as ocp
    from etils import epath
except ImportError as error:
    raise ImportError("jaxopt_adam.checkpoint needs orbax: pip install 'jaxopt-adam[checkpoint]'") from error

_RECORD = "jaxopt_adam.json"
_FORMAT = 1
_TEMPORARY = ".orbax-checkpoint-tmp"

Numbers = Literal["script", "checkpoint"]


@dataclasses.dataclass(frozen=True)
class Resumed:
    """A step that :meth:`Checkpoints.restore` has read.

    Args:
        step: the step that was saved.
        tree: the tree, with its arrays on the devices that `like` gives for them.
        optimizer: the optimizer with which to continue.
        skipped: the newer steps that were not whole, each with the reason.
    """

    step: int
    tree: Any
    optimizer: Any
    skipped: Mapping[int, str]


class Checkpoints:
    """The checkpoints of one training run in a folder.

    If there are several processes, each of them creates this object and calls its methods with the same arguments. All
    of them must have access to the folder.

    Args:
        folder: a path, which may be of a kind that orbax knows, such as ``gs://``. It is made by the first save.
        optimizer: the optimizer of the run. It is written beside the arrays, and compared when they are read. With None
            only the tree is compared. An optimizer of optax's own needs None.
        keep: how many steps are kept, at least 1. Older ones are deleted once a newer one is complete.
        known: factories and functions by name, such as the function of a mask, as for
            :func:`~jaxopt_adam.to_config`.

    Attributes:
        optimizer: the optimizer whose numbers the next save writes. Set it if they change during the training.

    Raises:
        TypeError: if `keep` is not an integer, or :func:`~jaxopt_adam.to_config` cannot write the optimizer.
        ValueError: if `keep` is less than 1, or the folder holds anything other than checkpoints of this class.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from jaxopt_adam import adamw
        >>> from jaxopt_adam.checkpoint import Checkpoints
        >>> optimizer, params = adamw(1e-3), {"w": jnp.ones(3)}
        >>> tree = {"params": params, "state": optimizer.init(params)}
        >>> folder = tempfile.TemporaryDirectory()
        >>> with Checkpoints(folder.name, optimizer) as checkpoints:
        ...     checkpoints.save(10, tree)
        >>> with Checkpoints(folder.name, adamw(1e-4)) as checkpoints:
        ...     resumed = checkpoints.restore(tree, numbers="script")
        >>> print(resumed.step, resumed.optimizer)
        10 adamw(learning_rate=0.0001)
        >>> folder.cleanup()
    """

    def __init__(
        self, folder: Any, optimizer: Any, keep: int = 3, *, known: Mapping[str, Callable[..., Any]] | None = None
    ):
        self._keep = _index("Checkpoints: keep", keep)
        if self._keep < 1:
            raise ValueError(f"Checkpoints: keep must be at least 1, got {keep}")
        path = epath.Path(folder).expanduser()
        self._folder = path if "://" in str(path) else path.resolve()
        self.optimizer = optimizer
        self._known = known
        self._broken: set[int] = set()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._is_clean = False
        # Codes hardly compress, and to try holds up the training.
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(use_compression=False))
        self._newest = max(self._steps(), default=-1)
        self._config()  # which may raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -------------------------------------------------------------------------------------------------------- saving

    def save(self, step: int, tree: Any) -> None:
        """Write a tree in the background.

        If an earlier save is still running, this first waits for it. Once this has returned, the arrays may be donated
        to the next step of the training.

        Args:
            step: the number of the step, larger than that of each step in the folder.
            tree: any pytree of arrays, numbers and strings. It must be a container, not a single leaf, and not empty.

        Raises:
            TypeError: if a leaf is anything else (the error names its path), or `step` is not an integer.
            ValueError: if `step` is not larger than the newest one.
            Exception: the error of the previous save, if that failed.
        """
        self.wait()
        step = _index("save: step", step)
        if step < 0:
            raise ValueError(f"save: step must not be negative, got {step}")
        if step <= self._newest:
            raise ValueError(
                f"save: step must be larger than {self._newest}, the newest in {self._folder}, got {step}; restore it "
                "first, or give another folder"
            )
        record = {
            "format": _FORMAT,
            "layout": jaxopt_adam.__state_layout__,
            "step": step,
            "optimizer": self._config(),
            "tree": described(tree, _leaf_text),
        }
        nested = _nested(tree)
        if jax.process_index() == 0:
            self._clean()
        self._orbax.save(self._path(step), args=ocp.args.PyTreeSave(nested))
        self._newest = step
        self._thread = threading.Thread(target=self._finish, args=(step, record), name="jaxopt_adam: save")
        self._thread.start()

    def wait(self) -> None:
        """Wait for the save that is running, if there is one. If it failed, its error is raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Wait for the last save, and release the threads."""
        try:
            self.wait()
        finally:
            self._orbax.close()

    def _clean(self) -> None:
        """Make the folder, and delete what was not finished: what a process that was killed has left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._folder / _RECORD).exists():
            _write(self._folder / _RECORD, sealed({"format": _FORMAT}))
        for step in self._broken:
            _delete(self._path(step))
        self._broken.clear()
        if not self._is_clean:
            for each in self._folder.iterdir():
                if _TEMPORARY in each.name:
                    _delete(each)
        self._is_clean = True

    def _finish(self, step: int, record: dict[str, Any]) -> None:
        """Wait for orbax, and write the record. It runs in a thread of its own."""
        try:
            self._orbax.wait_until_finished()
            folder = self._path(step)
            # A process reads what it has written itself, which is in its own cache.
            own = [name for name in files_of(folder) if _writer(name) == jax.process_index()]
            key = f"jaxopt_adam/{self._folder}/{step}"
            texts = exchanged(key, json.dumps(checksums(folder, own)))
            if jax.process_index() == 0:
                files = {name: sums for text in texts for name, sums in json.loads(text).items()}
                _write(folder / _RECORD, sealed({**record, "files": dict(sorted(files.items()))}))
                self._delete_old()
        except BaseException as error:  # raised by `wait`
            self._error = error

    def _delete_old(self) -> None:
        steps = sorted(map(int, filter(_is_step, (each.name for each in self._folder.iterdir()))))
        whole = [step for step in steps if (self._path(step) / _RECORD).exists()]
        for step in steps:
            if step < whole[-self._keep :][0]:
                _delete(self._path(step))

    # ----------------------------------------------------------------------------------------------------- restoring

    def restore(self, like: Any, *, numbers: Numbers | None = None, step: int | None = None) -> Resumed | None:
        """Read the newest step that is complete, or a given one.

        A step is complete if each of its files has the recorded size and checksum. Newer steps that are incomplete are
        skipped and named in the result, and the next save deletes them. A save that was killed before it had written a
        step has only left temporary files, which are not named.

        Args:
            like: the form of the tree: a pytree of arrays, or of :class:`jax.ShapeDtypeStruct` with shardings, as
                :func:`~jaxopt_adam.abstract_state` makes them. For a number or a string, give any value of the same
                type. The devices need not be those that the tree was saved on.
            numbers: which numbers to use if the two optimizers differ only in numbers or schedules: "script" for those
                of this object's optimizer, "checkpoint" for the saved ones. With None any difference is an error.
            step: the step to go back to; None for the newest. If you continue from an earlier step, the next save
                deletes the steps after it.

        Returns:
            The step, or None if the folder has no checkpoint and no `step` was given.

        Raises:
            TypeError: if a leaf of `like` has no sharding; the error names its path. Also if `step` is not an integer.
            ValueError: if no step is complete, or `step` is not in the folder or is incomplete. Also if the step has a
                different optimizer, storage or tree, or if numbers differ and `numbers` is None; the error then names
                the first place that differs, and what the checkpoint and the script have there. Also if this object has
                an optimizer and the checkpoint has none, or if `numbers` is "checkpoint" and either of them has none.
        """
        if numbers not in (None, "script", "checkpoint"):
            raise ValueError(f"restore: numbers must be 'script', 'checkpoint' or None, got {numbers!r}")
        self.wait()
        places = described(like, _abstract_text)
        steps = sorted(self._steps(), reverse=True)
        wanted = steps
        if step is not None:
            wanted = [_index("restore: step", step)]
            if wanted[0] not in steps:
                held = ", ".join(map(str, reversed(steps))) or "none"
                raise ValueError(f"restore: step must be one of those in {self._folder}, {held}; got {step}")
        skipped: dict[int, str] = {}
        for each in wanted:
            record = self._whole_record(each)
            if isinstance(record, str):
                skipped[each] = record
                continue
            optimizer = self._matching(each, record, places, numbers)
            tree = self._read(each, like)
            self.optimizer = optimizer
            self._broken, self._newest = {newer for newer in steps if newer > each}, each
            return Resumed(each, tree, optimizer, MappingProxyType(skipped))
        if skipped:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in skipped.items())
            which = "none of the steps" if step is None else f"step {step}"
            raise ValueError(f"restore: {which} in {self._folder} is {'' if step is None else 'not '}whole: {reasons}")
        return None

    def _steps(self) -> list[int]:
        """The steps in the folder, the same on all processes; ValueError if the folder holds something else."""
        names: list[str] = []
        if jax.process_index() == 0 and self._folder.exists():
            names = [each.name for each in self._folder.iterdir()] if self._folder.is_dir() else [""]
        names = json.loads(gathered(json.dumps(names))[0])
        others = [name for name in names if _TEMPORARY not in name and not name.startswith(".")]
        if others and _RECORD not in others:
            what = f"has {min(others)!r} and no {_RECORD}" if others != [""] else "is a file"
            raise ValueError(
                f"Checkpoints: folder must be empty, or one that Checkpoints has written; {self._folder} {what}"
            )
        return [int(name) for name in names if _is_step(name)]

    def _whole_record(self, step: int) -> dict[str, Any] | str:
        """The record of a step that is whole, or why it is not; the same on all processes."""
        folder = self._path(step)
        answer = ""
        if jax.process_index() == 0:
            try:
                answer = json.dumps(unsealed((folder / _RECORD).read_bytes().decode()))
            except FileNotFoundError:
                answer = f"{_RECORD} is missing, so the save was not finished"
            except ValueError as error:  # also of bytes that are no text
                answer = f"{_RECORD} is damaged: {error}"
        answer = gathered(answer)[0]
        if not answer.startswith("{"):
            return answer
        record = json.loads(answer)
        files = record["files"]
        reasons = gathered(damage(folder, {name: files[name] for name in share(list(files))}))
        return next(filter(None, reasons), record)

    def _matching(self, step: int, record: dict[str, Any], places: dict[str, str], numbers: Numbers | None) -> Any:
        """The optimizer with which to continue; ValueError if the record is not of this optimizer and this tree."""
        where = f"restore: step {step} in {self._folder}"
        if record["format"] != _FORMAT:
            raise ValueError(f"{where} has format {record['format']}, and this version reads {_FORMAT}")
        # Checkpoints from before 0.2.0 do not say their layout, which is 2.
        layout, known = record.get("layout", 2), jaxopt_adam.__state_layout__
        if layout != known:
            raise ValueError(
                f"{where} has a state of layout {layout}, and jaxopt_adam {jaxopt_adam.__version__} reads {known}; "
                "restore it with the version that has saved it"
            )
        config, own, saved = record["optimizer"], self._config(), self.optimizer
        differences = []
        if config is not None and own is not None:
            try:
                saved = from_config(config, self._known)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{where} has an optimizer that cannot be read: {error}") from None
            # Written again it has the arguments that are new in this version.
            differences = list(config_differences(to_config(saved, self._known), own, self._known or ()))
        elif numbers == "checkpoint":
            whose = "script" if own is None else "checkpoint"
            raise ValueError(f'{where}: numbers="checkpoint" needs the optimizers of both; the {whose} has none')
        elif own is not None:
            raise ValueError(
                f"{where} was saved without an optimizer, so there is none to compare; give Checkpoints None in place "
                "of the optimizer to compare the tree only"
            )
        other = next((each for each in differences if each.kind != "numbers"), None)
        tree = first_tree_difference(record["tree"], places)
        if other or tree:
            reasons = []
            if other:
                what = "storage" if other.kind == "storage" else "optimizer"
                reasons.append(
                    f"it is of another {what}: {other.place} is {other.one} in the checkpoint and {other.other} in the "
                    "script"
                )
            if tree:
                reasons.append(
                    f"its tree is another: {tree.place or 'the tree'} is {tree.one} in the checkpoint and {tree.other} "
                    "in `like`"
                )
            if other and other.kind == "storage":
                reasons.append("restore it with its own storage, and use jaxopt_adam.convert_state")
            raise ValueError(f"{where} does not fit: {'; '.join(reasons)}")
        if differences and numbers is None:
            first = differences[0]
            raise ValueError(
                f"{where} has other numbers: {first.place} is {first.one} in the checkpoint and {first.other} in the "
                'script; pass numbers="script" or numbers="checkpoint"'
            )
        return saved if differences and numbers == "checkpoint" else self.optimizer

    def _read(self, step: int, like: Any) -> Any:
        nested = _nested(jax.tree_util.tree_map_with_path(_target, like))
        restored = self._orbax.restore(
            self._path(step),
            args=ocp.args.PyTreeRestore(item=nested, restore_args=ocp.checkpoint_utils.construct_restore_args(nested)),
        )
        return jax.tree_util.tree_map_with_path(lambda path, leaf: _found(restored, path, leaf), like)

    def _config(self) -> dict[str, Any] | None:
        """The optimizer as a dictionary; None for none."""
        if self.optimizer is None:
            return None
        try:
            return to_config(self.optimizer, self._known)
        except TypeError as error:
            raise TypeError(
                f"Checkpoints: the optimizer cannot be written beside the arrays: {error}. Or give None in place of "
                "it: then only the tree is compared"
            ) from None

    def _path(self, step: int) -> Any:
        return self._folder / str(step)


def _index(name: str, value: Any) -> int:
    """A whole number; TypeError for anything else."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {shown(value)}") from None


# --------------------------------------------------------------------------------------------------------------- files


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _writer(name: str) -> int:
    """The process that has written a file of orbax's; 0 for those of no process in particular."""
    match = re.match(r"ocdbt\.process_(\d+)/", name)
    return int(match[1]) % jax.process_count() if match else 0


def _write(path: Any, text: str) -> None:
    """Write a small file at once, so that nobody sees a part of it."""
    other = path.with_name(f".{path.name}")
    other.write_bytes(text.encode())
    other.replace(path)


def _delete(path: Any) -> None:
    if path.is_dir():
        path.rmtree()
    elif path.exists():
        path.unlink()


# -------------------------------------------------------------------------------------------------------------- leaves

_PLAIN = (bool, int, float, str)


def _leaf_text(path: Path, leaf: Any) -> str:
    """A leaf that is saved, in words; TypeError if orbax does not write such."""
    if isinstance(leaf, (jax.Array, np.ndarray, np.generic)):
        return array_text(leaf)
    if type(leaf) in _PLAIN:
        return type(leaf).__name__
    raise TypeError(f"save: {leaf_name(path)} must be an array, a number or a string, got {type(leaf).__name__}")


def _abstract_text(path: Path, leaf: Any) -> str:
    """A leaf of `like`, in words; TypeError if it does not say where the array shall be."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        if leaf.sharding is None:
            raise TypeError(
                f"restore: {leaf_name(path)} must have a sharding, which says where the array shall be; give an array "
                "in its place, such as what was saved or what init returns, or give the ShapeDtypeStruct a sharding "
                "(jaxopt_adam.abstract_state does so for a state)"
            )
        return array_text(leaf)
    return _leaf_text(path, leaf)


def _target(path: Path, leaf: Any) -> Any:
    """A leaf of `like` as orbax takes it."""
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
    return np.asarray(leaf) if isinstance(leaf, np.generic) else leaf


def _nested(tree: Any) -> dict[str, Any]:
    """The leaves in dictionaries within dictionaries, which orbax writes under their names; empty arrays are left out.

    ValueError if two leaves would have one name.
    """
    nested: dict[str, Any] = {}
    paths: dict[str, Path] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not path:
            raise ValueError("the tree must be a container of arrays, such as a dict, got a single leaf")
        keys = _keys(path)
        name = ".".join(keys)
        if name in paths:
            raise ValueError(f"{leaf_name(paths[name])} and {leaf_name(path)} would both be written as {name!r}")
        paths[name] = path
        if np.size(leaf) == 0 and not isinstance(leaf, str):
            continue
        inside = nested
        for key in keys[:-1]:
            inside = inside.setdefault(key, {})
        inside[keys[-1]] = np.asarray(leaf) if isinstance(leaf, np.generic) else leaf
    if not nested:
        raise ValueError("the tree must have at least one array that is not empty")
    return nested


def _keys(path: Path) -> list[str]:
    return [jax.tree_util.keystr((key,), simple=True) for key in path]


def _found(nested: Any, path: Path, like: Any) -> Any:
    """The leaf at a path of what :func:`_nested` wrote."""
    if np.size(like) == 0 and not isinstance(like, str):
        return (
            np.asarray(like)
            if isinstance(like, np.ndarray)
            else jnp.zeros(like.shape, like.dtype, device=like.sharding)
        )
    for key in _keys(path):
        nested = nested[key]
    return type(like)(nested) if isinstance(like, np.generic) else nested
