"""Which files of a folder are images of which class and split: the layout rules, without opening an image.

`DIR/{train,val,test}/CLASS/*`, or `DIR/CLASS/*` with a fixed stratified split. Names that begin with a dot are ignored.
"""

import os
import stat
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress import randomness
from compress.data_source import short_digest, stratified
from compress.errors import InputRejected
from compress.images import shown, unreadable

SPLITS = ("train", "val", "test")
_REPORT_FRACTION = 0.2
_LAYOUTS = "the layout is DIR/train/CLASS/*.jpg with val/ or test/ beside it, or DIR/CLASS/*.jpg"


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a class. `stamp` is (size, mtime, ctime) in bytes and ns; `problem` says why it cannot be an image."""

    path: str
    label: int
    stamp: tuple[int, int, int] = (0, 0, 0)
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of each use (`train`, `report`, perhaps `select`), sorted by class and name, and the class names."""

    class_names: tuple[str, ...]
    files: dict[str, tuple[File, ...]]
    digest: str


def read(root: Path, lacks: tuple[str, ...] = ()) -> Listing:
    """List `root`. Of the classes, `train` may lack those named in `lacks`.

    Raises InputRejected for a missing or empty folder and for splits whose classes differ otherwise.
    """
    folders = _visible_folders(root)
    if not folders:
        raise InputRejected(f"the data folder {shown(root)} has no class folders", code="E-DATA-LAYOUT", hint=_LAYOUTS)
    splits = _splits(root, folders)
    classes = {name: _classes(folder) for name, folder in splits.items()}
    class_names = _common_classes(root, classes, lacks)
    found = {name: _files(folders, class_names) for name, folders in classes.items()}
    files = _by_use(root, found, class_names)
    key = [(use, f.path, f.stamp, f.problem) for use, rows in sorted(files.items()) for f in rows]
    return Listing(class_names=class_names, files=files, digest=short_digest(str(root.resolve()), key))


def below(root: Path) -> list[File]:
    """Every file below `root`, whatever the folders, sorted by path; the label is −1.

    Raises InputRejected for a missing folder and for one without files.
    """
    files = list(_below(root))
    if not files:
        raise InputRejected(
            f"the folder {shown(root)} holds no images", code="E-DATA-EMPTY", hint="name a folder of images"
        )
    return files


def _below(folder: Path | str) -> Iterator[File]:
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _below(entry.path)
        else:
            yield _file(entry, -1)


def _entries(folder: Path | str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise InputRejected(
            f"cannot read the data folder {shown(folder)}: {error.strerror}",
            code="E-DATA-FOLDER",
            hint="name an existing folder of images",
        ) from error


def _visible_folders(folder: Path | str) -> dict[str, str]:
    return {entry.name: entry.path for entry in _entries(folder) if entry.is_dir()}


def _splits(root: Path, folders: dict[str, str]) -> dict[str, str]:
    """Split name → folder; a folder of classes without splits is `{"": root}`."""
    named = {name: folders[name] for name in SPLITS if name in folders}
    # a class may be called `train`: it is a split only when it holds folders, or when there is nothing else
    if not named or (len(named) < len(folders) and not any(_visible_folders(p) for p in named.values())):
        return {"": str(root)}
    others = sorted(set(folders) - set(named))
    if others:
        raise InputRejected(
            f"{shown(root)} has the folder `{shown(others[0])}` beside the splits {', '.join(named)}",
            code="E-DATA-LAYOUT",
            hint="splits are called train, val and test; rename it, or put a dot before its name to have it ignored",
        )
    if "train" not in named:
        raise InputRejected(
            f"{shown(root)} has {', '.join(named)} but no folder `train`", code="E-DATA-LAYOUT", hint=_LAYOUTS
        )
    return named


def _classes(folder: str) -> dict[str, str]:
    """Class name (in Unicode's composed form, so that a copy made on another system matches) → folder."""
    found: dict[str, str] = {}
    for name, path in _visible_folders(folder).items():
        try:
            name.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputRejected(
                f"the name of the class folder {shown(path)} is not UTF-8",
                code="E-CLASS-NAME",
                hint="rename the folder",
            ) from error
        composed = unicodedata.normalize("NFC", name)
        if composed in found:
            raise InputRejected(
                f"two class folders in {shown(folder)} have the same name `{composed}` in different Unicode forms",
                code="E-CLASS-NAME",
                hint="merge them into one folder",
            )
        found[composed] = path
    return found


def _common_classes(root: Path, classes: dict[str, dict[str, str]], lacks: tuple[str, ...]) -> tuple[str, ...]:
    train, *others = classes.values()
    known_by_others = set[str]().union(*others)
    expected = sorted({*train, *(name for name in lacks if name in known_by_others)})
    for split, found in classes.items():
        allowed = lacks if found is train else ()
        lacking = [name for name in expected if name not in found and name not in allowed]
        added = sorted(set(found) - set(expected))
        if lacking or added:
            parts = [f"lacks {_names(lacking)}"] * bool(lacking) + [f"adds {_names(added)}"] * bool(added)
            raise InputRejected(
                f"the split `{split}` of {shown(root)} {' and '.join(parts)}, compared with `train`",
                code="E-DATA-CLASSES",
                hint="every split needs the same class folders, in the same spelling; a class that students are not to "
                "see may be missing from train: --transfer-lacks CLASS, again for each",
            )
    if len(expected) < 2:
        found_text = f"only the class `{shown(expected[0])}`" if expected else "no class folders"
        raise InputRejected(
            f"{shown(root)} has {found_text}; at least two classes are needed", code="E-DATA-LAYOUT", hint=_LAYOUTS
        )
    return tuple(expected)


def _names(names: list[str]) -> str:
    listed = ", ".join(f"`{shown(name)}`" for name in names[:10])
    return f"the class{'es' * (len(names) > 1)} {listed}" + f" and {len(names) - 10} more" * (len(names) > 10)


def _files(folders: dict[str, str], class_names: tuple[str, ...]) -> list[File]:
    files: list[File] = []
    for label, name in enumerate(class_names):
        if name not in folders:
            continue  # allowed to be missing
        found = [_file(entry, label) for entry in _entries(folders[name])]
        if not found:
            raise InputRejected(
                f"the class folder {shown(folders[name])} has no images",
                code="E-DATA-EMPTY",
                hint="add images, or remove the folder",
            )
        files += found
    return files


def _file(entry: os.DirEntry, label: int) -> File:
    try:
        status = entry.stat()
    except OSError as error:
        return File(path=entry.path, label=label, problem=unreadable(Path(entry.path), error))
    problem = ""
    if stat.S_ISDIR(status.st_mode):
        problem = "is a folder; images must lie directly in their class folder"
    elif not stat.S_ISREG(status.st_mode):
        problem = "not a regular file"
    stamp = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return File(path=entry.path, label=label, stamp=stamp, problem=problem)


def _by_use(root: Path, found: dict[str, list[File]], class_names: tuple[str, ...]) -> dict[str, tuple[File, ...]]:
    """`test` is for reports and `val` for choices; without a test `val` is for reports; alone, train is split."""
    train = next(iter(found.values()))
    if len(found) > 1:
        uses = {"train": found["train"], "report": found["test" if "test" in found else "val"]}
        if len(found) == len(SPLITS):
            uses["select"] = found["val"]
        return {use: tuple(files) for use, files in uses.items()}
    labels = np.array([f.label for f in train])
    single = np.flatnonzero(np.bincount(labels) < 2)
    if len(single):
        raise InputRejected(
            f"the class `{shown(class_names[single[0]])}` in {shown(root)} has one image; a split needs at least two",
            code="E-DATA-EMPTY",
            hint="add images, or make the folders train and test yourself",
        )
    kept, taken = stratified(labels, _REPORT_FRACTION, randomness.derive("report"))
    return {"train": tuple(train[i] for i in kept), "report": tuple(train[i] for i in taken)}
