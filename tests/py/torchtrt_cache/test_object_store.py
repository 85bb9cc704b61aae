"""ObjectStore on real servers."""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.util.servers.object_servers import (
    FaultyProxy,
    MotoServer,
    VersityServer,
    environment_of_client,
    versity_program,
)
from torchtrt_cache import object_store
from torchtrt_cache.object_store import ObjectStore
from torchtrt_cache.objects import ObjectGeneration, ObjectStoreError

BUCKET = "bucket"
URL = f"s3://{BUCKET}/some/prefix/"
NAME = "kind.bin"
WRONG = ObjectGeneration('"wrong"', None)
REQUESTS: dict[str, Callable[[ObjectStore], object]] = {
    "generation": lambda store: store.generation(NAME),
    "read": lambda store: contents_of(store, NAME),
    "create": lambda store: store.replace(NAME, memoryview(b"ours"), None),
    "update": lambda store: store.replace(NAME, memoryview(b"ours"), WRONG),
    "names": lambda store: store.names(),
}


@pytest.fixture(scope="module")
def versity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VersityServer]:
    program = versity_program()
    if program is None:
        pytest.skip("the gateway can't be installed: this needs Go and a network")
    with VersityServer(program, tmp_path_factory.mktemp("versity")) as server:
        server.create_bucket(BUCKET)
        yield server


@pytest.fixture(params=["server", "versity"], ids=["moto", "versity"])
def port(request: pytest.FixtureRequest) -> int:
    any_server: MotoServer | VersityServer = request.getfixturevalue(request.param)
    return any_server.port


@pytest.fixture
def store(
    port: int, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> ObjectStore:
    """A store with a prefix of its own."""
    use(port, monkeypatch)
    return ObjectStore(f"s3://{BUCKET}/{re.sub(r'[^a-z0-9]', '-', request.node.name)}/")


@pytest.fixture
def proxy(server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as proxy:
        use(proxy.port, monkeypatch)
        yield proxy


def use(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of_client(port).items():
        monkeypatch.setenv(name, value)


def contents_of(store: ObjectStore, name: str) -> bytes | None:
    chunks: list[bytes] = []
    generation = store.read(name, chunks.append)
    return None if generation is None else b"".join(chunks)


def reason_of(request: Callable[[ObjectStore], object]) -> str:
    """The reason why the request fails. It must be the same at each of two attempts."""
    reasons = set()
    for _ in range(2):
        with pytest.raises(ObjectStoreError) as error:
            request(ObjectStore(URL))
        reasons.add(str(error.value))
    (reason,) = reasons
    return reason


@pytest.mark.parametrize("size", [1, 30 << 20])
def test_a_body_comes_back(store: ObjectStore, size: int) -> None:
    body = os.urandom(size)
    put = store.replace(NAME, memoryview(body), None)
    assert put is not None
    assert put == store.generation(NAME)
    received = bytearray()
    assert store.read(NAME, received.extend) == put
    assert received == body


def test_a_missing_object_is_none(store: ObjectStore) -> None:
    assert store.generation(NAME) is None
    assert contents_of(store, NAME) is None
    assert store.names() == []


@pytest.mark.parametrize("size", [4, 30 << 20])
def test_a_conflict_is_none(store: ObjectStore, size: int) -> None:
    ours = memoryview(bytes(size))
    assert store.replace(NAME, ours, WRONG) is None
    assert store.generation(NAME) is None
    first = store.replace(NAME, memoryview(b"theirs"), None)
    assert store.replace(NAME, ours, None) is None
    assert store.replace(NAME, ours, WRONG) is None
    second = store.replace(NAME, memoryview(b"theirs, too"), first)
    assert second not in (None, first)
    assert store.replace(NAME, ours, first) is None
    assert contents_of(store, NAME) == b"theirs, too"


def test_concurrent_increments_are_all_kept(store: ObjectStore) -> None:
    number = struct.Struct("q")

    def increment(_: int) -> None:
        while True:
            received = bytearray()
            generation = store.read(NAME, received.extend)
            (count,) = number.unpack(received) if generation else (0,)
            data = memoryview(number.pack(count + 1))
            if store.replace(NAME, data, generation) is not None:
                return

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(increment, range(8 * 20)))
    assert contents_of(store, NAME) == number.pack(8 * 20)


def test_names_are_those_right_under_the_url(port: int, store: ObjectStore) -> None:
    base = f"s3://{BUCKET}/names-{port}"
    for url, name in (
        (f"{base}/", "a.bin"),
        (f"{base}/", "b.bin"),
        (f"{base}/folder/", "c.bin"),
        (f"{base}2/", "d.bin"),
    ):
        assert ObjectStore(url).replace(name, memoryview(b"-"), None)
    assert ObjectStore(f"{base}/").names() == ["a.bin", "b.bin"]


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_missing_bucket_is_an_error(
    port: int,
    request_: Callable[[ObjectStore], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use(port, monkeypatch)
    with pytest.raises(ObjectStoreError) as error:
        request_(ObjectStore("s3://no-such-bucket/prefix/"))
    assert str(error.value) == "the bucket does not exist (HTTP 404 NoSuchBucket)"


@pytest.mark.parametrize("url", ["file:///tmp/", "memory:///", "http://host/path/"])
def test_a_store_without_conditional_writes_is_refused(url: str) -> None:
    with pytest.raises(ObjectStoreError, match="not one of s3://, gs:// and az://"):
        ObjectStore(url)


def test_a_wrong_key_is_told_by_the_stores_code(
    versity: VersityServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(versity.port, monkeypatch)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    reasons = {reason_of(request) for request in REQUESTS.values()}
    assert reasons == {"HTTP 403 Forbidden (SignatureDoesNotMatch)"}


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "AccessDenied", "HTTP 403 Forbidden (AccessDenied)"),
        (
            404,
            "NoSuchBucket",
            "the bucket does not exist (HTTP 404 NoSuchBucket)",
        ),
        (500, "InternalError", "HTTP 500 Internal Server Error"),
    ],
)
def test_a_rejection_has_one_text_for_all_requests(
    proxy: FaultyProxy, status: int, code: str, expected: str
) -> None:
    proxy.reject(status, code)
    assert {reason_of(request) for request in REQUESTS.values()} == {expected}


def test_a_refused_connection(proxy: FaultyProxy) -> None:
    proxy.refuse()
    reasons = {reason_of(request) for request in REQUESTS.values()}
    assert reasons == {"connection refused"}


def test_a_server_that_hangs(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "_READ_TIMEOUT", 1.0)
    monkeypatch.setattr(object_store, "_UPLOAD_TIMEOUT", 1.0)
    monkeypatch.setattr(object_store, "_MAX_RETRIES", 0)
    proxy.hang()
    reasons = {reason_of(request) for request in REQUESTS.values()}
    assert reasons == {"no answer within 1 s"}


def test_a_server_that_takes_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_CONNECT_TIMEOUT", 0.5)
    monkeypatch.setattr(object_store, "_MAX_RETRIES", 0)
    with socket.socket() as server, socket.socket() as a, socket.socket() as b:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for client in (a, b):  # they fill the server's queue
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        use(server.getsockname()[1], monkeypatch)
        reasons = {reason_of(request) for request in REQUESTS.values()}
    assert reasons == {"no connection within 0.5 s"}


def test_an_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    use(1, monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid")
    # The machine's resolver may take 5 s, and may fail for different reasons.
    monkeypatch.setattr(object_store, "_CONNECT_TIMEOUT", 60.0)
    with pytest.raises(ObjectStoreError, match=r"^unknown host \("):
        REQUESTS["generation"](ObjectStore(URL))


def test_a_server_without_tls(
    server: MotoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(server.port, monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://127.0.0.1:{server.port}")
    assert reason_of(REQUESTS["generation"]).startswith("no TLS connection")


def test_missing_credentials(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{proxy.port}")
    proxy.reject(403, "")
    reasons = {reason_of(request) for request in REQUESTS.values()}
    assert reasons == {"no credentials: HTTP 403 Forbidden"}


def test_a_truncated_body(proxy: FaultyProxy) -> None:
    body = os.urandom(1 << 20)
    store = ObjectStore(f"s3://{BUCKET}/truncated/")
    put = store.replace(NAME, memoryview(body), None)
    proxy.truncate()
    received = bytearray()
    with pytest.raises(ObjectStoreError) as error:
        store.read(NAME, received.extend)
    assert re.fullmatch(
        f"the body ended after {len(received)} of {len(body)} bytes: connection .*",
        str(error.value),
    )
    assert body.startswith(received)
    proxy.heal()
    received.clear()
    assert store.read(NAME, received.extend) == put
    assert received == body


def test_a_put_without_a_response_is_a_conflict_with_ourselves(
    proxy: FaultyProxy,
) -> None:
    store = ObjectStore(f"s3://{BUCKET}/lost/")
    proxy.lose_responses()
    assert store.replace(NAME, memoryview(b"ours"), None) is None
    assert contents_of(store, NAME) == b"ours"
    assert proxy.count("PUT") <= 1 + object_store._MAX_RETRIES
