"""RuntimeCache: the kernels of one runtime cache, their file, and the save at the end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import multiprocessing
import multiprocessing.util
import os
import re
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import torch

from torch_tensorrt._library import library_error
from torch_tensorrt.runtime._cache.byte_streams import (
    Reader,
    Writer,
    read_all,
    write_all,
)
from torch_tensorrt.runtime._cache.checked_path import checked_path
from torch_tensorrt.runtime._cache.file_lock import call_without_lock
from torch_tensorrt.runtime._cache.runtime_cache_handle import (
    RuntimeCacheHandle,
    from_state,
)
from torch_tensorrt.runtime._cache.tensor_memory import memory_of, tensor_of

logger = logging.getLogger(__name__)

# Of both kinds of handle: path, bytes, the files that these came from or went to, and autosave.
_State = tuple[str, bytes, list[str], bool]

_CPP_HANDLE = "__torch__.torch.classes.tensorrt.RuntimeCacheHandle"


class _Handle(Protocol):
    """The surface of both handles: core/runtime/RuntimeCacheHandle.h has their contract."""

    autosave: bool

    @property
    def path(self) -> str: ...
    def serialize(self) -> torch.Tensor: ...
    def deserialize(self, data: torch.Tensor, /) -> None: ...
    def has_cache(self) -> bool: ...
    def load(self, path: str = "") -> int: ...
    def save(self, path: str = "") -> int: ...


class _Engine(Protocol):
    """An engine that uses a cache; see EngineSlot."""

    def release(self) -> None: ...


class RuntimeCache:
    """The kernels that TensorRT-RTX compiles at run time, and the file where processes share them.

    Any number of engines may use one, all of its own runtime. Until the first of them runs, the
    bytes that it was given wait in it; from then on each kernel that is compiled goes into it. The
    file holds TensorRT-RTX's own bytes, under the lock `<path>.lock`: a save adds what other
    processes saved meanwhile, and replaces the file at once.

    Equal to itself alone. A pickled or copied cache carries path, bytes, kind of runtime and
    `autosave_on_del`; unpickled where there is no C++ runtime, it is one of the Python runtime.

    Thread safety: any method from any thread, while engines run too. A process must not be forked
    while another thread loads or saves: the child's copy of the cache would stay locked.

    Args:
        path: The file, as it is written: relative to the working directory at the time of a load
            or save, and `~` is not expanded. Without one `load` and `save` need theirs.
        autosave_on_del: See the property.
        use_python_runtime: The runtime of the engines that are to use it: the Python one, or the
            C++ one. None takes the C++ one where its library can be loaded.

    Raises:
        TypeError: The path is neither a str nor an os.PathLike of one.
        ValueError: The path has a NUL in it or is not valid UTF-8.
        ImportError: The C++ runtime is asked for and can't be loaded.
    """

    _autosave_on_del = False
    _worker_token: multiprocessing.util.Finalize | None = None

    def __init__(
        self,
        path: str | os.PathLike[str] = "",
        autosave_on_del: bool = False,
        *,
        use_python_runtime: bool | None = None,
    ) -> None:
        self._atexit_token: Callable[[], None] | None = None
        self._process = os.getpid()
        self._engines: set[_Engine] = set()
        if use_python_runtime is None:
            use_python_runtime = library_error() is not None
        self._handle = _make_handle(
            checked_path(path, may_be_empty=True), use_python_runtime
        )
        self.autosave_on_del = autosave_on_del

    @property
    def path(self) -> str:
        """The file of `load` and `save` by default, empty if there is none."""
        return self._handle.path

    @property
    def autosave_on_del(self) -> bool:
        """Whether the cache saves itself, once: when it goes, or when the interpreter exits.

        What goes wrong then is a warning. Only the process that turned this on does it: a forked
        child that shall save a cache of its parent turns it on again, or calls `save`.
        """
        return self._autosave_on_del

    @autosave_on_del.setter
    def autosave_on_del(self, autosave: bool) -> None:
        self._drop_anchor()
        self._autosave_on_del = bool(autosave)
        if autosave:
            self._process = os.getpid()
            self._anchor()

    def is_cpp_runtime(self) -> bool:
        """Whether engines of the C++ runtime can use it; if not, those of the Python runtime."""
        return not isinstance(self._handle, RuntimeCacheHandle)

    def has_cache(self) -> bool:
        """Whether there are bytes, or an engine has run with it."""
        return self._handle.has_cache()

    def load(self, path: str | os.PathLike[str] | None = None) -> int:
        """Takes over the file's kernels and answers its size in bytes.

        0, and all stays as it is, if there is no such file, or an empty one, or TensorRT-RTX
        rejects it, which is a warning: it is damaged, or of another version, GPU or driver.

        Args:
            path: Another file than the cache's own.

        Raises:
            RuntimeError: The file can't be read or locked; there is no path.
            TypeError, ValueError: As for the constructor.
        """
        return self._handle.load(_path_or_default(path))

    def save(self, path: str | os.PathLike[str] | None = None) -> int:
        """Writes the kernels, with those that others saved, and answers how many bytes that is.

        0 if nothing was to be written: no kernels, or the file has them. A cache that no engine has
        used yet can't add to what others saved: it leaves their file alone if its bytes were
        loaded from it, and else replaces it, with a warning.

        Args:
            path: Another file than the cache's own.

        Raises:
            RuntimeError: The file can't be written, or locked within 10 s, and is as it was; there
                is no path.
            TypeError, ValueError: As for the constructor.
        """
        return self._handle.save(_path_or_default(path))

    def load_from_stream(self, stream: Reader) -> int:
        """Takes over what a binary stream has, to its end, and answers the number of bytes read.

        If that is 0, all stays as it is. Bytes that TensorRT-RTX rejects are a warning.

        Raises:
            TypeError: It is a text stream.
            BlockingIOError: It is a non-blocking one that has no bytes yet.
        """
        data = read_all(stream)
        if data:
            self._handle.deserialize(torch.frombuffer(data, dtype=torch.uint8))
        return len(data)

    def save_to_stream(self, stream: Writer) -> int:
        """Writes the bytes to a binary stream and answers their number.

        It neither flushes nor closes the stream.

        Raises:
            TypeError: It is a text stream.
            OSError: It takes no more bytes.
        """
        data = memory_of(self._handle.serialize()).toreadonly()
        write_all(stream, data)
        return len(data)

    def __repr__(self) -> str:
        return (
            f"RuntimeCache({self.path!r}, autosave_on_del={self.autosave_on_del}, "
            f"use_python_runtime={not self.is_cpp_runtime()})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {
            "handle": _state_of(self._handle),
            "is_cpp_runtime": self.is_cpp_runtime(),
            "autosave_on_del": self.autosave_on_del,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._atexit_token = None
        self._process = os.getpid()
        self._engines = set()
        use_python_runtime = not state["is_cpp_runtime"] or library_error() is not None
        self._handle = _restore_handle(state["handle"], use_python_runtime)
        self.autosave_on_del = state["autosave_on_del"]

    def __del__(self) -> None:
        try:
            self._autosave_if_enabled()
            self._drop_anchor()
        except BaseException:  # at shutdown even the globals above may be gone
            pass

    def _anchor(self) -> None:
        """Has the cache saved at exit, for it may still be alive when torch is no longer."""
        token = functools.partial(_autosave_at_exit, weakref.ref(self))
        self._atexit_token = atexit.register(token)
        if multiprocessing.parent_process() is not None:
            # Before CPython 3.13 a worker that was forked ends without atexit's functions.
            self._worker_token = multiprocessing.util.Finalize(
                None, token, exitpriority=0
            )

    def _drop_anchor(self) -> None:
        """Undoes `_anchor`, so that the registries grow with the caches there are."""
        if self._atexit_token is not None:
            atexit.unregister(self._atexit_token)
            self._atexit_token = None
        if self._worker_token is not None:
            self._worker_token.cancel()
            self._worker_token = None

    def _autosave_if_enabled(self) -> None:
        """Saves as `autosave_on_del` says, for `__del__` and for the exit. Raises nothing."""
        if self._autosave_on_del:
            self._autosave_on_del = False
            # The garbage collector may run this within another cache's save to the same file,
            # which would never go on while this waits for its lock.
            call_without_lock(self._autosave)

    def _autosave(self) -> None:
        try:
            if self._process == os.getpid():
                # First, so that what compiles in their background is saved too. In a reference
                # cycle they may outlive this object's finalizer.
                for engine in tuple(self._engines):
                    engine.release()
            self._save_or_warn()
        except BaseException as error:  # of a signal, which nobody above could take
            _warn(error)

    def _save_or_warn(self) -> None:
        """Saves a cache that has a path, in the process that owns it. An error is a warning."""
        try:
            if self._process == os.getpid() and self.path:
                self.save()
        except Exception as error:
            _warn(error)


def _autosave_at_exit(ref: weakref.ref[RuntimeCache]) -> None:
    cache = ref()
    if cache is not None:
        cache._autosave_if_enabled()


def _warn(error: BaseException) -> None:
    message = re.sub(r"^\[Error thrown at [^]]*\] ", "", str(error))
    if not message.startswith("Can't save the runtime cache"):
        message = f"Can't save a runtime cache: {type(error).__name__}: {message}"
    with contextlib.suppress(Exception):  # of the user's log handlers
        logger.warning("%s", message)


def _path_or_default(path: str | os.PathLike[str] | None) -> str:
    return "" if path is None else checked_path(path, may_be_empty=True)


def _make_handle(path: str, use_python_runtime: bool) -> _Handle:
    handle: _Handle
    if use_python_runtime:
        handle = RuntimeCacheHandle(path)
    else:
        if (error := library_error()) is not None:
            raise error.with_traceback(None)
        handle = torch.classes.tensorrt.RuntimeCacheHandle(path)
    # An engine that saves as it ends would hold the interpreter's lock as it waits for the file's.
    handle.autosave = False
    return handle


def _state_of(handle: Any) -> _State:
    """The state alone, without the class, which the process that unpickles it may not have.

    The bytes are no tensor in it: multiprocessing would share its memory, which is gone before a
    spawned process opens it, and `torch.load` would move it to where map_location says.
    """
    if isinstance(handle, RuntimeCacheHandle):
        _, (state,) = handle.__reduce__()
    else:
        state, _ = handle.__getstate__()
    path, data, stored_at, autosave = state
    return path, memory_of(data).tobytes(), stored_at, autosave


def _restore_handle(state: _State, use_python_runtime: bool) -> _Handle:
    path, data, stored_at, autosave = state
    handle_state = (path, tensor_of(data), stored_at, autosave)
    handle: _Handle
    if use_python_runtime:
        handle = from_state(handle_state)
    else:
        script: Any = torch.ScriptObject.__new__(torch.ScriptObject)
        script.__setstate__((handle_state, _CPP_HANDLE))
        handle = script
    return handle
