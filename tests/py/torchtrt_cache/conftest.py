"""A real object store, for the tests that request one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.util.servers.object_servers import MotoServer, environment_of_client


@pytest.fixture(scope="session")
def server() -> Iterator[MotoServer]:
    """An S3 server with a bucket named "bucket". This process's environment has its address."""
    server = MotoServer()
    with server, pytest.MonkeyPatch.context() as patch:
        server.create_bucket("bucket")
        for name, value in environment_of_client(server.port).items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def url(server: MotoServer) -> str:
    """A prefix without objects."""
    return f"s3://bucket/{secrets.token_hex(8)}/"
