"""A folder of TensorBoard event files, to which each value is added once.

A resumed search is another process with its own file. It reads the values in the folder, not the record: the previous
driver may have died between writing the two.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.writer import FileWriter

from grcf_ray.storage import StoragePath

_EVENTS = "events.out.tfevents."


class EventFolder:
    """Adds values to a folder of event files.

    Objects in object storage cannot grow: the file grows in a folder below `scratch` and is uploaded at each flush.
    Nothing is created before the first value.
    """

    def __init__(self, place: StoragePath, *, scratch: Path | None) -> None:
        self._place, self._scratch = place, scratch
        self._held = held_values(place)
        self._files = Path()
        self._writer: FileWriter | None = None
        self._changed = False

    def holds(self, tag: str, step: int) -> bool:
        """Return whether the folder has this tag at this step."""
        return (tag, step) in self._held

    def add(self, values: Iterable[Summary.Value], step: int) -> None:
        """Add the values whose tags the folder lacks at this step."""
        fresh = [value for value in values if not self.holds(value.tag, step)]
        if not fresh:
            return
        if self._writer is None:
            # The writer takes a path, so that links are checked here.
            self._place.make_private()
            self._files = self._place.local or Path(tempfile.mkdtemp(dir=self._scratch))
            self._writer = FileWriter(str(self._files))
        # An event with many values is written whole or not at all.
        self._writer.add_summary(Summary(value=fresh), step)
        self._held |= {(value.tag, step) for value in fresh}
        self._changed = True

    def flush(self) -> None:
        """Make the added values visible to readers."""
        if self._writer is None or not self._changed:
            return
        self._writer.flush()
        if self._place.local is None:
            for file in self._files.iterdir():
                with (self._place / file.name).writing() as path:
                    shutil.copyfile(file, path)
        self._changed = False

    def close(self) -> None:
        """Flush and close the file."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def held_values(place: StoragePath) -> set[tuple[str, int]]:
    """Return tag and step of each value in a folder's event files, truncated files included."""
    held: set[tuple[str, int]] = set()
    for name in place.names():
        if name.startswith(_EVENTS):
            with (place / name).reading() as path:
                # The loader fails on an empty file, which a driver that died at once may leave.
                if not path.stat().st_size:
                    continue
                for event in LegacyEventFileLoader(str(path)).Load():
                    held.update((value.tag, event.step) for value in event.summary.value)
    return held
