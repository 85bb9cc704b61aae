"""A path that is a directory has a file for each kind of machine, in both runtimes."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import torch_tensorrt
from tests.py.runtime.live_handles import (
    compile_into,
    kernels_in,
    kernels_on_disk,
    live,
    save_as_other,
)
from tests.py.runtime.programs import Programs
from tests.py.runtime.runtime_cache_testing import (
    Log,
    copy_of,
    handle_of,
    names_in,
    statistics_of,
    to_tensor,
)
from tests.py.runtime.runtime_testing import (
    make_cache,
    make_plan,
    run,
    start,
    start_and_save,
    uses_gpu,
    wait_until,
)
from tests.util.simulation.simulated_device import KIND, installed_device
from torch_tensorrt.logging import info
from torch_tensorrt.runtime import _runtime_cache as implementation
from torch_tensorrt.runtime import default_runtime_cache_path, runtime_cache

pytestmark = [
    pytest.mark.skipif(uses_gpu(), reason="simulates kinds of machine"),
    pytest.mark.usefixtures("without_checkpoints"),
]

NAME = KIND.file_name()
NEWER_NAME = replace(KIND, cuda_driver=13010).file_name()
OTHER_GPU = "NVIDIA L4"
OTHER_NAME = replace(KIND, gpu=OTHER_GPU).file_name()
OLD_NAME = f"runtime_cache-{KIND.tensorrt_rtx}.bin"
GIBIBYTE = 1 << 30


@pytest.fixture(autouse=True)
def device() -> Iterator[Any]:
    with installed_device() as device:
        yield device


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "caches"
    directory.mkdir()
    return directory


def files_in(directory: Path) -> set[str]:
    """The names of the files, without lock files."""
    return {name for name in names_in(directory) if not name.endswith(".lock")}


def save_with_driver(
    device: Any, runtime: str, directory: Path, driver: int, name: str
) -> Path:
    device.set_environment(cuda_driver=driver)
    path = directory / replace(KIND, cuda_driver=driver).file_name()
    save_as_other(runtime, path, name)
    return path


# Everywhere that a path is accepted.


def use_settings(runtime: str, directory: str) -> None:
    module = start(runtime, make_plan("a"), directory)
    del module


def use_default_of_a_cache(runtime: str, directory: str) -> None:
    cache = make_cache(runtime, directory)
    module = start(runtime, make_plan("a"), cache)
    cache.save()
    del module


def use_argument(runtime: str, directory: str) -> None:
    cache = make_cache(runtime)
    module = start(runtime, make_plan("b"), cache)
    cache.load(directory)
    del module
    module = start(runtime, make_plan("a"), cache)
    cache.save(directory)
    del module


def use_autosave(runtime: str, directory: str) -> None:
    cache = make_cache(runtime, directory, autosave=True)
    module = start(runtime, make_plan("a"), cache)
    del module, cache


def use_block(runtime: str, directory: str) -> None:
    plan = make_plan("a")
    module = start(runtime, plan, None)
    with runtime_cache(module, directory):
        run(module, plan)


@pytest.mark.parametrize("separator", ["", "/"])
@pytest.mark.parametrize(
    "use",
    [
        use_settings,
        use_default_of_a_cache,
        use_argument,
        use_autosave,
        use_block,
    ],
)
def test_every_path_may_be_a_directory(
    device: Any, runtime: str, directory: Path, separator: str, use: Any, log: Log
) -> None:
    use(runtime, f"{directory}{separator}")
    assert files_in(directory) == {NAME}
    written = (directory / NAME).stat().st_size
    device.reset_counters()
    use_settings(runtime, f"{directory}{separator}")
    assert device.counters()["compilations"] == 0
    use(runtime, f"{directory}{separator}")
    assert (directory / NAME).stat().st_size == written
    assert log.warnings() == []


# Kinds.


def test_each_kind_has_its_file(
    device: Any, runtime: str, other_runtime: str, directory: Path, log: Log
) -> None:
    live(runtime, directory, "a").save()
    device.set_environment(gpu=OTHER_GPU)
    live(other_runtime, directory, "b").save()
    assert kernels_on_disk(directory / OTHER_NAME) == ["b"]
    device.set_environment()
    assert kernels_on_disk(directory / NAME) == ["a"]

    live(other_runtime, directory, "a", "c").save()
    assert kernels_on_disk(directory / NAME) == ["a", "c"]
    assert files_in(directory) == {NAME, OTHER_NAME}
    assert log.warnings() == []


def test_the_first_start_with_a_newer_driver_is_warm(
    device: Any, runtime: str, directory: Path, log: Log
) -> None:
    older = save_with_driver(device, runtime, directory, 13000, "a")
    before = older.stat(), older.read_bytes()
    device.set_environment(cuda_driver=13010)
    device.reset_counters()
    ours = live(runtime, directory, "a")
    assert device.counters()["compilations"] == 0
    assert statistics_of(ours).loaded_from == str(older)
    compile_into(runtime, ours, "b")
    ours.save()
    newer = directory / NEWER_NAME
    assert kernels_on_disk(newer) == ["a", "b"]
    assert (older.stat().st_mtime_ns, older.read_bytes()) == (
        before[0].st_mtime_ns,
        before[1],
    )
    assert statistics_of(live(runtime, directory)).loaded_from == str(newer)
    assert log.warnings() == []


def test_a_start_without_new_kernels_copies_those_of_the_older_driver(
    device: Any, runtime: str, directory: Path
) -> None:
    save_with_driver(device, runtime, directory, 13000, "a")
    device.set_environment(cuda_driver=13010)
    assert live(runtime, directory).save() > 0
    assert kernels_on_disk(directory / NEWER_NAME) == ["a"]


def test_the_newest_of_the_older_drivers_is_loaded(
    device: Any, runtime: str, directory: Path
) -> None:
    newest = replace(KIND, cuda_driver=13100).file_name()
    for driver in (12090, 13000, 13020, 13100, 13110, 14000):
        save_with_driver(device, runtime, directory, driver, str(driver))
    device.set_environment(cuda_driver=13100)
    assert kernels_in(live(runtime, directory).serialize()) == ["13100"]
    (directory / newest).unlink()
    assert kernels_in(live(runtime, directory).serialize()) == ["13020"]


@pytest.mark.parametrize("driver", [12090, 14000])
def test_a_driver_of_another_major_version_starts_cold(
    device: Any, runtime: str, directory: Path, driver: int, log: Log
) -> None:
    save_with_driver(device, runtime, directory, driver, "a")
    device.set_environment()
    assert kernels_in(live(runtime, directory, "b").serialize()) == ["b"]
    assert log.warnings() == []


def test_the_file_of_the_old_default_is_adopted(
    runtime: str, directory: Path, log: Log
) -> None:
    save_as_other(runtime, directory / OLD_NAME, "a")
    ours = live(runtime, directory, "b")
    assert statistics_of(ours).loaded_from == str(directory / OLD_NAME)
    ours.save()
    assert kernels_on_disk(directory / OLD_NAME) == ["a"]
    assert kernels_on_disk(directory / NAME) == ["a", "b"]
    assert log.warnings() == []


def test_the_default_path_adopts_its_old_file(
    device: Any,
    runtime: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: Log,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    default = default_runtime_cache_path()
    assert default is not None
    plan = make_plan("a")
    start_and_save(runtime, Path(default, OLD_NAME), plan)
    file = tmp_path / "relu.engine"
    start(runtime, plan, None).save(file)
    device.reset_counters()
    module = torch_tensorrt.load(file, use_python_runtime=runtime == "python")
    run(module, plan)
    del module
    assert device.counters()["compilations"] == 0
    assert files_in(Path(default)) == {NAME, OLD_NAME}
    assert log.warnings() == []


def test_a_file_whose_name_fits_may_be_rejected(
    device: Any, runtime: str, directory: Path, log: Log
) -> None:
    device.set_environment(gpu=OTHER_GPU)
    size = save_as_other(runtime, directory / OLD_NAME, "a")
    device.set_environment()
    ours = live(runtime, directory, "b")
    (warning,) = log.warnings()
    assert f"the {size} bytes of the runtime cache '{directory / OLD_NAME}'" in warning
    ours.save()
    assert (directory / OLD_NAME).stat().st_size == size
    assert kernels_on_disk(directory / NAME) == ["b"]
    assert log.warnings() == []


def test_empty_files_count_as_missing(
    device: Any, runtime: str, directory: Path
) -> None:
    save_with_driver(device, runtime, directory, 13000, "a")
    device.set_environment(cuda_driver=13010)
    newer = directory / NEWER_NAME
    newer.touch()
    ours = live(runtime, directory)
    assert kernels_in(ours.serialize()) == ["a"]
    assert ours.save() > 0
    assert kernels_on_disk(newer) == ["a"]


def test_a_live_cache_loads_the_file_of_its_kind(
    runtime: str, directory: Path, log: Log
) -> None:
    size = save_as_other(runtime, directory / NAME, "b")
    ours = live(runtime, "", "a")
    with info():
        assert ours.load(f"{directory}/") == size
        assert kernels_in(ours.serialize()) == ["a", "b"]
        (directory / NAME).unlink()
        log.lines()
        assert ours.load(str(directory)) == 0
        assert log.lines() == [
            f"INFO: There is no runtime cache at '{directory / NAME}' yet"
        ]


# Devices of two kinds in one process.


def test_devices_of_two_kinds_have_a_file_each(
    device: Any, runtime: str, directory: Path, log: Log
) -> None:
    ours = live(runtime, directory, "a")
    with installed_device(is_second=True) as second:
        second.set_environment(gpu=OTHER_GPU)
        compile_into(runtime, ours, "b")
        assert kernels_in(ours.serialize()) == ["a"]
        sizes = statistics_of(ours).size
        written = ours.save()
        assert written == sizes == statistics_of(ours).size_added
        assert kernels_on_disk(directory / NAME) == ["a"]
        assert kernels_on_disk(directory / OTHER_NAME) == ["b"]
        assert files_in(directory) == {NAME, OTHER_NAME}
        assert ours.save() == 0
        compile_into(runtime, ours, "c")
        assert ours.save() == (directory / OTHER_NAME).stat().st_size
        assert kernels_on_disk(directory / NAME) == ["a"]
        assert kernels_on_disk(directory / OTHER_NAME) == ["b", "c"]
        del ours
    assert log.warnings() == []


def test_devices_of_two_kinds_start_warm(
    device: Any, runtime: str, directory: Path, log: Log
) -> None:
    size = save_as_other(runtime, directory / NAME, "a")
    device.set_environment(gpu=OTHER_GPU)
    size += save_as_other(runtime, directory / OTHER_NAME, "b")
    device.set_environment()
    ours = live(runtime, directory, "a")
    with installed_device(is_second=True) as second:
        second.set_environment(gpu=OTHER_GPU)
        compile_into(runtime, ours, "b")
        assert second.counters()["compilations"] == 0
        statistics = statistics_of(ours)
        assert (statistics.bytes_loaded, statistics.size) == (size, size)
        assert statistics.size_added == 0
        assert statistics.loaded_from == str(directory / OTHER_NAME)
        assert ours.load() == size
        assert ours.save() == 0
        del ours
    assert log.warnings() == []


def test_one_file_that_can_not_be_saved_costs_the_other_nothing(
    device: Any, runtime: str, directory: Path
) -> None:
    os.mkfifo(directory / OTHER_NAME)
    ours = live(runtime, directory, "a")
    with installed_device(is_second=True) as second:
        second.set_environment(gpu=OTHER_GPU)
        compile_into(runtime, ours, "b")
        with pytest.raises(RuntimeError, match="not a regular file"):
            ours.save()
        assert kernels_on_disk(directory / NAME) == ["a"]
        del ours


def test_each_file_that_can_not_be_saved_is_told(
    device: Any, runtime: str, directory: Path, log: Log
) -> None:
    ours = live(runtime, directory, "a")
    with installed_device(is_second=True) as second:
        second.set_environment(gpu=OTHER_GPU)
        compile_into(runtime, ours, "b")
        for name in (NAME, OTHER_NAME):
            os.mkfifo(directory / name)
        with pytest.raises(RuntimeError) as failure:
            ours.save()
        (warning,) = log.warnings()
        told = sorted([str(failure.value), warning], key=lambda text: NAME in text)
        assert OTHER_NAME in told[0] and NAME in told[1]
        del ours


def test_devices_of_one_kind_share_a_file(
    device: Any, runtime: str, directory: Path, log: Log
) -> None:
    ours = live(runtime, directory, "a")
    with installed_device(is_second=True):
        compile_into(runtime, ours, "b")
        ours.save()
        assert files_in(directory) == {NAME}
        assert kernels_on_disk(directory / NAME) == ["a", "b"]
        del ours
    assert log.warnings() == []


# Directories.


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_path_with_a_separator_is_made_a_directory(
    runtime: str, tmp_path: Path, umask: int
) -> None:
    path = tmp_path / "new"
    assert live(runtime, f"{path}/").save() == 0
    assert names_in(tmp_path) == set()
    before = os.umask(umask)
    try:
        assert live(runtime, f"{path}/", "a").save() > 0
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o775 & ~umask
    assert kernels_on_disk(path / NAME) == ["a"]


def test_one_directory_is_made_and_not_its_parents(
    runtime: str, tmp_path: Path
) -> None:
    ours = live(runtime, f"{tmp_path}/a/b/", "a")
    with pytest.raises(RuntimeError, match=f"Can't save the runtime cache '{tmp_path}"):
        ours.save()
    assert names_in(tmp_path) == set()


def test_a_directory_that_is_removed_is_made_again(
    runtime: str, directory: Path
) -> None:
    ours = live(runtime, directory, "a")
    shutil.rmtree(directory)
    assert ours.save() > 0
    assert kernels_on_disk(directory / NAME) == ["a"]


def test_no_directory_is_made_where_everybody_may_write(
    runtime: str, tmp_path: Path
) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(RuntimeError, match="everybody may write it"):
        live(runtime, f"{tmp_path}/new/", "a").save()
    assert names_in(tmp_path) == set()


def test_a_missing_path_without_a_separator_is_a_file(runtime: str, path: Path) -> None:
    assert live(runtime, path, "a").save() > 0
    assert kernels_on_disk(path) == ["a"]


def test_a_file_with_a_separator_is_no_directory(runtime: str, path: Path) -> None:
    path.write_bytes(b"mine")
    with pytest.raises(RuntimeError, match="Not a directory"):
        live(runtime, f"{path}/", "a").save()
    assert path.read_bytes() == b"mine"


@pytest.mark.parametrize("exists", [False, True])
def test_one_directory_is_one_path(runtime: str, directory: Path, exists: bool) -> None:
    link = directory.with_name("link")
    link.symlink_to(directory.parent)
    spellings = [f"{directory}/", f"{link}/caches/", f"{directory}/../caches//"]
    if exists:
        directory.with_name("direct").symlink_to(directory)
        spellings += [str(directory), f"{directory.parent}/direct", f"{link}/direct/"]
    else:
        directory.rmdir()
    caches = [
        implementation.path_cache(path, use_python_runtime=runtime == "python")
        for path in spellings
    ]
    assert len(set(caches)) == 1
    file = implementation.path_cache(
        f"{directory}/{NAME}", use_python_runtime=runtime == "python"
    )
    assert file not in caches


# With and without a GPU.

WITHOUT_GPU = pytest.mark.skipif(
    torch.cuda.is_available(), reason="this machine has a GPU"
)
WITH_FAKE_DRIVER = pytest.mark.skipif(
    "FAKE_CUDA_DRIVER_LIBRARY" not in os.environ, reason="only Bazel builds the driver"
)


def unknown(operation: str, path: Path) -> str:
    return (
        f"Can't {operation} the runtime cache '{path}': it is a directory with a file for each "
        "kind of machine, and the kind of this one is unknown: "
    )


@WITHOUT_GPU
def test_without_a_gpu_nothing_is_loaded_with_one_warning(
    runtime: str, directory: Path, log: Log
) -> None:
    save_as_other(runtime, directory / NAME, "a")
    pending = handle_of(runtime, directory)
    assert pending.load() == 0
    assert pending.load() == 0
    (warning,) = log.warnings()
    assert warning.startswith(f"WARNING: {unknown('load', directory)}")
    assert warning.endswith(". Kernels will be compiled anew")
    assert not pending.has_cache()
    assert pending.save() == 0
    # The engine's device determines the kind.
    assert kernels_in(compile_into(runtime, pending, "").serialize()) == ["a"]


@WITHOUT_GPU
def test_without_a_gpu_no_bytes_are_saved(runtime: str, directory: Path) -> None:
    pending = handle_of(runtime, directory)
    pending.deserialize(to_tensor(b"kernels"))
    with pytest.raises(RuntimeError) as failure:
        pending.save()
    assert unknown("save", directory) in str(failure.value)
    assert names_in(directory) == set()


def with_a_gpu(
    code: str, *arguments: object, gpu: str | None = OTHER_GPU, driver: str = "13000"
) -> str:
    """Runs the code in a process whose CUDA driver reports that GPU."""
    program = f"""
from tests.py.runtime.test_directories import *
with installed_device() as device:
    device.set_environment(gpu={OTHER_GPU!r}, os_family="linux")
    {code}
"""
    library = os.environ["FAKE_CUDA_DRIVER_LIBRARY"]
    environment = dict(
        os.environ,
        LD_LIBRARY_PATH=str(Path(library).parent),
        FAKE_CUDA_DRIVER=driver,
    )
    if gpu is not None:
        environment["FAKE_CUDA_GPU"] = gpu
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@WITH_FAKE_DRIVER
def test_a_pending_handle_uses_the_kind_of_the_gpu(
    device: Any, runtime: str, directory: Path
) -> None:
    device.set_environment(gpu=OTHER_GPU)
    size = save_as_other(runtime, directory / OTHER_NAME, "a")
    code = """
    _, runtime, directory, size = sys.argv
    pending = handle_of(runtime, directory)
    assert pending.load() == int(size)
    assert kernels_in(pending.serialize()) == ["a"]
    file = Path(directory, OTHER_NAME)
    assert statistics_of(pending).loaded_from == str(file)
    file.unlink()
    assert pending.save() == int(size)
    assert kernels_on_disk(file) == ["a"]
    """
    assert "WARNING" not in with_a_gpu(code, runtime, directory, size)


@WITH_FAKE_DRIVER
def test_a_pending_handle_leaves_a_newer_file_alone(
    device: Any, runtime: str, directory: Path
) -> None:
    device.set_environment(gpu=OTHER_GPU)
    save_as_other(runtime, directory / OTHER_NAME, "a")
    code = """
    _, runtime, directory = sys.argv
    pending = handle_of(runtime, directory)
    assert pending.load() > 0
    own = Path(directory, OTHER_NAME.replace("13.0", "13.1"))
    device.set_environment(gpu=OTHER_GPU, cuda_driver=13010)
    save_as_other(runtime, own, "b")
    assert pending.save() == 0
    assert kernels_on_disk(own) == ["b"]
    own.unlink()
    assert pending.save() > 0
    assert kernels_on_disk(own) == ["a"]
    """
    output = with_a_gpu(code, runtime, directory, driver="13010")
    assert "WARNING" not in output


@WITH_FAKE_DRIVER
@pytest.mark.parametrize("how", ["load", "copy"])
def test_bytes_of_one_kind_are_not_saved_for_another(
    runtime: str, directory: Path, how: str
) -> None:
    save_as_other(runtime, directory / NAME, "a")
    code = """
    _, runtime, directory, how = sys.argv
    device.set_environment()
    os.environ["FAKE_CUDA_GPU"] = "Simulated RTX GPU"
    pending = handle_of(runtime, directory)
    assert pending.load() > 0
    if how == "copy":
        pending = copy_of(pending)
    device.set_environment(gpu=OTHER_GPU)
    os.environ["FAKE_CUDA_GPU"] = OTHER_GPU
    save_as_other(runtime, Path(directory, OTHER_NAME), "b")
    assert pending.save() == 0
    assert kernels_on_disk(Path(directory, OTHER_NAME)) == ["b"]
    Path(directory, OTHER_NAME).unlink()
    assert pending.save() == 0
    assert not Path(directory, OTHER_NAME).exists()
    """
    assert "WARNING" not in with_a_gpu(code, runtime, directory, how)


@WITH_FAKE_DRIVER
def test_an_engine_on_another_gpu_than_the_current_starts_with_its_own_kernels(
    device: Any, runtime: str, directory: Path
) -> None:
    save_as_other(runtime, directory / NAME, "a")
    device.set_environment(gpu=OTHER_GPU)
    save_as_other(runtime, directory / OTHER_NAME, "b")
    code = """
    _, runtime, directory = sys.argv
    pending = handle_of(runtime, directory)
    assert pending.load() > 0
    assert kernels_in(pending.serialize()) == ["b"]
    device.set_environment()
    assert kernels_in(compile_into(runtime, pending, "").serialize()) == ["a"]
    """
    assert "WARNING" not in with_a_gpu(code, runtime, directory)


@WITH_FAKE_DRIVER
def test_a_driver_without_a_gpu_is_a_warning(runtime: str, directory: Path) -> None:
    code = """
    _, runtime, directory = sys.argv
    assert handle_of(runtime, directory).load() == 0
    """
    reason = "the CUDA driver's cuInit failed with 100. Kernels will be compiled anew"
    output = with_a_gpu(code, runtime, directory, gpu=None)
    assert output.count(f"{unknown('load', directory)}{reason}") == 1


# Copies.


def test_a_copy_of_a_live_cache_overwrites_nothing(
    runtime: str, directory: Path, log: Log
) -> None:
    ours = live(runtime, directory, "a")
    other = copy_of(ours)
    save_as_other(runtime, directory / NAME, "b")
    assert kernels_in(other.serialize()) == ["a"]
    compile_into(runtime, other, "").save()
    assert kernels_on_disk(directory / NAME) == ["a", "b"]
    assert log.warnings() == []


def test_an_unpickled_cache_of_the_user_has_path_and_bytes(
    runtime: str, directory: Path
) -> None:
    ours = make_cache(runtime, f"{directory}/")
    module = start(runtime, make_plan("a"), ours)
    other = pickle.loads(pickle.dumps(ours))
    assert other.path == f"{directory}/"
    assert other.has_cache()
    del module


@WITH_FAKE_DRIVER
@pytest.mark.parametrize("has_file", [False, True])
@pytest.mark.parametrize("gpu", [None, OTHER_GPU])
def test_an_unpickled_path_cache_has_bytes_where_its_kind_has_no_file(
    runtime: str, directory: Path, gpu: str | None, has_file: bool
) -> None:
    module = start(runtime, make_plan("a"), directory)
    cache = module.runtime_settings.runtime_cache
    assert copy.deepcopy(cache) is cache
    pickled = directory.parent / "pickled"
    pickled.write_bytes(pickle.dumps(cache))
    if has_file:
        (directory / OTHER_NAME).write_bytes(b"newer")
    is_used = gpu is not None and not has_file
    code = """
    _, pickled, is_used = sys.argv
    cache = pickle.loads(Path(pickled).read_bytes())
    assert cache.has_cache() == (is_used == "True")
    cache.autosave_on_del = False
    """
    with_a_gpu(code, pickled, is_used, gpu=gpu)


# The life and the end of a process.


def test_a_process_saves_to_a_directory_at_its_end(
    device: Any, runtime: str, directory: Path, programs: Programs
) -> None:
    code = 'module = start(runtime, make_plan("a"), directory)'
    program = programs.run(code, runtime=runtime, directory=f"{directory}/")
    assert program.outcome == (0, "", "")
    assert files_in(directory) == {NAME}
    device.reset_counters()
    use_settings(runtime, str(directory))
    assert device.counters()["compilations"] == 0


def test_a_process_that_is_killed_has_saved_to_a_directory(
    device: Any, runtime: str, directory: Path, programs: Programs
) -> None:
    code = 'module = start(runtime, make_plan("a"), directory)\nsay("ran")\ninput()'
    program = programs.start(code, runtime=runtime, directory=f"{directory}/")
    program.hear()
    wait_until((directory / NAME).exists)
    program.send(signal.SIGKILL)
    device.reset_counters()
    use_settings(runtime, str(directory))
    assert device.counters()["compilations"] == 0


def test_a_child_of_fork_has_a_cache_of_its_own_for_a_directory(
    device: Any, runtime: str, directory: Path, programs: Programs
) -> None:
    code = """
parent = start(runtime, make_plan("a"), directory)
if os.fork() == 0:
    assert not parent.runtime_settings.runtime_cache.has_cache()
    module = start(runtime, make_plan("b"), directory)
    del module
else:
    assert os.wait()[1] == 0
"""
    program = programs.run(code, runtime=runtime, directory=directory)
    assert program.outcome == (0, "", "")
    device.reset_counters()
    modules = [start(runtime, make_plan(name), directory) for name in "ab"]
    assert device.counters()["compilations"] == 0
    del modules


# Sizes.


def test_a_large_file_is_one_warning(runtime: str, path: Path, log: Log) -> None:
    path.touch()
    os.truncate(path, GIBIBYTE)
    pending = handle_of(runtime, path)
    assert pending.load() == GIBIBYTE
    assert log.warnings() == []
    os.truncate(path, GIBIBYTE + 1)
    for _ in range(2):
        assert pending.load() == GIBIBYTE + 1
    assert log.warnings() == [
        f"WARNING: The runtime cache '{path}' has grown to {GIBIBYTE + 1} bytes. TensorRT-RTX "
        "never removes kernels; remove the file to start anew"
    ]
