"""The steps of check.sh, which has the usage."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

from tools.gpu.prerequisites import Machine, look
from tools.gpu.report import Report, Row, Status, checked, guarded
from tools.wheel.write_version import write_version

_ROOT = Path(__file__).absolute().parents[2]
_TIMEOUT = 1200  # seconds for each command; only one that hangs needs as many

# Words in the files of tests that need object stores or a library that only Bazel builds.
_NOT_HERE = ("fleet_testing", "observed_calls")
_COMPILING = "tests/py/compile/test_compile.py"


def parse(words: list[str] | None = None) -> argparse.Namespace:
    def path(word: str) -> Path:
        return Path(word).absolute()  # commands run in the repository's root

    parser = argparse.ArgumentParser(
        prog="check.sh", description="Checks this repository on an NVIDIA GPU."
    )
    add = parser.add_argument
    add("out", type=path, metavar="OUT_DIR", help="for the results")
    add("--pack", type=path, help="what //tools/gpu:pack wrote")
    add("--headers", type=path, help="TensorRT-RTX's C++ headers, without --pack")
    add(
        "--foreign-cache",
        type=path,
        action="append",
        default=[],
        help="own.cache of a run with another GPU, driver or version",
    )
    return parser.parse_args(words)


def import_from(folder: Path) -> None:
    """Puts `folder` first, for this process and those that it starts."""
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}"


def unpack(pack: Path, folder: Path) -> None:
    """Unpacks into `folder`, and lets Python import the packages in it."""
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(pack) as archive:
        # Python 3.12 warns if there is no filter.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    import_from(folder / "packages")


def configure_command(machine: Machine, folder: Path) -> list[str]:
    return [
        *("cmake", "-S", str(_ROOT / "tools/gpu"), "-B", str(folder)),
        *(["-G", "Ninja"] if shutil.which("ninja") else []),
        *(f"-D{name}={path}" for name, path in machine.folders.items()),
    ]


def stage_package(machine: Machine, build: Path, folder: Path) -> None:
    """Fills `folder` with the tree's Python packages and the library that was built."""
    shutil.rmtree(folder, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "lib", "_version.py")
    shutil.copytree(_ROOT / "py", folder, ignore=ignored)
    package = folder / "torch_tensorrt"
    (package / "lib").symlink_to(build)
    (version,) = re.findall('VERSION = "(.*)"', (folder / "version.bzl").read_text())
    headers = [
        machine.folders["TORCH_DIR"] / "include/torch/headeronly/version.h",
        machine.folders["TENSORRT_RTX_INCLUDE"] / "NvInferVersion.h",
    ]
    write_version(package / "_version.py", version, headers)


@dataclass
class Check:
    """One run. A step that fails does not stop the others.

    Attributes:
        work: The folder for what is built. The next run uses it again.
    """

    arguments: argparse.Namespace
    machine: Machine
    report: Report
    work: Path

    @property
    def plans(self) -> Path:
        """The engines for the GPU."""
        return self.work / ("pack/plans" if self.arguments.pack else "plans")

    def run(self) -> None:
        for step in (self.build, self.build_engines, self.ask, self.run_pytests):
            for row in guarded("check", step.__name__, step()):
                self.report.add(row)

    def command(self, step: str, question: str, words: list[str]) -> Row:
        """Runs a command in the repository's root. The answer is the last line that it prints."""
        begin = time.monotonic()
        # `timeout` also ends what the command started. The output goes to a file, because what the
        # command started could keep a pipe open.
        with tempfile.TemporaryFile("w+", errors="replace") as file:
            status = subprocess.run(
                ["timeout", "--signal=KILL", str(_TIMEOUT), *words],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            ).returncode
            file.seek(0)
            output = file.read()
        self.report.log(f"$ {shlex.join(words)}\n{output}[exit status {status}]\n")
        last = "".join(output.splitlines()[-1:])
        answer = f"exit status {status}: {last}" if status else last
        figure = f"{time.monotonic() - begin:.0f} s"
        return checked(step, question, status == 0, answer, figure)

    def build(self) -> Iterator[Row]:
        folder = self.work / "build"
        command = configure_command(self.machine, folder)
        yield self.command("build", "cmake configures the build", command)
        command = ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count())]
        yield self.command("build", "the C++ sources build", command)
        stage_package(self.machine, folder, self.work / "py")
        import_from(self.work / "py")
        from torch_tensorrt._library import library_error  # importable from here on

        error = library_error()
        yield checked("build", "the library loads", not error, str(error or "yes"))

    def build_engines(self) -> Iterator[Row]:
        if not self.arguments.pack:
            command = [sys.executable, "-m", "tools.gpu.plans", str(self.plans)]
            yield self.command("engines", "engines are built", command)

    def ask(self) -> Iterator[Row]:
        from tools.gpu.questions.ask import ask
        from tools.gpu.questions.devices import GpuDevice
        from tools.gpu.questions.laboratory import Laboratory

        folder = self.work / "questions"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        own_cache = self.arguments.out / "own.cache"
        foreign_caches = self.arguments.foreign_cache
        device = GpuDevice(self.plans)
        yield from ask(Laboratory(device, folder, own_cache, foreign_caches))

    def run_pytests(self) -> Iterator[Row]:
        """Runs the files of the pytest suite that run engines, in parallel."""
        from tests.util.simulation.supported_gpu import supported_gpu

        if any(row.status is Status.REFUSED for row in self.report.rows):
            answer = "TensorRT-RTX refuses this GPU"
            yield Row("tests", "pytest suite", Status.SKIPPED, answer)
            return
        files = []
        for file in sorted((_ROOT / "tests/py/runtime").glob("test_*.py")):
            text = file.read_text()
            if "runtime_testing" in text and not any(
                word in text for word in _NOT_HERE
            ):
                files.append(str(file.relative_to(_ROOT)))
        if find_spec("onnx") and find_spec("onnxscript") and supported_gpu():
            files.append(_COMPILING)
        else:
            answer = "needs onnx, onnxscript and a GPU that TensorRT-RTX names"
            yield Row("tests", _COMPILING, Status.SKIPPED, answer)
        command = [
            *("env", "TORCHTRT_TEST_DEVICE=gpu"),
            f"TORCHTRT_TEST_PLANS={self.plans / 'relu'}",
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-c", str(_ROOT / "pyproject.toml"), "--rootdir", str(_ROOT)),
            *("-W", "default"),  # other versions of torch warn of other things
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            yield from pool.map(
                lambda file: self.command("tests", file, [*command, file]), files
            )


def main() -> None:
    arguments = parse()
    work = Path.home() / ".cache/torch_tensorrt_gpu"
    for folder in (arguments.out, work):
        folder.mkdir(parents=True, exist_ok=True)
    if arguments.pack:
        unpack(arguments.pack, work / "pack")
    headers = arguments.headers or work / "pack/include"
    machine = look(headers, builds_engines=not arguments.pack)
    for line in machine.missing:
        print(f"check.sh: missing: {line}", file=sys.stderr)
    if machine.missing:
        sys.exit(2)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    report = Report(arguments.out, {"date": date, **machine.versions})
    Check(arguments, machine, report, work).run()
    print(f"\n{report.table()}")
    sys.exit(any(row.is_bad for row in report.rows))


if __name__ == "__main__":
    main()
