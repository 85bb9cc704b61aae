"""A real object store for the tests that ask for one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.util.servers.object_servers import MotoServer, environment_of_client


@pytest.fixture(scope="session")
def server() -> Iterator[MotoServer]:
    """One that this process's environment leads to, with a bucket named "bucket"."""
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
