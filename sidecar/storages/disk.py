"""Small steps on a file system that other pods change at the same time: what is not there is no error."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

LEFTOVER_SECONDS = 3600
"""Nobody deletes another writer's unfinished files before they are this old."""


def names(directory: Path) -> list[str]:
    """Sorted names, none for a directory that is not there."""
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208 - names, not paths, and a fraction of the time
    except (FileNotFoundError, NotADirectoryError):
        return []


def entries(directory: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def bytes_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def part_or_none(path: Path, start: int, length: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)
    except FileNotFoundError:
        return None


def size_or_none(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def unlink(path: Path) -> int | None:
    """Remove a file; its size, or None if it was not there."""
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return None
    return size


def unlink_older(path: Path, before: float) -> bool:
    try:
        if path.stat().st_mtime > before:
            return False
        path.unlink()
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def remove_if_old_and_empty(directory: Path, now: float) -> None:
    with contextlib.suppress(OSError):  # not empty, or another pod was first
        if directory.stat().st_mtime < now - LEFTOVER_SECONDS:
            directory.rmdir()


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
