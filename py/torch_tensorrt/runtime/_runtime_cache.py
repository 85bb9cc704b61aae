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
import threading
import time
import weakref
from collections.abc import Callable, Iterator
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
from torch_tensorrt.runtime._cache.file_lock import (
    call_without_lock,
    deferred_calls,
)
from torch_tensorrt.runtime._cache.runtime_cache_file import RuntimeCacheFile
from torch_tensorrt.runtime._cache.runtime_cache_handle import RuntimeCacheHandle
from torch_tensorrt.runtime._cache.tensor_memory import memory_of, tensor_of

logger = logging.getLogger(__name__)

# Of both kinds of handle: path, bytes, and the files that have them.
_State = tuple[str, bytes, list[str]]

_CPP_HANDLE = "__torch__.torch.classes.tensorrt.RuntimeCacheHandle"

_EXIT_TIMEOUT = 10.0  # seconds


class _Handle(Protocol):
    """The surface of both handles: core/runtime/RuntimeCacheHandle.h has their contract."""

    lock_timeout: float

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


# The real path of a file's directory, its last component, and whether the cache is one of the
# Python runtime.
_Key = tuple[str, str, bool]


class _PathCaches:
    """This process's path caches. Thread-safe."""

    def __init__(self) -> None:
        # Reentrant because the garbage collector may end an engine anywhere.
        self._lock = threading.RLock()
        # Guarded by _lock.
        self.caches: weakref.WeakValueDictionary[_Key, RuntimeCache] = (
            weakref.WeakValueDictionary()
        )
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._lock.acquire,
                after_in_parent=self._lock.release,
                after_in_child=self._start_over,
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nothing waits in it: what the garbage collector ends there is saved after the block."""
        with deferred_calls(), self._lock:
            yield

    def find_or_make(
        self, path: str, use_python_runtime: bool
    ) -> tuple[RuntimeCache, bool]:
        """The cache, and whether it is new."""
        directory, name = os.path.split(path)
        key = (os.path.realpath(directory), name, use_python_runtime)
        with self.locked():
            cache = self.caches.get(key)
            if cache is not None:
                return cache, False
            cache = RuntimeCache.__new__(RuntimeCache)
            handle = _make_handle(path, use_python_runtime, is_path_cache=True)
            cache._init(handle, key)
            cache.autosave_on_del = True
            self.caches[key] = cache
            return cache, True

    def _start_over(self) -> None:
        """In a child of fork(), whose parent's caches belong to the parent's engines."""
        self.caches.clear()
        self._lock.release()


_path_caches = _PathCaches()


class RuntimeCache:
    """The kernels that TensorRT-RTX compiles at run time, and the file where processes share them.

    Any number of engines may use one, all of its own runtime. Until the first of them runs, the
    bytes that it was given wait in it; from then on each kernel that is compiled goes into it. The
    file holds TensorRT-RTX's own bytes, under the lock `<path>.lock`: a save adds what other
    processes saved meanwhile, and replaces the file at once.

    A `RuntimeCache` that is constructed is an object of its own, whatever other caches have its
    path. Where a path is given in the place of a cache (`RuntimeSettings`, the default of `load`
    and `compile`), it means this process's cache for that path: made on first use, shared by all
    engines of one runtime that name it, and saved when the last of them lets it go or when the
    interpreter exits. Two paths name one cache if the real paths of their directories and their
    last components are equal.

    Equal to itself alone. A pickled or copied cache carries path, bytes, kind of runtime and
    `autosave_on_del`; unpickled where there is no C++ runtime, it is one of the Python runtime. A
    copy of the process's cache for a path is that cache. Unpickled elsewhere it becomes the cache
    that the process there has for the path; its bytes are used only if that is new and the file is
    missing. A child of fork() starts without any cache for a path.

    Thread safety: any method from any thread, while engines run too. A process must not be forked
    while another thread loads or saves: the child's copy of the cache would stay locked.

    Args:
        path: The file, as it is written: relative to the working directory at the time of a load
            or save, and `~` is not expanded. Without one, `load` and `save` need their argument.
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
        if use_python_runtime is None:
            use_python_runtime = library_error() is not None
        path = checked_path(path, may_be_empty=True)
        self._init(_make_handle(path, use_python_runtime), None)
        self.autosave_on_del = autosave_on_del

    def _init(self, handle: _Handle, key: _Key | None) -> None:
        """`key`: that of a path cache, of which there is one in a process."""
        self._atexit_token: Callable[[], None] | None = None
        self._process = os.getpid()
        self._engines: set[_Engine] = set()
        self._handle = handle
        self._key = key
        self._has_ended = (
            False  # saved for the last time, unless it is a path cache and used again
        )

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

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._key is None:
            return super().__reduce_ex__(protocol)
        data = memory_of(self._handle.serialize()).tobytes()
        return _restore_path_cache, (self.path, data, not self.is_cpp_runtime())

    def __deepcopy__(self, memo: dict[int, Any]) -> RuntimeCache:
        if self._key is not None:
            return _path_caches.caches.get(self._key, self)
        copied = RuntimeCache.__new__(RuntimeCache)
        copied.__setstate__(self.__getstate__())
        return copied

    def __copy__(self) -> RuntimeCache:
        return self.__deepcopy__({})

    def __getstate__(self) -> dict[str, Any]:
        return {
            "handle": _state_of(self._handle),
            "is_cpp_runtime": self.is_cpp_runtime(),
            "autosave_on_del": self.autosave_on_del,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        use_python_runtime = not state["is_cpp_runtime"] or library_error() is not None
        self._init(_restore_handle(state["handle"], use_python_runtime), None)
        self.autosave_on_del = state["autosave_on_del"]

    def _attach(self, engine: _Engine) -> None:
        """An engine begins to use the cache."""
        with _path_caches.locked():
            self._engines.add(engine)
            if self._has_ended and self._key is not None:
                self._has_ended = False
                _attach_to(self._handle)
                self.autosave_on_del = True
                _path_caches.caches.setdefault(self._key, self)

    def _detach(self, engine: _Engine) -> None:
        """An engine, which has been released, lets the cache go.

        Saves a path cache that no other engine uses.
        """
        with _path_caches.locked():
            self._engines.discard(engine)
            if self._key is not None and not self._engines and not self._has_ended:
                self._has_ended = True
                self._autosave_if_enabled()
                # Only then, so that an engine made meanwhile does not load the file from before.
                call_without_lock(self._leave_table)

    def _leave_table(self) -> None:
        with _path_caches.locked():
            key = self._key
            if key and self._has_ended and _path_caches.caches.get(key) is self:
                del _path_caches.caches[key]

    def _save_if_autosaving(self) -> None:
        """Saves a cache of its own that an engine was switched away from."""
        if self._key is None and self._autosave_on_del:
            self._save_or_warn()

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
        with _path_caches.locked():
            if self._autosave_on_del:
                self._autosave_on_del = False
                self._has_ended = True
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
                if self._key is not None:
                    _detach_from(self._handle)
        except BaseException as error:  # of a signal, which nobody above could take
            self._warn(error)

    def _save_or_warn(self) -> None:
        """Saves a cache that has a path, in the process that owns it. An error is a warning."""
        try:
            if self._process == os.getpid() and self.path:
                self.save()
        except Exception as error:
            self._warn(error)

    def _warn(self, error: BaseException) -> None:
        # The messages of the C++ runtime begin with their place in the source.
        message = re.sub(r"^\[Error thrown at [^]]*\] ", "", str(error))
        if not isinstance(error, RuntimeError):  # one of ours says what failed
            name = type(error).__name__
            message = f"Can't save the runtime cache '{self.path}': {name}: {message}"
        with contextlib.suppress(Exception):  # of the user's log handlers
            logger.warning("%s", message)


def path_cache(path: str, *, use_python_runtime: bool) -> RuntimeCache:
    """This process's cache for the file at an absolute path.

    Raises:
        ImportError: The C++ runtime is asked for and can't be loaded.
    """
    return _path_caches.find_or_make(path, use_python_runtime)[0]


def _restore_path_cache(
    path: str, data: bytes, use_python_runtime: bool
) -> RuntimeCache:
    use_python_runtime |= library_error() is not None
    cache, is_new = _path_caches.find_or_make(path, use_python_runtime)
    if is_new and data and RuntimeCacheFile(path).is_empty():
        cache._handle.deserialize(tensor_of(data))
    return cache


_exit_deadline: float | None = None


def _autosave_at_exit(ref: weakref.ref[RuntimeCache]) -> None:
    global _exit_deadline
    cache = ref()
    if cache is not None:
        # All caches together wait for locks as long as one would alone.
        if _exit_deadline is None:
            _exit_deadline = time.monotonic() + _EXIT_TIMEOUT
        cache._handle.lock_timeout = max(0.0, _exit_deadline - time.monotonic())
        cache._autosave_if_enabled()


def _path_or_default(path: str | os.PathLike[str] | None) -> str:
    return "" if path is None else checked_path(path, may_be_empty=True)


def _make_handle(
    path: str, use_python_runtime: bool, *, is_path_cache: bool = False
) -> _Handle:
    if use_python_runtime:
        return RuntimeCacheHandle(path)
    if (error := library_error()) is not None:
        raise error.with_traceback(None)
    handle_class = torch.classes.tensorrt.RuntimeCacheHandle
    # A path cache is shared with engines that C++ code of this process has on that path.
    handle: _Handle = (handle_class.for_path if is_path_cache else handle_class)(path)
    _attach_to(handle)
    return handle


def _attach_to(handle: Any) -> None:
    """Keeps a C++ engine from saving the cache as the last one that uses it.

    It would hold the interpreter's lock as it waits for the file's.
    """
    if not isinstance(handle, RuntimeCacheHandle):
        handle.attach()


def _detach_from(handle: Any) -> None:
    if not isinstance(handle, RuntimeCacheHandle):
        handle.detach()


def _state_of(handle: Any) -> _State:
    """The state alone, without the class, which the process that unpickles it may not have.

    The bytes are no tensor in it: multiprocessing would share its memory, which is gone before a
    spawned process opens it, and `torch.load` would move it to where map_location says.
    """
    if isinstance(handle, RuntimeCacheHandle):
        path, data, files = handle.state
    else:
        (path, data, files, *_), _ = handle.__getstate__()
    return path, memory_of(data).tobytes(), files


def _restore_handle(state: _State, use_python_runtime: bool) -> _Handle:
    path, data, files = state
    tensor = tensor_of(data)
    if use_python_runtime:
        return RuntimeCacheHandle.from_state((path, tensor, files))
    script: Any = torch.ScriptObject.__new__(torch.ScriptObject)
    script.__setstate__(((path, tensor, files, True, True, False), _CPP_HANDLE))
    _attach_to(script)
    handle: _Handle = script
    return handle
