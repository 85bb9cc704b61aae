"""The steps of check.sh, which has the usage."""

from __future__ import annotations

import argparse
import os
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from tools.gpu.check.builder import (
    LIBRARY,
    SIMULATED_LIBRARY,
    Build,
    build,
    probe,
    python_path,
    stage_package,
)
from tools.gpu.check.prerequisites import Machine, Options, look
from tools.gpu.check.processes import run
from tools.gpu.check.suites import python_tests, run_gtests, run_pytests
from tools.gpu.names import (
    CACHE_STEP,
    COMPUTE_CAPABILITIES,
    ENGINE_SUFFIX,
    FIRST,
    OWN_CACHE,
    TEST_PLANS,
)
from tools.gpu.report import Row, Status, read_rows, table, write_json

TIMEOUT = 1200  # seconds, after which a command is ended

_COMPILES = "onnx"  # a word in each file of tests that calls torch_tensorrt.compile


def _absolute(word: str) -> Path:
    """Commands run in the repository's root, not where check.sh was called."""
    return Path(word).absolute()


def _user_cache() -> Path:
    # platformdirs may be in the pack alone, which is unpacked below this folder.
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return named if named.is_absolute() else Path.home() / ".cache"


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="check.sh",
        description="Proves this repository on a machine with an NVIDIA GPU.",
    )
    parser.add_argument(
        "out", type=_absolute, metavar="OUT_DIR", help="for the results"
    )
    parser.add_argument("--pack", type=_absolute, help="what //tools/gpu:pack wrote")
    parser.add_argument("--headers", type=_absolute, help="TensorRT-RTX's C++ headers")
    parser.add_argument("--googletest", type=_absolute, help="GoogleTest's sources")
    parser.add_argument(
        "--foreign-cache",
        type=_absolute,
        action="append",
        default=[],
        help=f"a runtime cache of another GPU, driver or version, such as {OWN_CACHE} of another "
        "OUT_DIR",
    )
    parser.add_argument(
        "--without-gpu",
        action="store_true",
        help="run what needs none; the questions are asked of the simulated device",
    )
    parser.add_argument(
        "--work",
        type=_absolute,
        help="for what is built, which a second run builds on; default: torch_tensorrt_gpu in the "
        "user's cache directory",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args(words)
    if arguments.work is None:
        arguments.work = _user_cache() / "torch_tensorrt_gpu"
    return arguments


class Check:
    """One run; its steps append to `rows`, and one that fails does not stop the others."""

    def __init__(self, arguments: argparse.Namespace, machine: Machine) -> None:
        self.rows: list[Row] = []
        self._arguments = arguments
        self._machine = machine
        self._work: Path = arguments.work
        self._log_path: Path = arguments.out / "check.log"
        self._date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._begin = time.monotonic()
        self._build = Build(self._work / "build", "not built", 0, [])
        self._plans: Path | None = None

    def run(self) -> None:
        for step in (
            self._build_sources,
            self._run_gtests,
            self._find_plans,
            self._ask,
            self._run_pytests,
        ):
            name = step.__name__.strip("_").replace("_", " ")
            try:
                step()
            except Exception as error:
                self.log(traceback.format_exc())
                answer = f"it broke off: {type(error).__name__}: {error}"
                self._add(Row("check", name, Status.FAILED, answer))

    def log(self, text: str) -> None:
        with self._log_path.open("a") as log:
            log.write(text if text.endswith("\n") else f"{text}\n")

    def write_results(self) -> str:
        """Writes the rows so far into OUT_DIR, and answers the table."""
        about = {
            "date": self._date,
            "device": self._machine.gpu or "none: the simulated device",
            "versions": self._machine.versions,
            "seconds": round(time.monotonic() - self._begin),
        }
        versions = ", ".join(f"{n} {v}" for n, v in self._machine.versions.items())
        text = f"{self._date}: {versions}; {about['seconds']} s\n\n{table(self.rows)}\n"
        (self._arguments.out / "results.md").write_text(text)
        write_json(self._arguments.out / "results.json", self.rows, **about)
        return text

    def _add(self, *rows: Row) -> None:
        self.rows += rows
        self.write_results()  # each time, lest they are lost if this process is ended
        for row in rows:
            seconds = time.monotonic() - self._begin
            print(
                f"[{seconds:4.0f} s] {row.question}: {row.status.value}, {row.answer}",
                flush=True,
            )

    def _run_command(
        self, command: list[str], environment: dict[str, str] | None = None
    ) -> int | None:
        """Runs it into the log; its exit status, None if it took too long."""
        self.log(f"$ {' '.join(command)}")
        with self._log_path.open("ab") as log:
            status = run(command, log, TIMEOUT, environment)
        if status is None:
            self.log(f"[not ended after {TIMEOUT} s]")
        return status

    def _build_sources(self) -> None:
        begin = time.monotonic()
        self._build = build(
            self._machine, self._work / "build", self._arguments.jobs, self._run_command
        )
        what = (
            f"{self._build.objects} objects, {len(self._build.cpp_tests)} test programs"
        )
        question = "the C++ sources build"
        self._add(
            Row(
                "build",
                question,
                Status.FAILED if self._build.failure else Status.PASSED,
                (
                    f"{self._build.failure}: see check.log"
                    if self._build.failure
                    else "yes"
                ),
                f"{what}, {time.monotonic() - begin:.0f} s with {self._arguments.jobs} jobs",
                f"{self._machine.generator}, {self._machine.versions['compiler']}",
            )
        )
        for library in (LIBRARY, SIMULATED_LIBRARY):
            reason = probe(self._environment(library), sys.executable)
            self._add(
                Row(
                    "build",
                    f"{library} loads",
                    Status.FAILED if reason else Status.PASSED,
                    reason or "yes",
                    how=f"with torch {self._machine.versions['torch']}",
                )
            )

    def _environment(self, library: str) -> dict[str, str]:
        folder = self._work / library.partition(".")[0]
        package = stage_package(self._build.folder, folder, library)
        environment = python_path(package)
        if home := os.environ.get("TENSORRT_RTX_HOME"):
            path = [f"{home}/lib", os.environ.get("LD_LIBRARY_PATH", "")]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, path))
        # A kernel that the driver kept from an earlier start would make a cold one warm.
        environment["CUDA_CACHE_DISABLE"] = "1"
        return environment

    def _run_gtests(self) -> None:
        if self._machine.googletest is None:
            answer = "no googletest"
            self._add(Row("tests", "gtest suite", Status.SKIPPED, answer))
            return
        self._add(
            run_gtests(
                self._build.cpp_tests, self._work, self._arguments.jobs, self.log
            )
        )

    def _find_plans(self) -> None:
        pack = self._work / "pack/plans"
        if pack.exists():
            self._plans = pack
            how = "built elsewhere"
        elif self._machine.can_build_plans:
            self._plans = self._work / "plans"
            self._build_plans(self._plans)
            how = f"built here for {', '.join(COMPUTE_CAPABILITIES)}"
        else:
            answer = "no --pack, and no onnx and onnxscript to build them with"
            self._add(Row("plans", "engines for the GPU", Status.SKIPPED, answer))
            return
        sizes = {
            path.name.removesuffix(ENGINE_SUFFIX): path.stat().st_size
            for path in sorted(self._plans.glob(f"*{ENGINE_SUFFIX}"))
        }
        status = Status.PASSED if FIRST in sizes else Status.FAILED
        figure = ", ".join(
            f"{name} {size / 1e3:.0f} kB" for name, size in sizes.items()
        )
        question, answer = "engines for the GPU", f"{len(sizes)} in {self._plans}"
        self._add(Row("plans", question, status, answer, figure, how))

    def _build_plans(self, folder: Path, *words: str) -> int | None:
        return self._run_command(
            [
                *(sys.executable, "-m", "tools.gpu.plans.build_plans"),
                *("--out", str(folder), *words),
            ],
            self._environment(LIBRARY),
        )

    def _ask(self) -> None:
        if self._arguments.without_gpu:
            self._ask_device("simulated", SIMULATED_LIBRARY)
            return
        if self._machine.can_build_plans:
            self._build_for_this_gpu()
        if self._plans is not None:
            self._ask_device("gpu", LIBRARY, "--plans", str(self._plans))

    def _build_for_this_gpu(self) -> None:
        mark = self._log_path.stat().st_size
        words = ["--compute-capabilities", "current", "--cases", FIRST]
        status = self._build_plans(self._work / "own_plans", *words)
        lines = self._log_path.read_bytes()[mark:].decode(errors="replace").splitlines()
        question = "an engine is built for this GPU itself"
        reason = lines[-1] if lines else "no reason was given"
        if status == 0:
            self._add(Row("plans", question, Status.PASSED, "yes"))
        else:
            known = self._machine.versions["compute capability"] in COMPUTE_CAPABILITIES
            refused = "TensorRT-RTX" in reason and not known
            refusal = Status.REFUSED if refused else Status.FAILED
            self._add(Row("plans", question, refusal, reason))

    def _ask_device(self, device: str, library: str, *words: str) -> None:
        report = self._work / "answers.json"
        report.unlink(missing_ok=True)
        work = self._work / "questions"
        (work / OWN_CACHE).unlink(missing_ok=True)
        command = [
            *(sys.executable, "-m", "tools.gpu.questions.ask", "--device", device),
            *("--work", str(work), "--json", str(report), *words),
        ]
        for path in self._arguments.foreign_cache:
            command += ["--foreign-cache", str(path)]
        status = self._run_command(command, self._environment(library))
        if report.exists():
            self._add(*read_rows(report))
        if status != 0:
            ended = (
                f"not ended after {TIMEOUT} s"
                if status is None
                else f"exit status {status}"
            )
            answer = f"broke off before the last answer, {ended}: see check.log"
            self._add(Row(CACHE_STEP, "all questions", Status.FAILED, answer))
        if device == "gpu" and (work / OWN_CACHE).exists():
            cache = (work / OWN_CACHE).read_bytes()
            (self._arguments.out / OWN_CACHE).write_bytes(cache)

    def _run_pytests(self) -> None:
        if not self._machine.has_pytest:
            self._add(Row("tests", "pytest suite", Status.SKIPPED, "no pytest"))
            return
        environment = self._environment(SIMULATED_LIBRARY)
        del environment["CUDA_CACHE_DISABLE"]
        environment |= self._test_environment()
        files = python_tests()
        if "FILELOCK_3" not in environment:
            reason = "no filelock 3 (set FILELOCK_3 to a folder with its package, or give --pack)"
            files = self._without("FILELOCK_3", files, "locks", reason)
        if not self._machine.can_build_plans:
            reason = "no onnx and onnxscript"
            files = self._without(_COMPILES, files, "compilation", reason)
        runs = [("simulated", "the simulated device", files)]
        if not self._arguments.without_gpu:
            if self._plans and (self._plans / TEST_PLANS).is_dir():
                environment["TORCHTRT_TEST_PLANS"] = str(self._plans / TEST_PLANS)
            refused = {row.step for row in self.rows if row.status is Status.REFUSED}
            if reason := self._no_tests_on_gpu(environment, refused):
                title = "pytest suite on the GPU"
                self._add(Row("tests", title, Status.SKIPPED, reason))
            else:
                # Of tests/py/runtime, those that take the device which they are told.
                on_gpu = [
                    file
                    for file in files
                    if {"compile", "dynamo"} & {*file.parts}
                    or "runtime_testing" in file.read_text()
                ]
                if "plans" in refused:
                    reason = "TensorRT-RTX does not build for this GPU"
                    title = "compilation on the GPU"
                    on_gpu = self._without(_COMPILES, on_gpu, title, reason)
                runs.append(("gpu", "the GPU", on_gpu))
        for device, place, of_device in runs:
            self._add(
                run_pytests(
                    f"pytest suite on {place}",
                    {**environment, "TORCHTRT_TEST_DEVICE": device},
                    of_device,
                    self._work,
                    self._arguments.jobs,
                    self.log,
                )
            )

    def _without(
        self, word: str, files: list[Path], what: str, reason: str
    ) -> list[Path]:
        """The files in which that word is not; a row tells which those are, and why."""
        left_out = [file for file in files if word in file.read_text()]
        if left_out:
            answer = f"{', '.join(file.name for file in left_out)}: {reason}"
            self._add(Row("tests", f"pytest suite, {what}", Status.SKIPPED, answer))
        return [file for file in files if file not in left_out]

    def _no_tests_on_gpu(self, environment: dict[str, str], refused: set[str]) -> str:
        """Why the pytest suite can't run on the GPU, empty if it can."""
        if CACHE_STEP in refused:
            return "TensorRT-RTX refuses this GPU"
        if "TORCHTRT_TEST_PLANS" in environment:
            return ""
        if not self._machine.can_build_plans:
            return f"no onnx and onnxscript, and no folder {TEST_PLANS} in the pack"
        return "TensorRT-RTX does not build for this GPU" if "plans" in refused else ""

    def _test_environment(self) -> dict[str, str]:
        """What Bazel names to tests by `data_env`."""
        named = {
            tool.name.upper(): str(tool) for tool in self._build.folder.glob("*_tool")
        }
        old_filelock = self._work / "pack/filelock_3"
        if old_filelock.exists():
            named.setdefault("FILELOCK_3", str(old_filelock))
        return named


def unpack(pack: Path, folder: Path) -> None:
    """Unpacks into `folder` unless it has that very pack, and puts its packages on the path."""
    status = pack.stat()
    mark = folder / f"unpacked.{status.st_size}.{status.st_mtime_ns}"
    if not mark.exists():
        with tarfile.open(pack) as archive:
            if hasattr(tarfile, "data_filter"):
                archive.extractall(folder, filter="data")
            else:
                archive.extractall(folder)
        mark.touch()
    packages = str(folder / "packages")
    sys.path.insert(0, packages)
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [packages, inherited]))


def say_what_is_missing(
    machine: Machine, without_gpu: bool, say: Callable[[str], object]
) -> bool:
    """A line for each thing; true if the check can't begin."""
    for line in machine.missing:
        say(f"check.sh: missing: {line}")
    if machine.no_gpu and not without_gpu:
        say(
            f"check.sh: no NVIDIA GPU: {machine.no_gpu}; --without-gpu runs what needs none"
        )
    if machine.missing or (machine.no_gpu and not without_gpu):
        return True
    for line in machine.skipped:
        say(f"check.sh: left out: {line}")
    return False


def main() -> None:
    arguments = parse()
    for path in (arguments.out, arguments.work):
        path.mkdir(parents=True, exist_ok=True)
    pack = None
    if arguments.pack:
        pack = arguments.work / "pack"
        unpack(arguments.pack, pack)
    machine = look(Options(arguments.headers, arguments.googletest, pack))
    if say_what_is_missing(
        machine, arguments.without_gpu, lambda line: print(line, file=sys.stderr)
    ):
        sys.exit(2)
    (arguments.out / "check.log").write_text("")
    check = Check(arguments, machine)
    check.run()
    print(f"\n{check.write_results()}")
    sys.exit(any(row.is_bad for row in check.rows))


if __name__ == "__main__":
    main()
