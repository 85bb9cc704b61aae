"""RuntimeCache: the kernels of one runtime cache, their file, and the save at the end."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import math
import multiprocessing
import multiprocessing.util
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from torch_tensorrt._errors import message_of
from torch_tensorrt._library import library_error
from torch_tensorrt.runtime._cache.byte_streams import (
    Reader,
    Writer,
    read_all,
    write_all,
)
from torch_tensorrt.runtime._cache.checked_path import checked_path, checked_place
from torch_tensorrt.runtime._cache.checkpoint_thread import checkpoint_thread
from torch_tensorrt.runtime._cache.exit_deadline import (
    EXIT_TIMEOUT,
    begin_exit,
    exit_deadline,
)
from torch_tensorrt.runtime._cache.forks import start_over_in_children
from torch_tensorrt.runtime._cache.remote_tier import (
    RemoteTier,
    end_all,
    push_all,
    remote_tier_of,
)
from torch_tensorrt.runtime._cache.runtime_cache_handle import (
    RuntimeCacheHandle,
    has_file,
)
from torch_tensorrt.runtime._cache.runtime_cache_statistics import (
    RuntimeCacheStatistics,
)
from torch_tensorrt.runtime._cache.tensor_memory import memory_of, tensor_of
from torchtrt_cache.cache_url import CacheURL, is_url
from torchtrt_cache.file_lock import (
    call_without_lock,
    deferred_calls,
)
from torchtrt_cache.kinds import is_directory

logger = logging.getLogger(__name__)

# The state of either kind of handle: path, bytes, and the files that contain them.
_State = tuple[str, bytes, list[str]]

_CPP_HANDLE = "__torch__.torch.classes.tensorrt.RuntimeCacheHandle"


class _Handle(Protocol):
    """The methods of both handles. core/runtime/RuntimeCacheHandle.h has their contract."""

    lock_timeout: float
    autosave: bool
    checkpoints: bool

    @property
    def path(self) -> str: ...
    def serialize(self) -> torch.Tensor: ...
    def deserialize(self, data: torch.Tensor, /) -> None: ...
    def merged(
        self, theirs: torch.Tensor, ours: torch.Tensor, file_name: str, /
    ) -> torch.Tensor: ...
    def has_cache(self) -> bool: ...
    def load(self, path: str = "") -> int: ...
    def save(self, path: str = "") -> int: ...
    def save_within(self, seconds: float, /) -> int: ...
    def statistics(self) -> RuntimeCacheStatistics | tuple[Any, ...]: ...


class _Engine(Protocol):
    """An engine that uses a cache: see `EngineSlot`."""

    def release(self) -> None: ...


# The real path of a file's directory and the file's name, or the real path of a directory or a URL,
# and "".
# Then whether the cache is one of the Python runtime.
_Key = tuple[str, str, bool]


class _PathCaches:
    """This process's path caches. Thread-safe."""

    def __init__(self) -> None:
        self._start_over()
        start_over_in_children(self)

    def _start_over(self) -> None:
        # Reentrant because the garbage collector may end an engine anywhere.
        self._lock = threading.RLock()
        # Guarded by _lock.
        self.caches: weakref.WeakValueDictionary[_Key, RuntimeCache] = (
            weakref.WeakValueDictionary()
        )

    def start_over_in_child(self) -> None:
        """Called in a child of fork(): the caches belong to the parent's engines."""
        self._start_over()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the lock in a block, which must not wait.

        Caches that the garbage collector ends in the block are saved after it.
        """
        with deferred_calls(), self._lock:
            yield

    def find_or_make(
        self, path: str, use_python_runtime: bool
    ) -> tuple[RuntimeCache, bool]:
        """Returns the cache, and whether it is new."""
        tier = None
        if is_url(path):
            tier = remote_tier_of(CacheURL.parse(path))
            key = (str(tier.url), "", use_python_runtime)
            path = tier.directory
        else:
            is_one = is_directory(path)
            directory, name = (path, "") if is_one else os.path.split(path)
            key = (os.path.realpath(directory), name, use_python_runtime)
        with self.locked():
            cache = self.caches.get(key)
            if cache is not None:
                return cache, False
            cache = RuntimeCache.__new__(RuntimeCache)
            handle = _make_handle(path, use_python_runtime, is_path_cache=True)
            cache._init(handle, key, tier)
            cache.autosave_on_del = True
            self.caches[key] = cache
            return cache, True


_path_caches = _PathCaches()

# The exit functions of the caches that save themselves: see RuntimeCache._anchor.
_anchors: set[functools.partial[None]] = set()


class RuntimeCache:
    """The kernels that TensorRT-RTX compiles at run time, and the file where processes share them.

    Any number of engines may use one cache, all of the cache's own runtime. Until the first of them
    runs, the cache holds the bytes that it was given. After that, each kernel that is compiled goes
    into the cache. The file holds TensorRT-RTX's own bytes, under the lock `<path>.lock`. A save
    adds the kernels that other processes saved meanwhile, and replaces the file atomically.

    A path that is a directory, or ends in a separator, means the file in it for this kind of
    machine: GPU, TensorRT-RTX, operating system and CUDA driver. So machines of several kinds can
    share one path. After an upgrade of the driver, a start loads the file of the newest older
    driver with the same major version. The kind is that of the devices of the engines or, before
    the first of them has run, of the current CUDA device. If the kind is unknown, such as without a
    GPU, nothing is loaded, a warning is logged once, and a save of bytes raises. Asking for the
    current device counts as a use of CUDA, so a process must fork before that.

    A path may also be a URL, `s3://BUCKET/PREFIX/` (or gs://, az://), as `CacheURL.parse` accepts
    it. Then the files are in a directory of this machine, the local tier, which a thread keeps in
    step with the objects under the URL. The first engine that uses the cache waits up to 15 s for
    kernels that others uploaded. If the store fails, a warning is logged and the exchange of
    kernels is delayed, but none are lost.

    The constructor makes a separate cache, even if other caches have its path. A path in the place
    of a cache (in `RuntimeSettings`, and the default of `load` and `compile`) means this process's
    cache for that path. It is made on first use, shared by all engines of one runtime that name it,
    and saved when the last of them lets it go or when the interpreter exits. Two paths name the
    same cache if the real paths of their directories and their last components are equal, or if
    both lead to the same directory.

    A cache that saves itself, which is one for a path or one with `autosave_on_del`, is also saved
    while its process runs, by a background thread. So a process that is killed loses little: each
    kernel that an engine's caller waited for is saved within 3 s, or within 101 times the duration
    of the last such checkpoint if that is longer. Checkpoints write a file only if they can replace
    it. The environment variable TORCHTRT_RUNTIME_CACHE_CHECKPOINTS=0 turns them off.

    A cache is equal only to itself. A pickle or copy has the path, the bytes, the kind of runtime,
    `autosave_on_del` and `checkpoints`. If there is no C++ runtime where it is unpickled, it
    becomes a cache of the Python runtime. A copy of the process's cache for a path is that same
    cache. Unpickled in another process, it becomes that process's cache for the path, and its bytes
    are used only if that cache is new and the file is missing. For a directory, the kind of the
    machine must be known there and its file must be missing.

    A process may fork at any moment. The child starts without any cache for a path. A cache that it
    inherited is empty there if an engine has used it, and does not save itself.

    Thread safety: any method may be called from any thread, also while engines run.

    Args:
        path: The file or directory as written, or a URL. A relative path is relative to the working
            directory at the time of a load or save. `~` is not expanded. If it is empty, `load` and
            `save` need an argument.
        autosave_on_del: See the property.
        checkpoints: See the property.
        use_python_runtime: Whether the engines that use it run on the Python runtime or on the C++
            runtime. None selects the C++ runtime if its library can be loaded.

    Raises:
        TypeError: The path is neither a str nor an os.PathLike of one.
        ValueError: The path contains a NUL character, is not valid UTF-8, or is not the URL of a
            cache.
        ImportError: The C++ runtime is requested and can't be loaded, or the path is a URL and the
            extra `fleet` is not installed. Unpickling raises the latter too.
    """

    _autosave_on_del = False
    _worker_token: multiprocessing.util.Finalize | None = None

    def __init__(
        self,
        path: str | os.PathLike[str] = "",
        autosave_on_del: bool = False,
        *,
        checkpoints: bool = True,
        use_python_runtime: bool | None = None,
    ) -> None:
        if use_python_runtime is None:
            use_python_runtime = library_error() is not None
        path = checked_place(path, may_be_empty=True)
        tier = remote_tier_of(CacheURL.parse(path)) if is_url(path) else None
        handle = _make_handle(tier.directory if tier else path, use_python_runtime)
        self._init(handle, None, tier)
        self.checkpoints = checkpoints
        self.autosave_on_del = autosave_on_del

    def _init(self, handle: _Handle, key: _Key | None, tier: RemoteTier | None) -> None:
        """`key` identifies a path cache, of which a process has only one. Otherwise it is None."""
        self._atexit_token: functools.partial[None] | None = None
        self._process = os.getpid()
        self._engines: set[_Engine] = set()
        self._handle = handle
        handle.autosave = key is not None
        self._key = key
        self._tier = tier
        if tier is not None:
            tier.add(self)
        self._last_warning = -math.inf  # by time.monotonic()
        self._has_ended = (
            False  # saved for the last time, unless it is a path cache and used again
        )

    @property
    def path(self) -> str:
        """The default path or URL of `load` and `save`, as it was given. Empty if there is none."""
        return self._handle.path if self._tier is None else str(self._tier.url)

    @property
    def autosave_on_del(self) -> bool:
        """Whether the cache saves itself while it is used, when it is deleted, and at exit.

        A failure is logged as a warning. All saves at interpreter exit together take 8 s at most.
        Only the process that turned this on saves the cache. To save an inherited cache, a forked
        child must turn it on again or call `save`.
        """
        return self._autosave_on_del

    @autosave_on_del.setter
    def autosave_on_del(self, autosave: bool) -> None:
        self._drop_anchor()
        if autosave:
            if self._is_inherited():
                _attach_to(self._handle)  # a forked child's handle forgets it
            self._process = os.getpid()
            self._anchor()
        self._autosave_on_del = self._handle.autosave = bool(autosave)

    @property
    def checkpoints(self) -> bool:
        """Whether a cache that saves itself is also saved while its process runs."""
        return self._handle.checkpoints

    @checkpoints.setter
    def checkpoints(self, checkpoints: bool) -> None:
        self._handle.checkpoints = bool(checkpoints)

    def is_cpp_runtime(self) -> bool:
        """Whether engines of the C++ runtime can use it. If not, those of the Python one can."""
        return not isinstance(self._handle, RuntimeCacheHandle)

    def has_cache(self) -> bool:
        """Whether there are bytes, or an engine has run with it."""
        return self._handle.has_cache()

    def load(self, path: str | os.PathLike[str] | None = None) -> int:
        """Takes the kernels of the file and returns its size in bytes.

        Returns 0 and changes nothing if the file is missing or empty, or if TensorRT-RTX rejects
        it. TensorRT-RTX rejects a file that is damaged, or from another version, GPU or driver. The
        rejection is logged as a warning.

        Args:
            path: Another file or directory than the cache's own.

        Raises:
            RuntimeError: The file can't be read or locked, or there is no path.
            TypeError, ValueError: As for the constructor.
        """
        if path is None:
            self._wait_until_fetched()
        return self._handle.load(_path_or_default(path))

    def save(self, path: str | os.PathLike[str] | None = None) -> int:
        """Writes the kernels, merged with those that others saved.

        A cache that no engine has used yet can't merge. If its bytes were loaded from the file, it
        leaves a newer file as it is. Otherwise it replaces the file and logs a warning. A path
        that ends in a separator is created as a directory, if its parent exists.

        If others replace an earlier save of this cache with bytes that TensorRT-RTX rejects, the
        save overwrites them. If that happens again, two kinds of machine share the path. The cache
        logs a warning and leaves the file alone.

        If the path is a URL, writes the local tier's file. The upload follows in the background.

        Args:
            path: Another file or directory than the cache's own.

        Returns:
            The number of bytes written, 0 if there are no kernels or the file already has them all.

        Raises:
            RuntimeError: The file can't be written, or can't be locked within 10 s, and is
                unchanged. Or there is no path, or the path is a directory and the kind of machine
                is unknown. When the interpreter exits, all saves to own paths end within 8 s.
            TypeError, ValueError: As for the constructor.
        """
        if path is None:
            self._begin_to_fetch()  # the same thread uploads
        deadline = exit_deadline()
        if path is None and deadline < math.inf:
            return self._handle.save_within(max(0.0, deadline - time.monotonic()))
        return self._handle.save(_path_or_default(path))

    def statistics(self) -> RuntimeCacheStatistics:
        """Returns what the cache has done since it was made. Serializes the kernels for their size.

        A cache that saves itself logs the statistics at its end, in one line at level info.
        """
        values = self._handle.statistics()
        if isinstance(values, RuntimeCacheStatistics):
            return values
        *others, last_save_time = values
        return RuntimeCacheStatistics(*[*others, last_save_time or None])

    def load_from_stream(self, stream: Reader) -> int:
        """Takes the bytes of a binary stream, to its end, and returns the number of bytes read.

        If that is 0, the cache is unchanged. If TensorRT-RTX rejects the bytes, logs a warning.

        Raises:
            TypeError: It is a text stream.
            BlockingIOError: It is a non-blocking stream that has no bytes yet.
        """
        data = read_all(stream)
        if data:
            self._handle.deserialize(torch.frombuffer(data, dtype=torch.uint8))
        return len(data)

    def save_to_stream(self, stream: Writer) -> int:
        """Writes the bytes to a binary stream and returns their number.

        Neither flushes nor closes the stream.

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
        use_python_runtime = not self.is_cpp_runtime()
        arguments = self.path, data, use_python_runtime, self.checkpoints
        return _restore_path_cache, arguments

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
            "url": self.path if self._tier else None,
            "is_cpp_runtime": self.is_cpp_runtime(),
            "autosave_on_del": self.autosave_on_del,
            "checkpoints": self.checkpoints,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        use_python_runtime = not state["is_cpp_runtime"] or library_error() is not None
        url = state.get("url")  # missing in older pickles
        tier = None
        path, data, files = state["handle"]
        if url is not None:
            tier = remote_tier_of(CacheURL.parse(url))
            path = tier.directory
        handle = _restore_handle((path, data, files), use_python_runtime)
        self._init(handle, None, tier)
        self.checkpoints = state["checkpoints"]
        self.autosave_on_del = state["autosave_on_del"]

    def _begin_to_fetch(self) -> None:
        """If the place is a URL, begins to fetch what an engine can start with."""
        if self._tier is not None:
            self._tier.begin()

    def _wait_until_fetched(self) -> None:
        if self._tier is not None:
            self._tier.wait_until_fetched()

    def _attach(self, engine: _Engine) -> None:
        """Must be called when an engine starts using the cache."""
        with _path_caches.locked():
            self._engines.add(engine)
            if self._has_ended and self._key is not None:
                self._has_ended = False
                _attach_to(self._handle)
                self.autosave_on_del = True
                _path_caches.caches.setdefault(self._key, self)

    def _detach(self, engine: _Engine) -> None:
        """Must be called when an engine, which has been released, stops using the cache.

        Saves a path cache that no other engine uses.
        """
        with _path_caches.locked():
            self._engines.discard(engine)
            if self._key is not None and not self._engines and not self._has_ended:
                self._has_ended = True
                self._autosave_if_enabled()
                # After the save, so that an engine made meanwhile does not load the old file.
                call_without_lock(self._leave_table)

    def _leave_table(self) -> None:
        with _path_caches.locked():
            key = self._key
            if key and self._has_ended and _path_caches.caches.get(key) is self:
                del _path_caches.caches[key]

    def _save_if_autosaving(self) -> None:
        """Saves a cache that is not a path cache, after an engine was switched away from it."""
        if self._key is None and self._autosave_on_del:
            self._save_or_warn()

    def __del__(self) -> None:
        try:
            self._autosave_if_enabled()
            self._drop_anchor()
        except BaseException:  # at shutdown even the globals above may be gone
            pass

    def _anchor(self) -> None:
        """Registers a save at exit, because the cache may outlive torch."""
        token = functools.partial(_autosave_at_exit, weakref.ref(self))
        atexit.register(token)
        self._atexit_token = token
        _anchors.add(token)
        if multiprocessing.parent_process() is not None:
            # Before CPython 3.13, a forked worker ends without calling atexit's functions.
            self._worker_token = multiprocessing.util.Finalize(
                None, token, exitpriority=0
            )

    def _drop_anchor(self) -> None:
        """Undoes `_anchor`, so that the registries only have the caches that exist."""
        if self._atexit_token is not None:
            atexit.unregister(self._atexit_token)
            _anchors.discard(self._atexit_token)
            self._atexit_token = None
        if self._worker_token is not None:
            self._worker_token.cancel()
            self._worker_token = None

    def _autosave_if_enabled(self) -> None:
        """Saves if `autosave_on_del` is on, for `__del__` and for the exit. Raises nothing."""
        with _path_caches.locked():
            if self._autosave_on_del:
                self._autosave_on_del = False
                # A path cache stays on, because C++ code may still use its handle.
                if self._key is None or exit_deadline() < math.inf:
                    self._handle.autosave = False
                self._has_ended = True
                # The garbage collector may run this during another cache's save to the same file.
                # That save could not continue while this one waited for its lock.
                call_without_lock(self._autosave)

    def _autosave(self) -> None:
        try:
            if not self._is_inherited():
                # Released first, so that kernels that compile in the background are saved too. In a
                # reference cycle, engines may outlive this object's finalizer.
                for engine in tuple(self._engines):
                    engine.release()
                self._save_or_warn()
                if self._key is not None:
                    _detach_from(self._handle)
                self._log_statistics()
        except BaseException as error:  # also of a signal handler: no caller expects it
            self._warn(error)

    def _save_or_warn(self, deadline: float = math.inf) -> None:
        """Saves a cache that has a path, in the process that owns it. Logs an error as a warning.

        The deadline, by time.monotonic(), limits the whole save.
        """
        try:
            if self._is_inherited() or not self.path:
                return
            if deadline < math.inf:
                self._handle.save_within(max(0.0, deadline - time.monotonic()))
            else:
                self.save()
        except Exception as error:
            self._warn(error)

    def _log_statistics(self) -> None:
        if self.path and self.has_cache() and logger.isEnabledFor(logging.INFO):
            s = self.statistics()
            logger.info(
                "The runtime cache '%s': %d bytes loaded, %d bytes now, %d of them new; %d saves "
                "and %d checkpoints wrote %d bytes; %d merges, %d conflicts, %d rejections; %.3f s "
                "of waiting for locks",
                self.path,
                s.bytes_loaded,
                s.size,
                s.size_added,
                s.saves,
                s.checkpoints,
                s.bytes_written,
                s.merges,
                s.conflicts,
                s.rejections,
                s.lock_wait,
            )

    def _warn(self, error: BaseException) -> None:
        message = message_of(error)
        if not isinstance(error, RuntimeError):  # which already says what failed
            name = type(error).__name__
            message = f"Can't save the runtime cache '{self.path}': {name}: {message}"
        # One warning is enough at the end of a process, which may try to save twice.
        is_known = self._last_warning > exit_deadline() - EXIT_TIMEOUT
        self._last_warning = time.monotonic()
        with contextlib.suppress(Exception):  # exceptions of the user's log handlers
            logger.log(logging.INFO if is_known else logging.WARNING, "%s", message)

    def _is_inherited(self) -> bool:
        """Whether the cache belongs to a process that forked this one."""
        return self._process != os.getpid()

    def _of_this_process(self) -> RuntimeCache:
        """Returns this cache, or this process's cache for the path if this is the parent's."""
        if self._key is None or not self._is_inherited():
            return self
        use_python_runtime = not self.is_cpp_runtime()
        cache, is_new = _path_caches.find_or_make(self.path, use_python_runtime)
        if is_new:
            cache.checkpoints = self.checkpoints
        return cache


def path_cache(path: str, *, use_python_runtime: bool) -> RuntimeCache:
    """Returns this process's cache for an absolute path.

    Raises:
        ImportError: The C++ runtime is requested and can't be loaded.
    """
    return _path_caches.find_or_make(path, use_python_runtime)[0]


def save_all_within(seconds: float) -> None:
    """Saves the caches that save themselves, on the checkpoint threads. Logs errors as warnings."""
    deadline = time.monotonic() + seconds
    for anchor in tuple(_anchors):
        cache: RuntimeCache | None = anchor.args[0]()
        if cache is not None:
            cache._save_or_warn(deadline)
    push_all(deadline)


def _restore_path_cache(
    path: str, data: bytes, use_python_runtime: bool, checkpoints: bool
) -> RuntimeCache:
    use_python_runtime |= library_error() is not None
    cache, is_new = _path_caches.find_or_make(path, use_python_runtime)
    if is_new:
        cache.checkpoints = checkpoints
        if data and not has_file(cache._handle.path):
            cache._handle.deserialize(tensor_of(data))
    return cache


def _autosave_at_exit(ref: weakref.ref[RuntimeCache]) -> None:
    cache = ref()
    if cache is not None:
        begin_exit()
        cache._autosave_if_enabled()


@atexit.register  # registered now, so that it runs after the exit functions of all caches
def _end() -> None:
    deadline = begin_exit()
    checkpoint_thread.stop(deadline)
    end_all(deadline)


def _path_or_default(path: str | os.PathLike[str] | None) -> str:
    checked = "" if path is None else checked_path(path, may_be_empty=True)
    if is_url(checked):
        raise ValueError(
            f"load() and save() take a path, got {checked!r}. For a URL, use RuntimeCache(url)"
        )
    return checked


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
    """Keeps the last C++ engine that uses the cache from saving it.

    That engine would hold the interpreter's lock while it waits for the file's lock.
    """
    if not isinstance(handle, RuntimeCacheHandle):
        handle.attach()


def _detach_from(handle: Any) -> None:
    if not isinstance(handle, RuntimeCacheHandle):
        handle.detach()


def _state_of(handle: Any) -> _State:
    """Returns the state without the class, which may be missing in the process that unpickles it.

    The bytes are not a tensor: multiprocessing would share its memory, which is gone before a
    spawned process opens it, and `torch.load` would move it as `map_location` says.
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
