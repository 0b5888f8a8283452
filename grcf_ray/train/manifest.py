"""The manifest of a saved model: `manifest.json`, with a SHA-256 of each of its files, written last.

Two files may change later and are not in it: README.md, the card, which its owner may edit; and provenance.json, which
grows with each read of the test split. No score and no figure is computed from either.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from grcf_ray import console
from grcf_ray.errors import DamagedError, DataError, faults_message
from grcf_ray.files import file_sha256, write_json
from grcf_ray.storage import LocalPath, StoragePath

MANIFEST = "manifest.json"
FORMAT = 1
FIRST_LISTED = 2
"""The first format of config.json that comes with a manifest."""
_MAY_CHANGE = ("README.md", "provenance.json")
_REMEDY = "take a whole copy, or delete the folder and run the search's command again"


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files of a folder, in place of the one that it may have."""
    files = {name: file_sha256(folder / name) for name in _names(folder)}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def extend_manifest(place: StoragePath, names: Sequence[str]) -> None:
    """Note further files of a saved model, `/` between folder and name; the others are not read again."""
    files = dict(_listed(place, str(place)))
    for name in names:
        with _file(place, name).reading() as path:
            files[name] = file_sha256(path)
    (place / MANIFEST).write_json({"format": FORMAT, "files": files})


def check_manifest(folder: Path, where: str) -> bool:
    """Compare a folder's files with its manifest; False where it has none.

    where: what messages call the folder. DamagedError names each file that is not the one that was written, each that
    the model is missing, and each that lies in its tokenizer without being listed: there a library reads files by
    name. What else is missing, such as predictions that were not passed on, or was added, such as a licence, is named
    on standard error.
    """
    try:
        files = _listed(LocalPath(folder), where)
    except FileNotFoundError:
        return False
    present = set(_names(folder))
    odd = dict.fromkeys(files.keys() - present, "missing")
    odd |= dict.fromkeys(present - files.keys(), f"not in {MANIFEST}")
    faults = {name: what for name, what in odd.items() if _is_needed(name)}
    for name, sha256 in files.items():
        if name in present and file_sha256(folder / name) != sha256:
            faults[name] = "not the file that was written"
    if faults:
        lines = [f"{name}: {what}" for name, what in sorted(faults.items())]
        raise DamagedError(faults_message(f"{where}: not the model that was written; {_REMEDY}:", lines))
    for name, what in sorted(odd.items()):
        console.progress(f"note: {where}: {name} is {what}")
    return True


def is_complete(place: StoragePath, others: Sequence[str]) -> bool:
    """Whether a folder has every file that its model is loaded from, and the `others`, and its manifest lists them.

    Their content is not read. Earlier versions wrote no manifest: of their models the tokenizer is looked for as a
    folder.
    """
    try:
        files = _listed(place, str(place))
        needed = [name for name in files if _is_needed(name)]
        listed = all(name in files or name in _MAY_CHANGE for name in others)
    except FileNotFoundError:
        needed = ["model.safetensors", "config.json", "tokenizer"]
        config = place / "config.json"
        listed = config.exists() and config.read_json()["format"] < FIRST_LISTED
    return listed and all(_file(place, name).exists() for name in (*needed, *others))


def _listed(place: StoragePath, where: str) -> dict[str, str]:
    """The SHA-256 of each file that a manifest lists. FileNotFoundError where there is none; DamagedError."""
    try:
        files: dict[str, str] = (place / MANIFEST).read_json()["files"]
        files.items()
    except FileNotFoundError:
        raise
    except (DataError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedError(f"{where}: {MANIFEST} cannot be read ({error}); {_REMEDY}") from error
    return files


def _file(place: StoragePath, name: str) -> StoragePath:
    for part in name.split("/"):
        place = place / part
    return place


def _is_needed(name: str) -> bool:
    """Whether a model is loaded from this file, or would be."""
    return name in ("model.safetensors", "config.json") or name.startswith("tokenizer/")


def _names(folder: Path) -> list[str]:
    """The files that a manifest lists, by their paths in the folder; hidden ones are left out."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in paths
        if path.as_posix() not in (MANIFEST, *_MAY_CHANGE) and not any(part.startswith(".") for part in path.parts)
    )
