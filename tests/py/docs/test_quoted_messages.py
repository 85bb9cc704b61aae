"""The tables of docs/reference/messages.md quote what both runtimes really log or raise."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import torch_tensorrt.logging
from tests.py.docs.closed_directory import closed_directory
from tests.util.servers.object_servers import environment_of_client
from tests.util.simulation.simulated_device import installed_device, relu_plan
from torch_tensorrt import _library
from torch_tensorrt.dynamo.runtime import TorchTensorRTModule
from torch_tensorrt.runtime import (
    RuntimeCache,
    RuntimeSettings,
    default_runtime_cache_path,
)
from torchtrt_cache.runtime_cache_file import accept_offer

DOCUMENT = Path(__file__).parents[3] / "docs" / "reference" / "messages.md"
CACHE = Path("cache.bin")
LOCK = Path("cache.bin.lock")


def quotations() -> list[str]:
    """The entries in the first columns of the tables that have several words."""
    return re.findall(r"^\| `([^` ]+ [^`]+)` +\|", DOCUMENT.read_text(), re.M)


def make_engine(
    cache: RuntimeCache, prefix: str = "a", kernels: int = 2
) -> TorchTensorRTModule:
    return TorchTensorRTModule(
        relu_plan(prefix, kernels),
        ["x"],
        ["y"],
        runtime_settings=RuntimeSettings(runtime_cache=cache),
        use_python_runtime=not cache.is_cpp_runtime(),
    )


def run_engine(cache: RuntimeCache) -> None:
    with installed_device():
        make_engine(cache)(torch.zeros(4))


def save_bytes(cache: RuntimeCache) -> None:
    cache.load_from_stream(io.BytesIO(b"kernels"))
    cache.save()


def load(cache: RuntimeCache) -> None:
    cache.load()


def save_twice(cache: RuntimeCache) -> None:
    save_bytes(cache)
    save_bytes(cache)


def save_twice_with_kernels(cache: RuntimeCache) -> None:
    run_engine(cache)
    cache.save()
    cache.save()


def load_and_save(cache: RuntimeCache) -> None:
    save_bytes(cache)
    cache.load()


def merge(cache: RuntimeCache) -> None:
    other = RuntimeCache(CACHE, use_python_runtime=not cache.is_cpp_runtime())
    with installed_device():
        make_engine(cache)(torch.zeros(4))
        make_engine(other, "b")(torch.zeros(4))
        other.save()
        cache.save()


def merge_in_vain(cache: RuntimeCache) -> None:
    other = RuntimeCache(CACHE, use_python_runtime=not cache.is_cpp_runtime())
    with installed_device():
        make_engine(cache)(torch.zeros(4))
        for prefix in "ab":
            make_engine(other, prefix)(torch.zeros(4))
    other.save()
    cache.save()


def saved_by_another(cache: RuntimeCache) -> None:
    run_engine(cache)
    CACHE.write_bytes(b"others")
    saving = threading.Thread(target=cache.save)
    with FileLock(f"{CACHE}.merge.lock"):
        saving.start()
        while not (offers := list(Path.cwd().glob("*.merge"))):
            time.sleep(0.01)
        accept_offer(str(offers[0]))
    saving.join()


def save_no_kernels(cache: RuntimeCache) -> None:
    with installed_device():
        make_engine(cache, kernels=0)(torch.zeros(4))
    cache.save()


def load_in_closed_directory(cache: RuntimeCache) -> None:
    CACHE.write_bytes(b"kernels")
    with closed_directory(Path.cwd()):
        cache.load()


def load_with_closed_lock(cache: RuntimeCache) -> None:
    LOCK.touch(0)
    load_in_closed_directory(cache)


def sweep(cache: RuntimeCache) -> None:
    Path("cache.bin.1-0123456789abcdef.tmp").write_bytes(b"torn")
    save_bytes(cache)


def cannot_read(cache: RuntimeCache) -> None:
    run_engine(RuntimeCache(use_python_runtime=not cache.is_cpp_runtime()))  # imports
    CACHE.write_bytes(b"kernels")
    CACHE.chmod(0)
    with closed_directory(Path.cwd()):
        run_engine(cache)


def cannot_write(cache: RuntimeCache) -> None:
    with closed_directory(Path.cwd()):
        save_bytes(cache)


def everybody_may_write(cache: RuntimeCache) -> None:
    CACHE.write_bytes(b"kernels")
    CACHE.chmod(0o666)
    run_engine(cache)


def no_directory(cache: RuntimeCache) -> None:
    use_python_runtime = not cache.is_cpp_runtime()
    save_bytes(RuntimeCache("missing/cache", use_python_runtime=use_python_runtime))


def lock_is_held(cache: RuntimeCache) -> None:
    cache._handle.lock_timeout = 0.1
    with FileLock(LOCK):
        save_bytes(cache)


def lock_is_a_link(cache: RuntimeCache) -> None:
    LOCK.symlink_to("elsewhere")
    save_bytes(cache)


def rejected(cache: RuntimeCache) -> None:
    CACHE.write_bytes(b"of another GPU")
    run_engine(cache)


def rejected_at_save(cache: RuntimeCache) -> None:
    run_engine(cache)
    CACHE.write_bytes(b"of another GPU")
    cache.save()


def rejected_at_saves(cache: RuntimeCache) -> None:
    with installed_device():
        for prefix in "abc":
            make_engine(cache, prefix)(torch.zeros(4))
            cache.save()
            CACHE.write_bytes(b"of another GPU")


def load_directory(cache: RuntimeCache) -> None:
    CACHE.mkdir()
    cache.load()


def cannot_merge(cache: RuntimeCache) -> None:
    use_python_runtime = not cache.is_cpp_runtime()
    other = RuntimeCache(CACHE, use_python_runtime=use_python_runtime)
    with installed_device() as device:
        device.set_deserialize_mode("replaces")
        make_engine(cache)(torch.zeros(4))
        make_engine(other, "b")(torch.zeros(4))
        other.save()
        cache.save()


def not_read_before(cache: RuntimeCache) -> None:
    CACHE.write_bytes(b"others")
    save_bytes(cache)


def cannot_replace(cache: RuntimeCache) -> None:
    CACHE.write_bytes(b"kernels, old")
    cache.load()  # makes the lock file
    with closed_directory(Path.cwd()):
        save_bytes(cache)


def run_path_engine(use_python_runtime: bool, place: Path | str = CACHE) -> None:
    """Runs an engine on the process's cache for a place."""
    with installed_device():
        settings = RuntimeSettings(runtime_cache=place)
        TorchTensorRTModule(
            relu_plan("a", 2),
            ["x"],
            ["y"],
            runtime_settings=settings,
            use_python_runtime=use_python_runtime,
        )(torch.zeros(4))


def end(cache: RuntimeCache) -> None:
    run_path_engine(not cache.is_cpp_runtime())


def in_new_process(call: str, **environment: str) -> None:
    program = f"from {__name__} import *\n{call}"
    environment = {**os.environ, **environment}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


def run_until_checkpoint(use_python_runtime: bool) -> None:
    cache = RuntimeCache(CACHE, True, use_python_runtime=use_python_runtime)
    with closed_directory(Path.cwd()), installed_device() as device:
        engine = make_engine(cache)
        engine(torch.zeros(4))
        serializations = device.calls("IRuntimeCache::serialize")
        while device.calls("IRuntimeCache::serialize") == serializations:
            time.sleep(0.01)
        cache.save()  # waits until the checkpoint has ended


def cannot_checkpoint(cache: RuntimeCache) -> None:
    CACHE.write_bytes(b"kernels, old")
    cache.load()  # makes the lock file
    # A checkpoint thread that is already running could write to a closed directory.
    in_new_process(f"run_until_checkpoint({not cache.is_cpp_runtime()})")


def no_time(cache: RuntimeCache) -> None:
    run_engine(cache)
    for _ in range(100):  # the thread may be so fast that a save succeeds
        cache._handle.save_within(0.0)


def busy(cache: RuntimeCache) -> None:
    run_engine(cache)
    saving = threading.Thread(target=cache.save)
    try:
        with FileLock(LOCK):
            saving.start()
            time.sleep(0.5)  # by then it waits for the lock
            cache._handle.save_within(2.0)
    finally:
        saving.join()


def unknown_switch(cache: RuntimeCache) -> None:
    # A process warns of it only once.
    in_new_process(
        f"run_path_engine({not cache.is_cpp_runtime()})",
        TORCHTRT_RUNTIME_CACHE_CHECKPOINTS="off",
    )


def store_refuses(cache: RuntimeCache) -> None:
    in_new_process(
        f"run_path_engine({not cache.is_cpp_runtime()}, 's3://bucket/kernels/')",
        **environment_of_client(port=1),
        LD_LIBRARY_PATH=str(Path(os.environ["FAKE_CUDA_DRIVER_LIBRARY"]).parent),
        FAKE_CUDA_GPU="NVIDIA L4",
    )


def no_default(cache: RuntimeCache) -> None:
    directory = Path("torch_tensorrt")
    directory.mkdir()
    directory.chmod(0o777)
    assert default_runtime_cache_path() is None


def no_library(cache: RuntimeCache) -> None:
    with pytest.MonkeyPatch.context() as context:
        context.setattr(_library, "_load", lambda: ImportError("missing"))
        assert _library.library_error.__wrapped__() is not None


def refused(cache: RuntimeCache) -> None:
    with installed_device() as device:
        device.fail("IRuntimeConfig::setRuntimeCache", 1)
        make_engine(cache)(torch.zeros(4))


# The key is a part of the quotation that no other quotation contains.
PROVOCATIONS: dict[str, Callable[[RuntimeCache], None] | None] = {
    "no runtime cache at": load,
    "Loaded": load_and_save,
    "Saved N bytes": save_bytes,
    "Merging": merge,
    "Another process": saved_by_another,
    "has all kernels": merge_in_vain,
    "no new kernels": save_twice_with_kernels,
    "bytes already": save_twice,
    "no kernels for": save_no_kernels,
    "directory is read-only": load_in_closed_directory,
    "lock file is closed": load_with_closed_lock,
    "Removed": sweep,
    "bytes now": end,
    "denied. Kernels will be": cannot_read,
    "Permission denied`": cannot_write,
    "everybody may write": everybody_may_write,
    "its group": None,  # tests/py/runtime/test_trust.py
    "it belongs to": None,  # tests/py/runtime/test_trust.py
    "No such file": no_directory,
    "No space left": None,  # tests/py/runtime/test_runtime_cache_file_places.py
    "another holder": lock_is_held,
    "not done within": no_time,
    "another load or save": busy,
    "symbolic link": lock_is_a_link,
    "They are not used": rejected,
    "They were replaced": rejected_at_save,
    "replaced again": rejected_at_saves,
    "is a directory": load_directory,
    "has grown": None,  # tests/py/runtime/test_directories.py
    "could not be merged": cannot_merge,
    "had not been read": not_read_before,
    "is written in place": cannot_replace,
    "only be written in place": cannot_checkpoint,
    "no thread can": None,  # tests/py/runtime/test_checkpoint_failures.py
    "expected 0 or 1": unknown_switch,
    "not in step": store_refuses,
    "no default": no_default,
    "takes the place": no_library,
    "without a runtime cache": refused,
}


def quotation_of(part: str) -> str:
    (found,) = [q for q in quotations() if part in q + "`"]
    return found


def test_every_row_is_known() -> None:
    assert [quotation_of(part) for part in PROVOCATIONS] == quotations()


@pytest.mark.parametrize("runtime", ["C++", "Python"])
@pytest.mark.parametrize("part", [p for p, how in PROVOCATIONS.items() if how])
def test_quotation(
    part: str,
    runtime: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caplog.set_level(logging.INFO)
    provoke = PROVOCATIONS[part]
    assert provoke
    error = ""
    try:
        with torch_tensorrt.logging.info():
            provoke(RuntimeCache(CACHE, use_python_runtime=runtime == "Python"))
    except RuntimeError as raised:
        error = str(raised)
    said = f"{caplog.text}\n{capfd.readouterr().err}\n{error}"
    words = re.escape(quotation_of(part)).replace(r"\.\.\.", ".+")
    assert re.search(re.sub(r"\d+|\bN\b", r"\\d+", words), said), said
