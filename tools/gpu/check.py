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
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path

from tools.gpu.prerequisites import Machine, look
from tools.gpu.report import Report, Row, Status, checked, guarded, table
from tools.wheel.write_version import write_version

_ROOT = Path(__file__).absolute().parents[2]
_TIMEOUT = 1200  # seconds for each command; only one that hangs needs as many

# In files of tests that need object stores or a library that only Bazel builds.
_NOT_HERE = ("fleet_testing", "observed_calls")


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
    add("--without-gpu", action="store_true", help="ask the simulated device")
    add(
        "--work",
        type=path,
        default=Path.home() / ".cache/torch_tensorrt_gpu",
        help="for what is built, which another run uses again; default: %(default)s",
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


class Check:
    """One run. A step that fails does not stop the others."""

    def __init__(
        self, arguments: argparse.Namespace, machine: Machine, report: Report
    ) -> None:
        self._arguments = arguments
        self._machine = machine
        self._report = report
        self._work: Path = arguments.work
        self._can_compile = all(map(find_spec, ("onnx", "onnxscript")))
        self._plans: Path | None = None  # the engines for the GPU

    def run(self) -> None:
        for step in (self.build, self.ask, self.run_pytests):
            for row in guarded("check", step.__name__, step()):
                self._report.add(row)

    def command(
        self, words: list[str], environment: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Runs a command in the repository's root; returns its exit status and output."""
        # `timeout` also ends what the command started, which might keep a pipe open; so a file.
        with tempfile.TemporaryFile("w+", errors="replace") as file:
            status = subprocess.run(
                ["timeout", "--signal=KILL", str(_TIMEOUT), *words],
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            ).returncode
            file.seek(0)
            output = file.read()
        self._report.log(f"$ {shlex.join(words)}\n{output}[exit status {status}]\n")
        return status, output

    def checked_command(self, step: str, question: str, words: list[str]) -> Row:
        """Runs a command. The row of one that failed has the last line that it printed."""
        begin = time.monotonic()
        status, output = self.command(words)
        last = "".join(output.splitlines()[-1:])
        answer = f"exit status {status}: {last}" if status else "yes"
        figure = f"{time.monotonic() - begin:.0f} s"
        return checked(step, question, status == 0, answer, figure)

    def build(self) -> Iterator[Row]:
        folder = self._work / "build"
        configure = configure_command(self._machine, folder)
        yield self.checked_command("build", "cmake configures the build", configure)
        command = ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count())]
        yield self.checked_command("build", "the C++ sources build", command)
        stage_package(self._machine, folder, self._work / "py")
        import_from(self._work / "py")
        program = (
            "import sys, torch_tensorrt._library as it; sys.exit(it.library_error())"
        )
        command = [sys.executable, "-c", program]
        yield self.checked_command("build", "the library loads", command)

    def ask(self) -> Iterator[Row]:
        # Only now can torch_tensorrt be imported.
        from tests.util.simulation.supported_gpu import supported_gpu
        from tools.gpu.questions.ask import ask
        from tools.gpu.questions.devices import Device, GpuDevice, SimulatedDevice
        from tools.gpu.questions.laboratory import Laboratory

        device: Device = SimulatedDevice()
        if not self._arguments.without_gpu:
            is_known = supported_gpu() is not None
            yield from self.find_engines(is_known)
            if self._plans is None:
                return
            device = GpuDevice(self._plans, is_known)
        folder = self._work / "questions"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        own_cache = self._arguments.out / "own.cache"
        foreign_caches = self._arguments.foreign_cache
        yield from ask(Laboratory(device, folder, own_cache, foreign_caches))

    def find_engines(self, is_known: bool) -> Iterator[Row]:
        """Finds those of the pack, or builds them.

        Args:
            is_known: Whether TensorRT-RTX names the compute capability of this GPU.
        """
        program = [sys.executable, "-m", "tools.gpu.plans"]
        if self._arguments.pack:
            self._plans = self._work / "pack/plans"
        elif self._can_compile:
            self._plans = self._work / "plans"
            command = [*program, "build_all", str(self._plans)]
            yield self.checked_command("engines", "engines are built", command)
        else:
            answer = "no --pack, and no onnx and onnxscript to build any with"
            yield Row("engines", "engines are built", Status.SKIPPED, answer)
        if self._can_compile:
            question = "an engine is built for this GPU itself"
            command = [*program, "build_for_this_gpu", str(self._work / "own_plans")]
            row = self.checked_command("engines", question, command)
            if row.is_bad and "TensorRT-RTX" in row.answer and not is_known:
                row = replace(row, status=Status.REFUSED)
            yield row

    def run_pytests(self) -> Iterator[Row]:
        no_compilation = "" if self._can_compile else "no onnx and onnxscript"
        yield from self.run_pytests_on("simulated", no_compilation)
        if self._arguments.without_gpu:
            return
        refused = {
            row.step for row in self._report.rows if row.status is Status.REFUSED
        }
        if "engines" in refused:
            no_compilation = "TensorRT-RTX does not build for this GPU"
        if self._plans is None or "output equality" in refused:
            answer = "TensorRT-RTX refuses this GPU" if self._plans else "no engines"
            yield Row("tests", "pytest suite on gpu", Status.SKIPPED, answer)
        else:
            yield from self.run_pytests_on("gpu", no_compilation)

    def run_pytests_on(self, device: str, no_compilation: str) -> Iterator[Row]:
        """Runs the files of the pytest suite that run engines, in parallel.

        Args:
            no_compilation: Why those that compile models are left out; empty if they are not.
        """
        files = {
            str(file.relative_to(_ROOT)): file.read_text()
            for folder in ("compile", "dynamo", "runtime")
            for file in sorted((_ROOT / "tests/py" / folder).rglob("test_*.py"))
        }
        question = f"pytest suite on {device}"
        compiling = [name for name, text in files.items() if "onnx" in text]
        chosen = [
            name
            for name, text in files.items()
            if "runtime_testing" in text and not any(word in text for word in _NOT_HERE)
        ]
        if no_compilation:
            answer = f"{', '.join(compiling)}: {no_compilation}"
            yield Row("tests", f"{question}, compilation", Status.SKIPPED, answer)
        else:
            chosen += compiling
        environment = {**os.environ, "TORCHTRT_TEST_DEVICE": device}
        if self._plans:
            environment["TORCHTRT_TEST_PLANS"] = str(self._plans / "relu")
        command = [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-c", str(_ROOT / "pyproject.toml"), "--rootdir", str(_ROOT)),
            *("-W", "default"),  # other versions of torch warn of other things
        ]
        begin = time.monotonic()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            outcomes = pool.map(
                lambda name: self.command([*command, name], environment), chosen
            )
        counts: Counter[str] = Counter()
        failed = []
        for name, (status, output) in zip(chosen, outcomes, strict=True):
            for number, what in re.findall(r"(\d+) (passed|skipped)(?=.* in )", output):
                counts[what] += int(number)
            if status:
                failed.append(name)
        answer = f"{counts['passed']} passed, {counts['skipped']} skipped"
        if failed:
            answer += f"; failures in {', '.join(failed)}"
        figure = f"{len(chosen)} files, {time.monotonic() - begin:.0f} s"
        yield checked("tests", question, not failed, answer, figure)


def main() -> None:
    arguments = parse()
    for folder in (arguments.out, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    pack: Path = arguments.work / "pack"
    if arguments.pack:
        unpack(arguments.pack, pack)
    machine = look(arguments.headers or pack / "include", not arguments.without_gpu)
    for line in machine.missing:
        print(f"check.sh: missing: {line}", file=sys.stderr)
    if machine.missing:
        sys.exit(2)
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    report = Report(arguments.out, {"date": date, **machine.versions})
    Check(arguments, machine, report).run()
    print(f"\n{table(report.rows)}")
    sys.exit(any(row.is_bad for row in report.rows))


if __name__ == "__main__":
    main()
