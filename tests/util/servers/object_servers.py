"""Real object stores on the loopback interface, and a proxy that injects faults."""

from __future__ import annotations

import http.client
import io
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

from torchtrt_cache.file_lock import LockWaits, file_lock

_HOST = "127.0.0.1"
_KEY = "torchtrt-tests"
_VERSITY = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
_LONGEST_INSTALLATION = 240.0  # seconds
_LONGEST_START = 60.0  # seconds
_PIECES = 32  # of a slow response


def environment_of_client(port: int) -> dict[str, str]:
    """The environment that a client of the S3 server at that port needs."""
    return {
        "AWS_ENDPOINT_URL": f"http://{_HOST}:{port}",
        "AWS_ACCESS_KEY_ID": _KEY,
        "AWS_SECRET_ACCESS_KEY": _KEY,
        "AWS_REGION": "us-east-1",
        "NO_PROXY": _HOST,
    }


_AnyServer = TypeVar("_AnyServer", bound="_Server")


class _Server:
    """A server process, killed when the block ends. The constructor returns once it listens."""

    def __init__(self, port: int, command: list[str], env: dict[str, str]) -> None:
        self.port = port
        self._process = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + _LONGEST_START
        while not _is_listening(port):
            status = self._process.poll()
            if status is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{command} does not listen at port {port}")
            time.sleep(0.05)

    def __enter__(self: _AnyServer) -> _AnyServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


class MotoServer(_Server):
    """Amazon S3 by moto, in memory."""

    def __init__(self) -> None:
        port = _free_port()
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, __file__, str(port)]
        super().__init__(port, command, {**os.environ, **paths})

    def create_bucket(self, name: str) -> None:
        connection = http.client.HTTPConnection(_HOST, self.port)
        connection.request("PUT", f"/{name}")
        assert connection.getresponse().status == 200
        connection.close()


class VersityServer(_Server):
    """Amazon S3 by Versity's gateway, whose buckets are the folders of a directory.

    Args:
        program: See `versity_program`.
        directory: On a file system with extended attributes.
    """

    def __init__(self, program: Path, directory: Path) -> None:
        self._directory = directory
        port = _free_port()
        keys = {"ROOT_ACCESS_KEY": _KEY, "ROOT_SECRET_KEY": _KEY}
        command = [str(program), "--port", f"{_HOST}:{port}", "posix", str(directory)]
        super().__init__(port, command, {**os.environ, **keys})

    def create_bucket(self, name: str) -> None:
        (self._directory / name).mkdir()


def versity_program() -> Path | None:
    """Installs the gateway once per machine. Returns its path, or None if it can't be installed."""
    go = shutil.which("go", path=f"{os.environ['PATH']}:/usr/local/go/bin")
    if go is None:
        return None
    # Not in the home directory: tests in Bazel's sandbox can't write to it.
    folder = Path(tempfile.gettempdir()) / f"torchtrt-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    assert folder.stat().st_uid == os.getuid(), f"{folder} belongs to another user"
    program = folder / Path(_VERSITY).name.replace("@", "-")
    with file_lock(f"{program}.lock", LockWaits(timeout=_LONGEST_INSTALLATION)):
        if not program.exists():
            folders = {"GOBIN": "bin", "GOPATH": "go", "GOCACHE": "go-cache"}
            places = {name: str(folder / place) for name, place in folders.items()}
            try:
                subprocess.run(
                    [go, "install", _VERSITY],
                    env={**os.environ, **places},
                    check=True,
                    capture_output=True,
                    timeout=_LONGEST_INSTALLATION,
                )
            except subprocess.SubprocessError:
                return None
            (folder / "bin" / "versitygw").rename(program)
    return program


class FaultyProxy:
    """A proxy in front of a server, with a port of its own, that injects the fault it is told to.

    A fault lasts until another method is called.

    Attributes:
        requests: The number of requests by method and path. A request counts when it arrives.
        replies: The number of the server's replies by method, path and status.
    """

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self.requests: Counter[tuple[str, str]] = Counter()
        self.replies: Counter[tuple[str, str, int]] = Counter()
        self.counting = threading.Lock()
        self.fault = _Fault()
        self.port = _free_port()
        self._listener = _Listener(self, self.port)

    def __enter__(self) -> FaultyProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()

    def count(self, method: str) -> int:
        with self.counting:
            return sum(n for (used, _), n in self.requests.items() if used == method)

    def heal(self) -> None:
        self._set(_Fault())

    def refuse(self) -> None:
        """Refuses connections, and closes the open ones."""
        self._replace_fault(_Fault(closes=True))
        self._listener.close()

    def hang(self) -> None:
        """Reads requests and replies to none."""
        self._set(_Fault(hangs=True))

    def reject(self, status: int, code: str) -> None:
        """Replies with an HTTP status and S3's error code."""
        self._set(_Fault(status=status, code=code))

    def truncate(self) -> None:
        """Sends at most the first half of a GET's body, then closes the connection."""
        self._set(_Fault(truncates=True))

    def slow_down(self, times: float) -> None:
        """Takes `times` times as long as the server for each part of a response."""
        self._set(_Fault(slowness=times))

    def lose_responses(self) -> None:
        """Closes the connection when the server has finished a PUT."""
        self._set(_Fault(loses=True))

    def _set(self, fault: _Fault) -> None:
        self._replace_fault(fault)
        if self._listener.is_closed:
            self._listener = _Listener(self, self.port)

    def _replace_fault(self, fault: _Fault) -> None:
        old, self.fault = self.fault, fault
        old.has_ended.set()


class _Fault:
    def __init__(
        self,
        *,
        closes: bool = False,
        hangs: bool = False,
        status: int | None = None,
        code: str = "",
        truncates: bool = False,
        slowness: float = 1.0,
        loses: bool = False,
    ) -> None:
        self.closes = closes
        self.hangs = hangs
        self.status = status
        self.code = code
        self.truncates = truncates
        self.slowness = slowness
        self.loses = loses
        self.has_ended = threading.Event()


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: FaultyProxy, port: int) -> None:
        self.proxy = proxy
        self.is_closed = False
        self.connections: set[socket.socket] = set()
        super().__init__((_HOST, port), _Handler)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.shutdown()
            self._thread.join()
            self.server_close()
            for connection in list(self.connections):
                with suppress(OSError):  # closed meanwhile
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # the client went away
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # so that headers and a short body are sent in one packet
    server: _Listener

    def setup(self) -> None:
        self.server.connections.add(self.request)
        super().setup()

    def finish(self) -> None:
        self.server.connections.discard(self.request)
        super().finish()

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy = self.server.proxy
        fault = proxy.fault
        path = self.path.partition("?")[0]
        with proxy.counting:
            proxy.requests[self.command, path] += 1
        if fault.hangs:
            fault.has_ended.wait()
        if fault.hangs or fault.closes:
            self.close_connection = True
            return
        if fault.status is not None:
            error = f"<Error><Code>{fault.code}</Code></Error>".encode()
            self._reply(fault.status, {"Content-Length": str(len(error))}, [error])
            return
        start = time.monotonic()
        with closing(http.client.HTTPConnection(_HOST, proxy.server_port)) as server:
            # Keeps the client's Host header, which is signed.
            server.request(self.command, self.path, body, dict(self.headers))
            response = server.getresponse()
            data = response.read()
        with proxy.counting:
            proxy.replies[self.command, path, response.status] += 1
        delay = (time.monotonic() - start) * (fault.slowness - 1) / _PIECES
        if fault.loses and self.command == "PUT":
            self.close_connection = True
            return
        if fault.truncates and self.command == "GET" and response.status < 300:
            data = data[: len(data) // 2]
            self.close_connection = True
        step = max(1, len(data) // (_PIECES - 1))
        pieces = [data[i : i + step] for i in range(0, len(data), step)]
        self._reply(response.status, dict(response.headers), pieces, delay)

    def _reply(
        self,
        status: int,
        headers: dict[str, str],
        pieces: list[bytes],
        delay: float = 0.0,
    ) -> None:
        time.sleep(delay)
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.end_headers()
        for piece in pieces if self.command != "HEAD" else []:
            if delay > 0:
                self.wfile.flush()
                time.sleep(delay)
            self.wfile.write(piece)
        self.wfile.flush()

    do_DELETE = do_GET = do_HEAD = do_PUT = _handle

    def log_message(self, *_: object) -> None: ...


def _serve_moto(port: int) -> None:
    """Does what `moto_server` does, but makes conditional writes atomic."""
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        create_backend_app,
    )
    from werkzeug.serving import run_simple

    moto = DomainDispatcherApplication(create_backend_app)
    turn = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        length = int(environ.get("CONTENT_LENGTH") or 0)
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
        # moto compares the ETag and writes the object in two steps.
        with turn if environ["REQUEST_METHOD"] == "PUT" else nullcontext():
            response: Iterable[bytes] = moto(environ, start_response)
            return response

    run_simple(_HOST, port, serve, threaded=True)


def _free_port() -> int:
    while True:
        # Below Linux's ephemeral ports, which another process may get before the server does.
        port = random.randrange(20_000, 32_768)
        with suppress(OSError), socket.create_server((_HOST, port)):
            return port


def _is_listening(port: int) -> bool:
    with suppress(OSError), socket.create_connection((_HOST, port)):
        return True
    return False


if __name__ == "__main__":
    _serve_moto(int(sys.argv[1]))
