"""The manifest of a saved model: `manifest.json`, with a SHA-256 of each of its files, written last.

Two files can change later and are not listed: README.md, the model card, which its owner can edit; and provenance.json,
which grows with each read of the test split. No score or metric depends on them.
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
"""First format of config.json that has a manifest."""
_MAY_CHANGE = ("README.md", "provenance.json")
_REMEDY = "copy the whole folder again, or delete it and run the search command again"


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files of a folder, replacing an existing one."""
    files = {name: file_sha256(folder / name) for name in _names(folder)}
    write_json(folder / MANIFEST, {"format": FORMAT, "files": files})


def extend_manifest(place: StoragePath, names: Sequence[str]) -> None:
    """Add files of a saved model to its manifest, named by their path in the folder. The others are not read again."""
    files = dict(_listed(place, str(place)))
    for name in names:
        with place.at(name).reading() as path:
            files[name] = file_sha256(path)
    (place / MANIFEST).write_json({"format": FORMAT, "files": files})


def check_manifest(folder: Path, where: str) -> bool:
    """Compare a folder's files with its manifest; return False if it has none.

    DamagedError lists every changed file, every missing file that the model needs, and every unlisted file in the
    tokenizer folder, where libraries read files by name. Other missing or additional files, such as predictions or a
    licence, are reported on standard error.

    where: name of the folder in messages.
    """
    try:
        files = _listed(LocalPath(folder), where)
    except FileNotFoundError:
        return False
    present = set(_names(folder))
    differences = dict.fromkeys(files.keys() - present, "missing")
    differences |= dict.fromkeys(present - files.keys(), f"not in {MANIFEST}")
    faults = {name: difference for name, difference in differences.items() if _is_needed(name)}
    for name, sha256 in files.items():
        if name in present and file_sha256(folder / name) != sha256:
            faults[name] = f"its SHA-256 differs from {MANIFEST}"
    if faults:
        lines = [f"{name}: {fault}" for name, fault in sorted(faults.items())]
        raise DamagedError(faults_message(f"{where} is damaged; {_REMEDY}:", lines))
    for name, difference in sorted(differences.items()):
        console.progress(f"note: {where}: {name} is {difference}")
    return True


def is_complete(place: StoragePath, others: Sequence[str]) -> bool:
    """Return whether a folder has, and its manifest lists, every file of its model and the `others`.

    The content is not read. Earlier versions wrote no manifest; of their tokenizer only the folder is checked.
    """
    try:
        files = _listed(place, str(place))
        needed = [name for name in files if _is_needed(name)]
        listed = all(name in files or name in _MAY_CHANGE for name in others)
    except FileNotFoundError:
        needed = ["model.safetensors", "config.json", "tokenizer"]
        config = place / "config.json"
        listed = config.exists() and config.read_json()["format"] < FIRST_LISTED
    return listed and all(place.at(name).exists() for name in (*needed, *others))


def _listed(place: StoragePath, where: str) -> dict[str, str]:
    """Return the SHA-256 of each listed file. FileNotFoundError if there is no manifest; DamagedError."""
    try:
        files: dict[str, str] = (place / MANIFEST).read_json()["files"]
        files.items()
    except FileNotFoundError:
        raise
    except (DataError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedError(f"{where}: {MANIFEST} cannot be read ({error}); {_REMEDY}") from error
    return files


def _is_needed(name: str) -> bool:
    """Return whether loading a model reads this file."""
    return name in ("model.safetensors", "config.json") or name.startswith("tokenizer/")


def _names(folder: Path) -> list[str]:
    """Return the paths of all files for the manifest; hidden files are left out."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(
        path.as_posix()
        for path in paths
        if path.as_posix() not in (MANIFEST, *_MAY_CHANGE) and not any(part.startswith(".") for part in path.parts)
    )
