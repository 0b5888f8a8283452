"""Where a run is stored: a folder on disk, or object storage. On both, a write is visible whole or not at all."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from grcf_ray.errors import ConfigError
from grcf_ray.storage.local import LocalPath
from grcf_ray.storage.path import StoragePath
from grcf_ray.storage.remote import RemotePath, first_line, open_remote, without_keys

__all__ = ["LocalPath", "RemotePath", "StoragePath", "storage_path", "without_keys"]


def storage_path(where: str | Path, *, check: bool = False) -> StoragePath:
    """Return the place of a path or URI. ConfigError if no storage serves the URI.

    check: contact the storage, for a place that the user named. If it does not answer within seconds, ConfigError is
    raised instead of OSError.

    For another S3 server than Amazon's, append `?endpoint_override=HOST:PORT&scheme=http` to the path, or set
    AWS_ENDPOINT_URL on every machine. Keys come from the environment or from ~/.aws.
    """
    scheme, colon, rest = str(where).partition("://")
    try:
        if not colon or isinstance(where, Path):
            place: StoragePath = LocalPath(Path(where).expanduser().absolute())
        elif scheme == "file":
            if not rest.startswith("/"):
                raise ConfigError(f"{where}: not an absolute path; use file:///FOLDER, or the folder alone")
            place = LocalPath(Path(unquote(rest)).absolute())
        else:
            place = open_remote(scheme, rest)
        if check:
            place.exists()
    except OSError as error:
        if not check:
            raise
        raise ConfigError(f"{where} cannot be reached ({first_line(error)})") from error
    return place
