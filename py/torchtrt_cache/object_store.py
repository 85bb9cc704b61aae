"""Objects under a URL, with conditional writes.

Only the helper process of StoreProcess imports this module: in a forked child of a process that
used it, the library hangs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import AzureStore, GCSStore, S3Store, from_url

from torchtrt_cache.objects import ObjectGeneration, ObjectStoreError

if TYPE_CHECKING:
    from obstore import UpdateVersion

_CONNECT_TIMEOUT = 5.0  # seconds
_READ_TIMEOUT = 30.0  # seconds without a byte
_NO_TIMEOUT = 86400.0  # seconds
_UPLOAD_TIMEOUT = 60.0  # seconds, plus the time of the body at _SLOWEST_UPLOAD
_SLOWEST_UPLOAD = 1 << 20  # bytes per second
_MAX_RETRIES = 3
_RETRY_TIMEOUT = 10.0  # seconds
_FIRST_BACKOFF = 0.1  # seconds
_LONGEST_BACKOFF = 1.0  # seconds

_ERRORS = (BaseError, FileNotFoundError, ValueError)  # that the library raises
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_LONGEST_REASON = 200  # characters


class ObjectStore:
    """The objects under a URL of Amazon S3, Google Cloud Storage or Azure Blob Storage.

    Credentials, region and endpoint come from the environment. All methods raise ObjectStoreError.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._store = self._connect(_READ_TIMEOUT, _NO_TIMEOUT)

    def generation(self, name: str) -> ObjectGeneration | None:
        """Returns None if the object is missing."""
        try:
            meta = obstore.head(self._store, name)
        except _ERRORS as error:
            # The response to a HEAD has no body. Only a body says why it failed, or that the
            # bucket is missing.
            if not (_status(error) or "").startswith("4"):
                raise _failure(error) from error
            try:
                meta = obstore.get(self._store, name).meta
            except _ERRORS as second_error:
                _raise_unless_missing(second_error)
                return None
        return ObjectGeneration(meta["e_tag"], meta["version"])

    def read(
        self, name: str, sink: Callable[[bytes], object]
    ) -> ObjectGeneration | None:
        """Passes the object's bytes to `sink` as they arrive. Returns None if it is missing."""
        try:
            result = obstore.get(self._store, name)
        except _ERRORS as error:
            _raise_unless_missing(error)
            return None
        size = result.meta["size"]
        received = 0
        chunks = iter(result.stream(min_chunk_size=1))
        while True:
            try:
                chunk = next(chunks, None)
            except _ERRORS as error:
                reason = f"the body ended after {received} of {size} bytes"
                raise ObjectStoreError(f"{reason}: {_reason(error)}") from error
            if chunk is None:
                break
            sink(chunk)
            received += len(chunk)
        if received != size:
            raise ObjectStoreError(f"the body ended after {received} of {size} bytes")
        return ObjectGeneration(result.meta["e_tag"], result.meta["version"])

    def replace(
        self, name: str, data: memoryview, expected: ObjectGeneration | None
    ) -> ObjectGeneration | None:
        """Writes an object unless somebody else has written it.

        Args:
            data: Not empty.
            expected: The generation to replace. None if the object must not exist yet.

        Returns:
            The new generation. None if the object's generation is not `expected`. It may be ours
            if the response to a put was lost.
        """
        if len(data) == 0:  # it would lose what others have written
            raise ObjectStoreError("an empty object is refused")
        seconds = _UPLOAD_TIMEOUT + len(data) / _SLOWEST_UPLOAD
        # The library's read timeout includes the time to send the body.
        store = self._connect(read_timeout=seconds, timeout=seconds)
        mode: Literal["create"] | UpdateVersion = "create"
        if expected is not None:
            mode = {"e_tag": expected.e_tag}
            if expected.version is not None:  # None would be refused
                mode["version"] = expected.version
        try:
            result = obstore.put(store, name, data, mode=mode, use_multipart=False)
        except _ERRORS as error:
            if _is_conflict(error) or self._is_changed(name, expected, error):
                return None
            raise _failure(error, seconds) from error
        return ObjectGeneration(result["e_tag"], result["version"])

    def names(self) -> list[str]:
        """Returns the names of the objects directly under the URL."""
        try:
            listed = obstore.list_with_delimiter(self._store)
        except _ERRORS as error:
            raise _failure(error) from error
        # An object that stands for the prefix has the empty name.
        return [meta["path"] for meta in listed["objects"] if meta["path"]]

    def _is_changed(
        self, name: str, expected: ObjectGeneration | None, error: Exception
    ) -> bool:
        """Whether a put without a response found, or created, another generation."""
        # A server may refuse a put and close the connection before it has read the body.
        if _status(error) is not None:
            return False
        try:
            return self.generation(name) != expected
        except ObjectStoreError:
            return False

    def _connect(
        self, read_timeout: float, timeout: float
    ) -> S3Store | GCSStore | AzureStore:
        try:
            store = from_url(
                self._url,
                client_options={
                    "allow_http": True,  # the user's endpoint may be such a URL
                    "connect_timeout": timedelta(seconds=_CONNECT_TIMEOUT),
                    "read_timeout": timedelta(seconds=read_timeout),
                    "timeout": timedelta(seconds=timeout),
                },
                retry_config={
                    "max_retries": _MAX_RETRIES,
                    "retry_timeout": timedelta(seconds=_RETRY_TIMEOUT),
                    "backoff": {
                        "init_backoff": timedelta(seconds=_FIRST_BACKOFF),
                        "max_backoff": timedelta(seconds=_LONGEST_BACKOFF),
                        "base": 2,
                    },
                },
            )
        except _ERRORS as error:
            raise _failure(error) from error
        # The library has no conditional writes for other stores.
        if not isinstance(store, (S3Store, GCSStore, AzureStore)):
            raise ObjectStoreError("the URL is not one of s3://, gs:// and az://")
        return store


def _raise_unless_missing(error: Exception) -> None:
    """Raises ObjectStoreError unless the error of a GET says that only the object is missing."""
    if not isinstance(error, FileNotFoundError) or _code(error) in _NO_BUCKET:
        raise _failure(error) from error


def _is_conflict(error: Exception) -> bool:
    """Whether a conditional put failed because of its condition."""
    if _code(error) in _NO_BUCKET:  # the library reports that as a conflict
        return False
    is_conflict = isinstance(error, (AlreadyExistsError, PreconditionError))
    return is_conflict or (_status(error) or "").startswith("409")


def _failure(error: Exception, timeout: float | None = None) -> ObjectStoreError:
    return ObjectStoreError(_reason(error, timeout))


def _reason(error: Exception, timeout: float | None = None) -> str:
    """Returns why a request failed, in the same words for every such failure."""
    timeout = _READ_TIMEOUT if timeout is None else timeout
    message, _, details = str(error).partition("\n\nDebug source:")
    reason = _reason_of_status(error) or _reason_of_connection(details, timeout)
    if reason is None:
        # Leaves out the request and how long it took.
        message = re.sub(r"^(Generic \w+ error: )+", "", message)
        message = re.sub(r"Error performing .*? in \S+s(, after .*?)? +- ", "", message)
        reason = " ".join(message.split())[:_LONGEST_REASON]
    # Without credentials in the environment, the library asks services of the machine for them.
    if re.search(r"token request|/latest/|://169\.254\.", message):
        return f"no credentials: {reason}"
    return reason


def _reason_of_status(error: Exception) -> str | None:
    status = _status(error)
    if status is None:
        return None
    code = _code(error)
    if code in _NO_BUCKET:
        return f"the bucket does not exist (HTTP {status[:3]} {code})"
    # For an error of the server, the code says no more than the status, and may be missing.
    return f"HTTP {status} ({code})" if code and status[0] == "4" else f"HTTP {status}"


def _status(error: Exception) -> str | None:
    """Returns the HTTP status of a refused request, such as "403 Forbidden"."""
    match = re.search(r"Server returned non-2xx status code: (\d{3}[\w ]*)", str(error))
    return match and match[1].strip()


def _code(error: Exception) -> str | None:
    """Returns the error code in the body of a response."""
    match = re.search(r"<Code>(\w{1,64})</Code>", str(error))
    return match and match[1]


def _reason_of_connection(details: str, timeout: float) -> str | None:
    """Returns the reason in the library's description of where an error came from."""
    is_connect = re.search(r"Error\(\s*Connect,", details) is not None
    if "TimedOut" in details:
        if is_connect:
            return f"no connection within {_CONNECT_TIMEOUT:g} s"
        return f"no answer within {timeout:.0f} s"
    if match := re.search(r'lookup address information: ([^"]+)', details):
        return f"unknown host ({match[1]})"
    if match := re.search(r'code: \d+,\s*kind: \w+,\s*message: "([^"]+)"', details):
        return match[1].lower()
    if re.search("IncompleteMessage|UnexpectedEof", details):
        return "connection closed"
    if is_connect:
        cause = re.search(r"Invalid(?:Message|Certificate)\(\s*(\w+)", details)
        return f"no TLS connection ({cause[1]})" if cause else "no connection"
    return None
