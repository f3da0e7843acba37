"""Files below one directory, reached by keys such as `images/06f2k/ID.png` and never through a symlink.

Other pods may write to the same volume. So every directory on the way is opened from its parent (`dir_fd`) with
O_NOFOLLOW, files are opened with O_NOFOLLOW and O_NONBLOCK, only regular files are read, and no more of them than the
caller allows: a planted symlink, FIFO, socket or device costs an error and no thread (issue 13). The root itself is
named by a setting and may be a symlink. It is opened for each operation, so a volume that was unmounted or replaced is
noticed at once, and none is kept busy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.storages import keys

LEFTOVER_SECONDS = 3600
"""Another writer's unfinished files are not deleted before they are this old."""
_SEARCH = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_CLOEXEC
"""For directories on the way. O_PATH, where there is one, asks nothing of the file system but the name."""
_LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CREATE = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class DamagedFile(ValueError):
    """Something is in the place of a file of the store that cannot be that file."""


class Tree:
    """Blocks; raises OSError. Keys are relative to `root`; the empty key is the root itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._root = os.fspath(root)

    # --- files --------------------------------------------------------------------------------------------------------

    def open(self, key: str, inner: str | None = None) -> int:
        """A descriptor to read a regular file. With `inner`, `key` may also be a directory that holds it as that.

        Raises DamagedFile for anything else, FileNotFoundError where there is nothing.
        """
        with self._parent(key) as (parent, name):
            descriptor = _opened(name, parent)
        try:
            kind = os.fstat(descriptor).st_mode
            if inner is not None and stat.S_ISDIR(kind):
                directory, descriptor = descriptor, -1
                try:
                    descriptor = _opened(inner, directory)
                finally:
                    os.close(directory)
                kind = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(kind):
                raise DamagedFile("not a regular file")
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
            raise
        return descriptor

    def read(self, key: str, limit: int, inner: str | None = None) -> bytes | None:
        """A whole small file, None where there is none. Raises DamagedFile, also for more than `limit` bytes."""
        try:
            descriptor = self.open(key, inner)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise DamagedFile(f"larger than {limit:,} bytes")
        return data

    def part(self, key: str, start: int, length: int) -> bytes | None:
        """Part of a file, None where there is none. Raises DamagedFile."""
        try:
            descriptor = self.open(key)
        except FileNotFoundError:
            return None
        try:
            return os.pread(descriptor, length, start)
        finally:
            os.close(descriptor)

    def create(self, key: str) -> int:
        """A descriptor to write a file that was not there. Raises FileExistsError."""
        with self._parent(key) as (parent, name):
            return os.open(name, os.O_WRONLY | _CREATE, 0o666, dir_fd=parent)

    def touch(self, key: str) -> None:
        """An empty file, unless something is there."""
        with self._parent(key) as (parent, name), contextlib.suppress(FileExistsError):
            os.close(os.open(name, os.O_WRONLY | _CREATE, 0o666, dir_fd=parent))

    def status(self, key: str) -> os.stat_result | None:
        """Of the entry itself, which may be a symlink; None where there is none. Raises NotADirectoryError."""
        try:
            with self._parent(key) as (parent, name):
                return os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def is_older(self, key: str, before: float) -> bool:
        """Whether an entry is there and was last changed before that time (seconds since 1970)."""
        status = self.status(key)
        return status is not None and status.st_mtime <= before

    def sync_file(self, key: str) -> None:
        """Make a file's bytes durable. Raises FileNotFoundError, DamagedFile."""
        descriptor = self.open(key)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def unlink(self, key: str) -> int | None:
        """Remove a file, or the symlink in its place; its size, or None if it was not there."""
        try:
            with self._parent(key) as (parent, name):
                size = os.stat(name, dir_fd=parent, follow_symlinks=False).st_size
                os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return None
        return size

    def rename(self, source: str, target: str) -> None:
        with self._parent(source) as (here, old), self._parent(target) as (there, new):
            os.rename(old, new, src_dir_fd=here, dst_dir_fd=there)

    def link(self, source: str, target: str) -> None:
        with self._parent(source) as (here, old), self._parent(target) as (there, new):
            os.link(old, new, src_dir_fd=here, dst_dir_fd=there, follow_symlinks=False)

    # --- directories --------------------------------------------------------------------------------------------------

    def names(self, key: str) -> list[str]:
        """Sorted names, none for a directory that is not there, or that is something else.

        Raises NotADirectoryError in the second case for those that every store has: theirs is no empty store.
        """
        try:
            with self._directory(key) as descriptor:
                return sorted(os.listdir(descriptor))  # noqa: PTH208 - names, not paths, and a fraction of the time
        except FileNotFoundError:
            return []
        except NotADirectoryError:
            if key in keys.TREES:
                raise
            return []

    def sizes(self, key: str, inner: str | None = None) -> Iterator[tuple[str, int]]:
        """Names and sizes of a directory's regular files, none for a directory that is not there.

        With `inner`, an entry that is itself a directory stands for the file of that name in it.
        """
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError),
            self._directory(key) as descriptor,
            os.scandir(descriptor) as entries,
        ):
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        yield entry.name, entry.stat(follow_symlinks=False).st_size
                    elif inner is not None and entry.is_dir(follow_symlinks=False):
                        within = os.stat(f"{entry.name}/{inner}", dir_fd=descriptor, follow_symlinks=False)
                        yield entry.name, within.st_size

    def make_directory(self, key: str) -> bool:
        """Whether it was not there. Raises NotADirectoryError where something else is in its place."""
        with self._parent(key) as (parent, name):
            try:
                os.mkdir(name, dir_fd=parent)
            except FileExistsError:
                if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), key) from None
                return False
        return True

    def remove_directory(self, key: str) -> None:
        """Raises OSError where it is not empty."""
        with self._parent(key) as (parent, name), contextlib.suppress(FileNotFoundError):
            os.rmdir(name, dir_fd=parent)

    def remove_if_old_and_empty(self, key: str, before: float) -> None:
        with contextlib.suppress(OSError):  # not empty, or another pod was first
            if self.is_older(key, before):
                self.remove_directory(key)

    def sync(self, key: str) -> None:
        """Make a directory's entries durable, where the file system has a way to (SMB has none)."""
        with self._directory(key) as descriptor:
            try:
                os.fsync(descriptor)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise

    # --- the way there ------------------------------------------------------------------------------------------------

    @contextmanager
    def _directory(self, key: str) -> Iterator[int]:
        """A directory, open for listing."""
        with self._parent(key) as (parent, name):
            descriptor = _opened_directory(name, parent, _LIST)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def _parent(self, key: str) -> Iterator[tuple[int, str]]:
        """The directory that an entry is in, open for looking up, and the entry's name."""
        *directories, name = key.split("/")
        descriptor = os.open(self._root, _SEARCH)
        try:
            for directory in directories:
                inner = _opened_directory(directory, descriptor, _SEARCH)
                os.close(descriptor)
                descriptor = inner
            yield descriptor, _checked(name) if key else "."
        finally:
            os.close(descriptor)


def _opened(name: str, parent: int) -> int:
    """A descriptor of the entry; never blocks. Raises DamagedFile for a symlink or a socket."""
    try:
        return os.open(name, _READ, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.ENODEV):
            raise DamagedFile("not a regular file") from None
        raise


def _opened_directory(name: str, parent: int, flags: int) -> int:
    """Raises NotADirectoryError for a symlink, as for everything else that is no directory."""
    try:
        return os.open(_checked(name) if name != "." else name, flags | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name) from None
        raise


def _checked(name: str) -> str:
    if name in ("", ".", ".."):
        raise ValueError("not a key of the store")
    return name
