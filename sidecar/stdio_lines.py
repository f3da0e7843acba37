"""Standard input and output as an MCP transport: one JSON-RPC message a line.

The SDK's own transport cancels what is under way when standard input ends, and breaks when standard output is closed.
A pipe that holds one request must get its answer, and an image outlives its host, so here the end of the input reaches
the SDK only once every request is answered, and output is dropped once the host has closed the pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import anyio
import structlog
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import ServerMessageMetadata, SessionMessage
from mcp_types import JSONRPCError, JSONRPCMessage, JSONRPCRequest, JSONRPCResponse

from sidecar.edge.jsonrpc import MAX_MESSAGE_BYTES, MalformedMessage, as_line, parse_message
from sidecar.observe.log_writer import write_all

_ENDLESS = "subscriptions/listen"  # answered when its client ends it, so nothing waits for that
_FIRST_FREE_DESCRIPTOR = 3

_log = structlog.stdlib.get_logger("sidecar.stdio")


@dataclass(frozen=True, slots=True)
class Wire:
    """Descriptors of the process's own on which the host is spoken to."""

    input: int
    output: int


@contextmanager
def claimed_wire() -> Iterator[Wire]:
    """Take over standard input and output: from now on reading the one finds its end, and printing goes to stderr."""
    wire = Wire(_duplicate(0, closed=sys.stdin is None), _duplicate(1, closed=sys.stdout is None))
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null if sys.stderr is None else 2, 1)
    os.close(null)
    yield wire  # not restored, since a thread may still read the one and write the other


def _duplicate(descriptor: int, *, closed: bool) -> int:
    if closed:  # by the parent: the number may belong to another file by now
        return os.open(os.devnull, os.O_RDWR)
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE_DESCRIPTOR)


class Host:
    """The MCP host at the other end. `read_stream` and `write_stream` are for the SDK's server.

    `left` is set once the host has closed our standard output: nothing can be told to it any more.
    """

    def __init__(self, wire: Wire) -> None:
        self.left = asyncio.Event()
        self.input_ended = asyncio.Event()
        self._lines = _Lines(wire.input)
        self._output = _Output(wire.output)
        self._unanswered = 0
        self._all_answered = asyncio.Event()
        self._all_answered.set()
        self._to_server: MemoryObjectSendStream[SessionMessage | Exception]
        self._from_server: MemoryObjectReceiveStream[SessionMessage]
        self.read_stream: ObjectReceiveStream[SessionMessage | Exception]
        self.write_stream: ObjectSendStream[SessionMessage]
        self._to_server, self.read_stream = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        self.write_stream, self._from_server = anyio.create_memory_object_stream[SessionMessage](0)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Host]:
        """Carry messages while inside."""
        tasks = [asyncio.create_task(self._receive()), asyncio.create_task(self._send())]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def unanswered(self) -> int:
        """Requests that have no written answer yet."""
        return self._unanswered

    async def all_answered(self) -> None:
        """Return once every request so far has been answered, or the host takes no answers."""
        await self._all_answered.wait()

    async def _receive(self) -> None:
        async with self._to_server:
            async for line in self._lines:
                try:
                    message = parse_message(line)
                except MalformedMessage as error:
                    await self._write(error.answer)
                else:
                    await self._to_server.send(SessionMessage(message, self._expected(message)))
            self.input_ended.set()
            await asyncio.Event().wait()  # at the end of its input the SDK's server cancels what is under way

    def _expected(self, message: JSONRPCMessage) -> ServerMessageMetadata | None:
        """Count a request until it is answered, or settled without an answer because its client has cancelled it."""
        if not isinstance(message, JSONRPCRequest) or message.method == _ENDLESS:
            return None
        self._unanswered += 1
        self._all_answered.clear()
        return ServerMessageMetadata(on_request_unanswered=self._settled)

    async def _send(self) -> None:
        async with self._from_server:
            async for sent in self._from_server:
                await self._write(sent.message)
                if isinstance(sent.message, (JSONRPCResponse, JSONRPCError)):
                    await self._settled()

    async def _settled(self) -> None:
        self._unanswered = max(0, self._unanswered - 1)
        if self._unanswered == 0:
            self._all_answered.set()

    async def _write(self, message: JSONRPCMessage) -> None:
        if self.left.is_set():
            return
        try:
            await self._output.write(as_line(message) + b"\n")
        except OSError as error:
            _log.warning("the host takes no more answers", error=type(error).__name__)
            self.left.set()
            self._all_answered.set()


class _Lines:
    """The lines of a descriptor, read by a daemon thread, since a read that blocks must not keep the process.

    Of a line that is too long for a message only its beginning is kept, which is still too long for one.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._lines: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=1)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        threading.Thread(target=self._read, daemon=True, name="standard input").start()
        while (line := await self._lines.get()) is not None:
            if line.strip():
                yield line

    def _read(self) -> None:
        with contextlib.suppress(RuntimeError, CancelledError):  # the loop is closed, or being closed
            with contextlib.suppress(OSError), os.fdopen(self._descriptor, "rb") as file:
                while line := file.readline(MAX_MESSAGE_BYTES + 1):
                    rest = line
                    while len(rest) > MAX_MESSAGE_BYTES and not rest.endswith(b"\n"):
                        rest = file.readline(MAX_MESSAGE_BYTES + 1)
                    self._put(line)
            self._put(None)

    def _put(self, line: bytes | None) -> None:
        asyncio.run_coroutine_threadsafe(self._lines.put(line), self._loop).result()


class _Output:
    """Writes to a descriptor on a daemon thread: a host that does not read stalls its own answers and nothing else."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[bytes, asyncio.Future[None]]] = SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="standard output").start()

    async def write(self, data: bytes) -> None:
        """Return once the host, or the pipe to it, has taken the data. Raises OSError."""
        written = self._loop.create_future()
        self._queue.put((data, written))
        await written

    def _run(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            while True:
                data, written = self._queue.get()
                error: OSError | None = None
                try:
                    write_all(self._descriptor, data)
                except OSError as failure:
                    error = failure
                self._loop.call_soon_threadsafe(_conclude, written, error)


def _conclude(written: asyncio.Future[None], error: OSError | None) -> None:
    if written.done():  # its writer was cancelled
        return
    if error is None:
        written.set_result(None)
    else:
        written.set_exception(error)
