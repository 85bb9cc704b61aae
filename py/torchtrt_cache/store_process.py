"""Uses an object store through a helper process.

    python -m torchtrt_cache.store_process URL

is that process. Its standard input is a socket for requests and replies, which are packets of JSON.
It ends when the other end is closed. A body is sent beside a packet, as the descriptor of a file.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from torchtrt_cache.objects import ObjectContents, ObjectGeneration, ObjectStoreError

if TYPE_CHECKING:
    from torchtrt_cache.object_store import ObjectStore
    from torchtrt_cache.runtime_cache_file import Draft

# The helper finds modules where this process does. "-m" would search the current directory first.
_PROGRAM = (
    "import sys; url, *sys.path = sys.argv[1:]; "
    "from torchtrt_cache.store_process import serve; serve(url)"
)
_LONGEST_PACKET = 1 << 16  # bytes
_LONGEST_STDERR = 1 << 12  # bytes at its end that are searched for the last line
_LONGEST_EXIT = 1.0  # seconds from the end of the socket to the end of the process
_CHECK_INTERVAL = 5.0  # seconds

_WRITEBACK_STEP = 8 << 20  # bytes
_SYNC_FILE_RANGE_WRITE = 2  # starts writeback without waiting for it

Packet = dict[str, Any]


def check_library() -> None:
    """Raises ImportError if the library for object stores is missing."""
    # After an import, the library would hang in a forked child.
    if importlib.util.find_spec("obstore") is None:
        raise ImportError(
            "Runtime caches on object stores need obstore: "
            "pip install 'torch-tensorrt-rtx-runtime[fleet]'"
        )


class StoreProcess:
    """The objects under a URL, through a helper process that the first request starts.

    The helper can be killed at a deadline, and a fork of this process does not harm it. When this
    process ends for whatever reason, the helper completes an upload under way and ends too.

    Requests raise ObjectStoreError: with the store's reason, with the reason why the helper ended,
    or with "no answer within N ms" after the deadline (by time.monotonic()). In the last two cases
    the helper is dead, and the next request starts another one. A `replace` may have succeeded
    nevertheless.

    Thread safety: any thread may call any method. Requests wait for each other.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._turn = threading.Lock()  # held during a request
        self._helper: _Helper | None = None

    @property
    def url(self) -> str:
        return self._url

    def generation(
        self, name: str, *, deadline: float = math.inf
    ) -> ObjectGeneration | None:
        """Returns None if the object is missing."""
        value, _ = self._request({"call": "generation", "name": name}, deadline)
        return _generation(value)

    def read(
        self,
        name: str,
        *,
        on_first_byte: Callable[[], None] = lambda: None,
        deadline: float = math.inf,
        draft: Draft | None = None,
    ) -> ObjectContents | None:
        """Returns None if the object is missing.

        Args:
            on_first_byte: Called in this thread when the first byte has arrived. Not called for an
                empty object.
            draft: An empty file that receives the contents. By default they stay in memory.
        """
        request = {"call": "read", "name": name, "draft": draft and draft.path}
        value, body = self._request(request, deadline, on_first_byte=on_first_byte)
        generation = _generation(value)
        if generation is None:
            return None
        return ObjectContents(_mapped(draft.file) if draft else body, generation)

    def replace(
        self,
        name: str,
        data: memoryview,
        expected: ObjectGeneration | None,
        *,
        deadline: float = math.inf,
    ) -> ObjectGeneration | None:
        """Writes an object unless somebody else has written it. See ObjectStore.replace."""
        request = {"call": "replace", "name": name, "expected": expected}
        with _memory_file() as body:
            body.write(data)
            value, _ = self._request(request, deadline, body)
        return _generation(value)

    def names(self, *, deadline: float = math.inf) -> list[str]:
        """Returns the names of the objects directly under the URL."""
        _, body = self._request({"call": "names"}, deadline)
        names: list[str] = json.loads(bytes(body))
        return names

    def close(self) -> None:
        """Kills the helper. A request under way fails. A later request starts another helper."""
        helper = self._helper
        if helper is not None:
            helper.kill()
        if self._turn.acquire(blocking=False):
            self._drop_dead_helper()
            self._turn.release()

    def abandon(self) -> None:
        """Leaves the helper to the parent, in a forked child. The next request starts another."""
        self._turn = threading.Lock()
        helper, self._helper = self._helper, None
        if helper is not None:
            helper.abandon()

    def _request(
        self,
        request: Packet,
        deadline: float,
        body: IO[bytes] | None = None,
        on_first_byte: Callable[[], None] = lambda: None,
    ) -> tuple[Any, memoryview]:
        """Returns the value and the body of the reply."""
        timeout = max(0.0, deadline - time.monotonic())
        late = f"no answer within {timeout * 1000:.0f} ms"
        if not self._turn.acquire(timeout=-1 if timeout == math.inf else timeout):
            raise ObjectStoreError(late)
        try:
            helper = self._running_helper()
            try:
                helper.channel.send(request, body)
                reply, contents = helper.channel.receive(deadline)
                while "first_byte" in reply:
                    on_first_byte()
                    reply, contents = helper.channel.receive(deadline)
            except TimeoutError:
                helper.kill()
                raise ObjectStoreError(late) from None
            except (EOFError, ConnectionError):
                raise ObjectStoreError(helper.cause_of_death()) from None
            except BaseException:  # of on_first_byte, say; the reply is still to come
                helper.kill()
                raise
        finally:
            self._drop_dead_helper()
            self._turn.release()
        if "error" in reply:
            raise ObjectStoreError(reply["error"])
        return reply["value"], contents

    def _running_helper(self) -> _Helper:
        """Returns the helper, and starts one if needed. Requires the turn."""
        self._drop_dead_helper()  # somebody may have killed it meanwhile
        if self._helper is None:
            self._helper = _Helper(self._url)
        return self._helper

    def _drop_dead_helper(self) -> None:
        """Requires the turn."""
        if self._helper is not None and self._helper.has_ended():
            self._helper.close()
            self._helper = None


class _Helper:
    """A process that runs `serve`.

    Thread safety: any thread may call `has_ended` and `kill`.
    """

    def __init__(self, url: str) -> None:
        if not sys.executable or getattr(sys, "frozen", False):
            raise ObjectStoreError(
                f"this program has no Python to run: sys.executable is {sys.executable!r}"
            )
        # The helper imports some modules before sys.path is replaced. "-I" sets this flag too.
        options = ["-E"] if sys.flags.ignore_environment else []
        # The package may have been imported from outside sys.path.
        path = [*sys.path, str(Path(__file__).parent.parent)]
        # Keeps a kill from hitting another process that has the same id by then.
        self._watch = threading.Lock()
        self._stderr = _memory_file()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._stderr.close()
            raise ObjectStoreError(
                f"can't create a socket: {error.strerror}"
            ) from error
        self.channel = _Channel(ours)
        try:
            self._process = subprocess.Popen(
                [sys.executable, *options, "-S", "-c", _PROGRAM, url, *path],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                start_new_session=True,
            )
        except OSError as error:
            self.close()
            raise ObjectStoreError(
                f"can't start '{sys.executable}': {error.strerror}"
            ) from error
        finally:
            theirs.close()

    def has_ended(self) -> bool:
        with self._watch:
            return self._process.poll() is not None

    def kill(self) -> None:
        with self._watch:
            self._process.kill()
            self._process.wait()

    def cause_of_death(self) -> str:
        """Returns why the process ended, after it closed its end of the socket or was killed."""
        with self._watch, suppress(subprocess.TimeoutExpired):
            self._process.wait(_LONGEST_EXIT)
        self.kill()
        status = self._process.returncode
        if status < 0:
            return f"the helper process was killed by signal {-status}"
        return f"the helper process ended with status {status}: {self._last_line()}"

    def close(self) -> None:
        """Closes the descriptors."""
        self.channel.close()
        self._stderr.close()

    def abandon(self) -> None:
        """Leaves the process to the parent, in a forked child."""
        self.close()
        self._process.returncode = 0  # else its destructor warns that it still runs

    def _last_line(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _LONGEST_STDERR))
        lines = self._stderr.read().decode(errors="replace").splitlines()
        return lines[-1].strip() if lines else "it printed nothing"


class _Channel:
    """One end of a socket for packets, each with the contents of at most one file.

    Raises ConnectionError if the other end is closed.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, packet: Packet, body: IO[bytes] | None = None) -> None:
        self._socket.settimeout(None)
        files = []
        if body is not None:
            body.flush()
            files = [body.fileno()]
            packet = {**packet, "size": os.fstat(body.fileno()).st_size}
        socket.send_fds(self._socket, [json.dumps(packet).encode()], files)

    def receive(self, deadline: float) -> tuple[Packet, memoryview]:
        """Returns a packet and the contents sent with it, which are writable.

        Raises TimeoutError, EOFError if the other end is closed, or ObjectStoreError if the
        contents are lost.
        """
        left = max(1e-6, deadline - time.monotonic())  # 0 would mean non-blocking
        self._socket.settimeout(None if left == math.inf else left)
        data, files, flags, _ = socket.recv_fds(
            self._socket, _LONGEST_PACKET, 1, socket.MSG_CMSG_CLOEXEC
        )
        if not data:
            raise EOFError
        packet: Packet = json.loads(data)
        contents = memoryview(bytearray())
        for file in files:
            try:
                contents = _mapped(file)
            finally:
                os.close(file)
        # The kernel drops a descriptor if the receiver has no room for it.
        if flags & socket.MSG_CTRUNC:
            raise ObjectStoreError("a body is lost: too many open files")
        if len(contents) != packet.get("size", 0):
            raise ObjectStoreError(
                f"a body has {len(contents)} of {packet.get('size', 0)} bytes"
            )
        return packet, contents

    def close(self) -> None:
        self._socket.close()


def _mapped(file: int) -> memoryview:
    """Maps the contents of a file. Writing to them does not change the file."""
    try:
        size = os.fstat(file).st_size
        if size == 0:  # an empty file can't be mapped
            return memoryview(bytearray())
        return memoryview(mmap.mmap(file, size, access=mmap.ACCESS_COPY))
    except OSError as error:
        raise ObjectStoreError(f"can't map a body: {error.strerror}") from error


def _memory_file() -> IO[bytes]:
    try:
        # A CPython that was built with glibc 2.26 or older lacks it.
        if not hasattr(os, "memfd_create"):
            return tempfile.TemporaryFile()
        return os.fdopen(os.memfd_create("torchtrt-cache"), "w+b")
    except OSError as error:
        raise ObjectStoreError(
            f"can't create a file in memory: {error.strerror}"
        ) from error


def _generation(value: list[str | None] | None) -> ObjectGeneration | None:
    return None if value is None else ObjectGeneration(*value)


def serve(url: str) -> None:
    """Runs the helper: serves the requests on standard input until it is closed."""
    # The parent may survive these signals, or save and upload because of them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = _Server(url, _Channel(socket.socket(fileno=sys.stdin.fileno())))
    with suppress(EOFError, ConnectionError):
        while True:
            server.obey()


class _Server:
    def __init__(self, url: str, channel: _Channel) -> None:
        self._url = url
        self._channel = channel
        self._parent = os.getppid()
        self._store: ObjectStore | None = None

    def obey(self) -> None:
        """Replies to one request. Raises EOFError or ConnectionError if the other end is closed."""
        try:
            try:
                deadline = time.monotonic() + _CHECK_INTERVAL
                request, data = self._channel.receive(deadline)
            except TimeoutError:
                self._check_parent()
                return
            with _memory_file() as body:
                reply = {"value": self._value(request, data, body)}
                self._channel.send(reply, body)
        except ObjectStoreError as error:
            self._channel.send({"error": str(error)})
        except ConnectionError:
            raise
        except OSError as error:
            self._channel.send({"error": f"can't write a body: {error.strerror}"})

    def _value(self, request: Packet, data: memoryview, body: IO[bytes]) -> Any:
        """Carries out a request. Returns the value of the reply and writes its body."""
        from torchtrt_cache.object_store import ObjectStore

        if self._store is None:
            self._store = ObjectStore(self._url)
        call = request["call"]
        if call == "generation":
            return self._store.generation(request["name"])
        if call == "read":
            name, draft = request["name"], request["draft"]
            if draft is None:
                return self._store.read(name, partial(self._take, body))
            with Path(draft).open("r+b") as file:
                return self._store.read(name, partial(self._take_to_disk, file))
        if call == "replace":
            expected = _generation(request["expected"])
            return self._store.replace(request["name"], data, expected)
        body.write(json.dumps(self._store.names()).encode())
        return None

    def _take(self, body: IO[bytes], chunk: bytes) -> None:
        if body.tell() == 0:
            self._channel.send({"first_byte": True})
        body.write(chunk)
        self._check_parent()

    def _take_to_disk(self, file: IO[bytes], chunk: bytes) -> None:
        steps = file.tell() // _WRITEBACK_STEP
        self._take(file, chunk)
        # Otherwise the disk would be idle during the transfer, and the fsync would take long.
        if file.tell() // _WRITEBACK_STEP > steps:
            whole = ctypes.c_int64(0)  # as the offset and as the length
            sync_file_range = ctypes.CDLL(None).sync_file_range
            sync_file_range(file.fileno(), whole, whole, _SYNC_FILE_RANGE_WRITE)

    def _check_parent(self) -> None:
        """Raises EOFError if the parent has ended, even if its child still has the socket open."""
        if os.getppid() != self._parent:
            raise EOFError


if __name__ == "__main__":
    serve(sys.argv[1])
