"""What the commands that share caches through an object store have in common."""

# Paths are used as written. pathlib would change them.
# ruff: noqa: PTH102, PTH112, PTH118, PTH208

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial

from torchtrt_cache.cache_url import CacheURL, directory_of_file_url, is_url
from torchtrt_cache.kinds import (
    RuntimeCacheKind,
    is_empty,
    kind_named,
    kinds_of_machine,
)
from torchtrt_cache.objects import ObjectStoreError
from torchtrt_cache.runtime_cache_file import FileGeneration, generation_at
from torchtrt_cache.store_process import StoreProcess, check_library
from torchtrt_cache.text import printable, size_text
from torchtrt_cache.transfer import (
    CannotMergeError,
    Merge,
    Outcome,
    Transfer,
    Transfers,
)

FAILED = 1  # exit statuses
_NOT_MERGED = 3

_URL = "s3://bucket/prefix/"
_DEFAULT_TIMEOUT = 600.0  # seconds

_WHY_NOT_MERGED = {
    "pull": (
        "its file was changed here, and the object elsewhere. To merge them, run `torchtrt-cache "
        "pull` on a machine with this GPU. To take only the object, remove the file first"
    ),
    "push": (
        "the object has kernels that its file may lack. To merge them, run `torchtrt-cache push` "
        "on a machine with this GPU"
    ),
}


def add_url(parser: argparse.ArgumentParser, parse: Callable[[str], CacheURL]) -> None:
    parser.add_argument("url", metavar="URL", type=parse, help=f"such as {_URL}")


def add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", metavar="DIR", type=_directory, help="a runtime cache's directory"
    )


def add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=_DEFAULT_TIMEOUT,
        metavar="SECONDS",
        help=f"give up after this time (default {_DEFAULT_TIMEOUT:g})",
    )


def cache_url(text: str) -> CacheURL:
    """Parses a URL from the command line."""
    try:
        if (directory := directory_of_file_url(text)) is not None:
            raise ValueError(
                f"{text!r} is not an object store, expected s3://, gs:// or az://. Use the "
                f"directory {directory!r} itself as the runtime cache"
            )
        if not is_url(text):
            raise ValueError(f"{text!r}, expected a URL such as {_URL}")
        return CacheURL.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def writable_cache_url(text: str) -> CacheURL:
    """Parses a URL to which the command may write objects."""
    url = cache_url(text)
    if url.is_read_only:
        raise argparse.ArgumentTypeError(
            f"{text!r} has mode=read, expected a URL that may be written"
        )
    return url


def _directory(text: str) -> str:
    if not text or is_url(text):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a directory")
    return text


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text) or float(text) == 0:
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected a number of seconds, such as 30"
        )
    return float(text)


def is_ready(directory: str, *, is_created: bool) -> bool:
    """Whether the library and the directory can be used. If not, prints why."""
    try:
        check_library()
        if is_created and not os.path.isdir(directory):
            with suppress(FileExistsError):  # another process has just made it
                os.mkdir(directory, 0o775)
        os.listdir(directory)
    except ImportError as error:
        print(error, file=sys.stderr)
    except OSError as error:
        path = printable(directory)
        print(f"Can't use the directory '{path}': {error.strerror}", file=sys.stderr)
    else:
        return True
    return False


@cache
def _kinds_here() -> dict[str, RuntimeCacheKind]:
    """Returns the kinds of this machine by the names of their files."""
    return {kind.file_name(): kind for kind in kinds_of_machine()}


@cache
def _merger(kind: RuntimeCacheKind) -> Merge:
    from torch_tensorrt.runtime._cache.merger import Merger  # takes seconds

    return Merger(kind)


def _merge(kind: RuntimeCacheKind, theirs: memoryview, ours: memoryview) -> memoryview:
    return _merger(kind)(theirs, ours)


def _merge_of(name: str) -> Merge | None:
    """Returns None if this machine has no GPU of the kind whose file has that name."""
    kind = _kinds_here().get(name)
    return partial(_merge, kind) if kind else None


class KindTransfers:
    """Transfers kinds between a directory and a URL, and prints the outcome for each.

    If one kind fails, the others are still transferred.

    Args:
        url: Where the objects are.
        directory: Where the files are.
        timeout: The time limit for everything until `restart`, in seconds.
        repeats_reasons: Whether to print a failure that has the same reason as another one.

    Attributes:
        status: The exit status: 0; 1 after an error; 3 if a kind was not merged because this
            machine lacks its GPU.
    """

    def __init__(
        self,
        url: CacheURL,
        directory: str,
        timeout: float,
        repeats_reasons: bool = True,
    ) -> None:
        self.status = 0
        self._url = url.url
        self._directory = directory
        self._store = StoreProcess(url.url)
        self._unchanged: dict[str, str] = {}  # what to print about a kind
        self._told: set[str] = set()  # kinds about which something was printed
        self._failures: dict[tuple[str, str], str] = {}  # reasons of current failures
        self._repeats_reasons = repeats_reasons
        self.restart(timeout)

    def close(self) -> None:
        self._store.close()

    def restart(self, timeout: float) -> None:
        """Starts a new time limit for what follows."""
        deadline = time.monotonic() + timeout
        self._transfers = Transfers(self._store, self._directory, deadline)
        self._deadline = deadline

    def finish(self) -> None:
        """Prints the kinds that did not change."""
        for name, line in self._unchanged.items():
            if name not in self._told:
                print(line, flush=True)
        if not self._unchanged and not self._told:
            print("There is nothing to transfer", flush=True)

    def pull(self, is_all: bool = False) -> bool:
        """Pulls what this machine can start with, or everything if it has no GPU.

        Returns whether the directory now has all of it.
        """
        outcomes = []
        kinds = [] if is_all else list(_kinds_here().values())
        if kinds:
            for kind in kinds:
                name = kind.file_name()
                outcomes.append(self._attempt("pull", name, partial(self._pull, kind)))
        else:
            names = self._names_of_objects()
            if names is None:
                return False
            for name in names:
                pull = partial(self._transfers.pull, name)
                outcomes.append(self._attempt("pull", name, pull))
        return not {None, Outcome.NOT_MERGED}.intersection(outcomes)

    def _pull(self, kind: RuntimeCacheKind, merge: Merge | None) -> Transfer:
        return self._transfers.pull_kind(kind, merge, lambda: None)

    def _names_of_objects(self) -> list[str] | None:
        """Returns None after an error."""
        try:
            names = self._store.names(deadline=self._deadline)
        except ObjectStoreError as error:
            text = f"Can't list '{printable(self._url)}': {error}"
            self._fail("list", "", str(error), text)
            return None
        self._failures.pop(("list", ""), None)
        return sorted(name for name in names if kind_named(name))

    def names_of_files(self) -> list[str]:
        """Returns the names of the kinds' files in the directory."""
        try:
            names = os.listdir(self._directory)
        except OSError as error:
            reason = error.strerror or str(error)
            text = f"Can't list '{printable(self._directory)}': {reason}"
            self._fail("list", self._directory, text, text)
            return []
        path = partial(os.path.join, self._directory)
        return sorted(n for n in names if kind_named(n) and not is_empty(path(n)))

    def push_all(self) -> None:
        """Pushes all kinds except those whose pull failed."""
        for name in self.names_of_files():
            if ("pull", name) not in self._failures:
                self.push(name)

    def push(self, name: str) -> bool:
        """Returns False after an error that may be temporary."""
        push = partial(self._transfers.push, name)
        return self._attempt("push", name, push) is not None

    def look_at(self, name: str) -> tuple[FileGeneration | None, bool]:
        """Returns the file's generation, and whether the object has all its kernels."""
        path = os.path.join(self._directory, name)
        return generation_at(path), self._transfers.is_uploaded(name)

    def _attempt(
        self, verb: str, name: str, transfer: Callable[[Merge | None], Transfer]
    ) -> Outcome | None:
        """Returns None after an error that may be temporary."""
        try:
            found = transfer(_merge_of(name))
        # ImportError and OSError come from torch, which a merge imports.
        except (RuntimeError, ImportError, OSError) as error:
            kind = _stem(name)
            text = f"Can't {verb} {kind}: {printable(str(error))}"
            if isinstance(error, ObjectStoreError):
                text += f" ('{printable(self._url)}')"
            self._fail(verb, name, str(error), text)
            is_for_good = isinstance(error, CannotMergeError)
            return Outcome.NOT_MERGED if is_for_good else None
        kind = _stem(found.name)
        if found.outcome is Outcome.NOT_MERGED:
            text = f"NOT MERGED {kind}: {_WHY_NOT_MERGED[verb]}"
            self._fail(verb, name, text, text, _NOT_MERGED)
            return found.outcome
        self._failures.pop((verb, name), None)
        if found.outcome is Outcome.TRANSFERRED:
            print(f"{verb}ed {kind}: {size_text(found.size)}", flush=True)
            self._told.add(found.name)
        elif found.outcome is Outcome.IN_STEP:
            self._unchanged[found.name] = f"{kind} is in step"
        else:
            self._unchanged[found.name] = f"{kind} is not there yet"
        return found.outcome

    def _fail(
        self, verb: str, name: str, reason: str, text: str, status: int = FAILED
    ) -> None:
        is_new = self._repeats_reasons or reason not in self._failures.values()
        self._failures[verb, name] = reason
        self._told.add(name)
        if status == FAILED or self.status == 0:
            self.status = status
        if is_new:
            out = sys.stderr if status == FAILED else sys.stdout
            print(text, file=out, flush=True)


def _stem(name: str) -> str:
    return name.removesuffix(".bin")
