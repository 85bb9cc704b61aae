"""Runs the tutorial and the how-to guides, as a reader would, and compares the output.

Python blocks share one namespace. Those that begin with `# NAME.py` become files, which the shell
blocks run. All blocks share one directory. A text block is the output of the block before it; its
numbers may differ.

There may be no GPU. Once the guide has compiled a real engine, a plan of the simulated device
replaces it in the file, and tensors stay on the CPU.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tensorrt_rtx

import torch_tensorrt
import torch_tensorrt.logging
from tests.py.docs.markdown_blocks import Block, read_blocks, run_python
from tests.util.servers.object_servers import MotoServer, environment_of_client
from tests.util.simulation.simulated_device import installed_device, relu_plan
from torch_tensorrt.dynamo.runtime import TorchTensorRTModule
from torchtrt_cache.store_process import StoreProcess

DOCS = Path(__file__).parents[3] / "docs"
# The pages whose blocks are run, in this order.
GUIDE = [
    "tutorial.md",
    "how-to/several-gpus.md",
    "how-to/server.md",
    "how-to/several-users.md",
    "how-to/settings.md",
    "how-to/container-image.md",
    "how-to/fleet.md",
    "how-to/cpp.md",
    "reference/messages.md",
]
ENGINE = Path("filter.engine")
SHAPE = (1, 3, 224, 224)
DEADLINE = 240  # seconds
COMPILE_TIME = 0.02  # seconds per kernel

# Gives the simulated device to every Python that the guide starts.
SITE = f"""
import atexit
from tests.util.simulation.simulated_device import installed_device
scope = installed_device()
scope.__enter__().set_compile_time({COMPILE_TIME})
atexit.register(scope.__exit__, None, None, None)
"""

DRIVER = Path(os.environ["FAKE_CUDA_DRIVER_LIBRARY"])

# The wheel's command `torchtrt-cache`, on a machine with an L4.
COMMAND = f"""#!/bin/sh
export LD_LIBRARY_PATH="{DRIVER.parent}"
export FAKE_CUDA_GPU="NVIDIA L4"
exec "{sys.executable}" -m torchtrt_cache "$@"
"""


def put_caches(directory: Path) -> None:
    """Writes the files that processes on this machine left before and after a driver upgrade."""
    directory.mkdir()
    version = tensorrt_rtx.__version__
    for driver, hours in (("12.8", 2400), ("13.0", 3)):
        name = f"nvidia-l4-sm89-rtx{version}-linux-driver{driver}.bin"
        then = time.time() - hours * 3600
        for path, size in ((directory / name, 16850), (directory / f"{name}.lock", 0)):
            path.write_bytes(bytes(size))
            os.utime(path, (then, then))


class Reader:
    """A reader who follows the guide in the current directory."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd
        self._namespace: dict[str, object] = {}
        self._files_not_run: set[str] = set()
        self._output = ""
        self._has_simulated_plan = False
        self.done: list[str] = []  # what was done with each block
        Path("bin").mkdir()
        python = Path("bin", "python")
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        command = Path("bin", "torchtrt-cache")
        command.write_text(COMMAND)
        command.chmod(0o755)
        Path("site").mkdir()
        Path("site", "sitecustomize.py").write_text(SITE)

    def follow(self, block: Block) -> None:
        text = block.text.replace('"cuda"', '"cpu"')
        name = re.match(r"# (\w+\.py)\n", text)
        if block.reason_not_to_run:
            self.done.append(f"not run: {block.reason_not_to_run}")
        elif block.language == "python" and name:
            Path(name[1]).write_text(text)
            self._files_not_run.add(name[1])
            self.done.append("written")
        elif block.language == "python":
            self._run_python(block, text)
            self.done.append("run")
        elif block.language == "sh":
            self._run_shell(block, text)
            self.done.append("run")
        elif block.language == "text":
            self._compare(block)
            self.done.append("compared")
        else:
            pytest.fail(f"{block.place}: unknown language {block.language}")

    def finish(self) -> None:
        assert not self._files_not_run
        store = StoreProcess("s3://my-bucket/kernels/")
        assert store.names() != []
        store.close()
        self._namespace.clear()

    def _run_python(self, block: Block, text: str) -> None:
        self._capfd.readouterr()
        run_python(replace(block, text=text), self._namespace)
        out, err = self._capfd.readouterr()
        self._output = err + out

    def _run_shell(self, block: Block, text: str) -> None:
        here = Path.cwd()
        path = [str(here / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
        run = subprocess.run(
            ["sh", "-e", "-c", text],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
            env={
                **os.environ,
                "PATH": f"{here / 'bin'}:{os.environ['PATH']}",
                "PYTHONPATH": os.pathsep.join(path),
                "PYTHONUNBUFFERED": "1",
            },
        )
        self._output = run.stdout
        assert run.returncode == 0, f"{block.place}: {run.stdout}"
        assert "WARNING" not in run.stdout and "Traceback" not in run.stdout, run.stdout
        self._files_not_run -= set(re.findall(r"\w+\.py\b", text))
        if ENGINE.exists() and not self._has_simulated_plan:
            self._simulate_plan()

    def _simulate_plan(self) -> None:
        real = torch_tensorrt.load(ENGINE)
        assert real.serialized_engine is not None
        plan = relu_plan("filter", kernels=16, dims=SHAPE)
        module = TorchTensorRTModule(plan, ["x"], ["y"], name=real.name)
        module.save(ENGINE)
        self._has_simulated_plan = True

    def _compare(self, block: Block) -> None:
        rest = self._output
        for line in block.text.splitlines():
            pattern = re.sub(r"\d[\d.,:]*", r"\\d[\\d.,:]*", re.escape(line))
            pattern = pattern.replace("/home/me/\\.cache", r"\S*")
            pattern = pattern.replace("/home/me/filter", re.escape(str(Path.cwd())))
            # A container, such as a test's sandbox, may have holders outside that it can't see.
            pattern = re.sub("free$", "(free|no holder found.*)", pattern)
            # The columns of a table are only as wide as needed.
            pattern = re.sub(r"(\\ ){2,}", " +", pattern)
            match = re.search(f"^{pattern}$", rest, re.M)
            assert match, f"{block.place}: no {line!r} in\n{self._output}"
            rest = rest[match.end() :]


def test_every_how_to_guide_is_run() -> None:
    pages = {str(page.relative_to(DOCS)) for page in DOCS.glob("how-to/*.md")}
    assert pages <= set(GUIDE)


def test_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    on_sigterm = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    blocks = [block for page in GUIDE for block in read_blocks(DOCS / page)]
    server = MotoServer()
    for name, value in environment_of_client(server.port).items():
        monkeypatch.setenv(name, value)
    # Only files of the driver's GPU are uploaded, which is the simulated one here.
    monkeypatch.setenv("FAKE_CUDA_GPU", "Simulated RTX GPU")
    ctypes.CDLL(str(DRIVER))  # dlopen() finds it by its name
    with server, installed_device() as device, torch_tensorrt.logging.warnings():
        server.create_bucket("my-bucket")
        device.set_compile_time(COMPILE_TIME)
        reader = Reader(capfd)
        put_caches(Path("kernels"))
        for block in blocks:
            reader.follow(block)
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, on_sigterm)
        reader.finish()

    assert [done for done in reader.done if done.startswith("not run")] == [
        "not run: the wheel has a test of its own, in an environment of its own",
        "not run: there is no container engine here",
        "not run: it needs a package index",
        "not run: it needs a directory of the system",
        "not run: it needs a cluster",
        "not run: it needs a cluster",
        "not run: it runs engines on a GPU alone",
    ]
    assert len(reader.done) == len(blocks)
    assert [reader.done.count(what) for what in ("run", "written", "compared")] == [
        23,
        2,
        12,
    ]
