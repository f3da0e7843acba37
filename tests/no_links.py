"""A kernel that refuses hard links to some threads, as a file system without them does (SMB, Azure Files, FAT)."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import threading

from sidecar.storages.file import FileStorage

_LINKS = {"x86_64": (86, 265), "aarch64": (37,)}[platform.machine()]  # link, linkat
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_NO_NEW_PRIVILEGES, _SECCOMP, _FILTER = 38, 22, 2


def refuse_links() -> None:
    """To the calling thread, and to those it starts from now on."""
    program = [struct.pack("HBBI", _LOAD, 0, 0, 0)]
    program += [struct.pack("HBBI", _IF_EQUAL, 0, 1, number) + _returns(_REFUSE) for number in _LINKS]
    code = b"".join([*program, _returns(_ALLOW)])
    buffer = ctypes.create_string_buffer(code, len(code))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer)))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SECCOMP, _FILTER, filters, 0, 0)):
        if libc.prctl(*call) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def _returns(value: int) -> bytes:
    return struct.pack("HBBI", _RETURN, 0, 0, value)


def without_links(store: FileStorage) -> FileStorage:
    """A store that has not been opened yet, all its threads started where the kernel refuses hard links."""
    threads = store._directory.threads
    count = threads._max_workers
    all_there = threading.Barrier(count + 1)

    def start() -> None:
        refuse_links()
        for _ in range(count):
            threads.submit(all_there.wait)
        all_there.wait()

    starter = threading.Thread(target=start)
    starter.start()
    starter.join()
    return store
