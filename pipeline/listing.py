"""The files of a folder that people fill: faces, weights."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.params import UserError


def files(folder: Path) -> list[str]:
    """Paths of the folder's files relative to it, sorted, through links too; hidden ones are left alone.

    Raises UserError for a folder that can't be listed: its files would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: can't be listed ({error.strerror}); allow reading it, or move it away")

    names, entered = [], set()
    for place, folders, here in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in entered:  # a link to a folder that was read, its own parent even
            folders.clear()
            continue
        entered.add(real)
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        relative = Path(place).relative_to(folder)
        names += [(relative / name).as_posix() for name in here if not name.startswith(".")]
    return sorted(names)


def listing(folder: Path) -> bytes:
    """Where the folder really lies and size, time and path of each of its files: equal while nothing in it changes."""
    lines = [str(folder.resolve())]
    for name in files(folder):
        try:
            stat = (folder / name).stat()
        except OSError:  # a link that leads nowhere
            continue
        lines.append(f"{stat.st_size} {stat.st_mtime_ns} {name}")
    return os.fsencode("\n".join(lines) + "\n")
