"""Files of which exactly one is ever made, however many processes try at once.

Where the file system has hard links, by `link` of a finished file. SMB, Azure Files and FAT have none. There a
directory is made exclusively in the file's place, with the finished file inside: the rename of a directory that is not
empty succeeds where nothing is and, like mkdir, fails where something is. Unlike a bare mkdir it leaves no moment in
which the name is taken and the file is not there, so a process may die at any point (issue 13).

Each form keeps the other out, and readers take both, so it does not matter which of the pods on a volume made a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from sidecar.storages.directory import WITHOUT_LINKS, Directory, parent_of

_INNER = "once"
"""The name of the file in its directory."""


class OnceFiles:
    """Those of one directory. Blocks; raises OSError."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._tree = directory.tree

    def create(self, key: str, data: bytes) -> bool:
        """Write a small file unless it is there; whether it was us. It is whole or absent, also after a power cut."""
        created = self._create_by_link(key, data) if self._directory.has_links else None
        if created is None:
            created = self._create_by_directory(key, data)
        if created:
            self._tree.sync(parent_of(key))
        return created

    def _create_by_link(self, key: str, data: bytes) -> bool | None:
        """None where the file system has no links. The count of links decides: NFS may lose the answer to a link."""
        part = self._directory.part(data)
        try:
            self._directory.in_directory(key, lambda: self._tree.link(part, key))
        except OSError as error:
            status = self._tree.status(part)
            if status is not None and status.st_nlink == 2:
                return True
            if isinstance(error, FileExistsError):
                return False
            if error.errno in WITHOUT_LINKS:
                return None
            raise
        finally:
            self._tree.unlink(part)
        return True

    def _create_by_directory(self, key: str, data: bytes) -> bool:
        private = self._directory.private_key()
        self._tree.make_directory(private)
        try:
            self._directory.write_through(f"{private}/{_INNER}", data)
            self._tree.sync(private)
            self._directory.in_directory(key, lambda: self._move_in(private, key))
        except OSError as error:
            self.remove(private)
            if isinstance(error, FileExistsError):
                return False
            raise
        return True

    def _move_in(self, private: str, key: str) -> None:
        """Raises FileExistsError where another one is in the place; file systems say it in many ways."""
        try:
            self._tree.rename(private, key)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY) or self.exists(key):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from error
            raise

    def read(self, key: str, limit: int) -> bytes | None:
        """None where there is none. Raises DamagedFile, also for more than `limit` bytes."""
        return self._tree.read(key, limit, _INNER)

    def sizes(self, directory: str) -> Iterator[tuple[str, int]]:
        """Names and sizes of the files in a directory, whichever form they have."""
        return self._tree.sizes(directory, _INNER)

    def exists(self, key: str) -> bool:
        return self._tree.status(f"{key}/{_INNER}" if self._is_directory(key) else key) is not None

    def replace(self, key: str, data: bytes) -> None:
        """Write it anew, or for the first time."""
        try:
            self._directory.write(key, data)
        except IsADirectoryError:
            self._directory.write(f"{key}/{_INNER}", data)

    def remove(self, key: str) -> bool:
        """Whether it was there; also what else may be in its place, but for a directory that is not empty."""
        try:
            return self._tree.unlink(key) is not None
        except (IsADirectoryError, PermissionError):  # as macOS says it
            status = self._tree.status(key)
            if status is None:  # another process has removed it meanwhile
                return False
            if not stat.S_ISDIR(status.st_mode):
                raise
        removed = self._tree.unlink(f"{key}/{_INNER}") is not None
        with contextlib.suppress(OSError):  # another process has just made it anew
            self._tree.remove_directory(key)
        return removed

    def remove_older(self, key: str, before: float) -> bool:
        """Remove it if it was last changed before that time (seconds since 1970); whether it was removed."""
        return self._tree.is_older(key, before) and self.remove(key)

    def take_away(self, key: str) -> str | None:
        """Move it to where no other process looks: its new key, None where it was gone."""
        private = self._directory.private_key()
        try:
            self._tree.rename(key, private)
        except FileNotFoundError:
            return None
        return private

    def put_back(self, private: str, key: str) -> None:
        """Undo `take_away`, unless another one was made meanwhile."""
        with contextlib.suppress(FileExistsError):
            if self._is_directory(private):
                self._move_in(private, key)
            else:
                self._tree.link(private, key)
        self.remove(private)

    def _is_directory(self, key: str) -> bool:
        status = self._tree.status(key)
        return status is not None and stat.S_ISDIR(status.st_mode)
