"""tools/upstream/export.py on small checkouts with the layout of upstream's commits."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.py.tools.upstream_checkouts import (
    AUTOSAVED,
    BOTH,
    CACHE,
    CPP_FILE_IO,
    PYTHON_FILE_IO,
    UTIL_BUILD,
    environment,
    git,
    make_checkout,
)
from tools.upstream import file_lock

ROOT = Path(__file__).absolute().parents[3]
SCRIPT = ROOT / "tools" / "upstream" / "export.py"
CONFIG = "core/runtime/TRTRuntimeConfig.cpp"
CONCURRENCY = "tests/py/dynamo/runtime/test_000_runtime_cache.py"
AUTOSAVE = "tests/py/dynamo/runtime/test_000_runtime_cache_autosave.py"


def run_export(
    onto: Path, out: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), f"--onto={onto}", f"--out={out}"],
        env={**environment(onto.parent), **variables},
        capture_output=True,
        encoding="utf-8",
    )


def export(onto: Path, out: Path) -> str:
    done = run_export(onto, out)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def failure(onto: Path, out: Path, **variables: str) -> str:
    """Returns the error message of a refused export."""
    existed = out.exists()
    done = run_export(onto, out, **variables)
    assert done.returncode == 1
    assert done.stderr.startswith("export: ")
    assert out.exists() == existed
    return done.stderr


def patches(out: Path, series: str) -> list[Path]:
    return sorted((out / series).glob("*.patch"))


def letter(out: Path, series: str) -> str:
    return (out / series / "cover-letter.md").read_text(encoding="utf-8")


def am(checkout: Path, out: Path, *series: str) -> None:
    for name in series:
        git(checkout, "am", "--quiet", *map(str, patches(out, name)))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return make_checkout(tmp_path / "checkout", BOTH)


@pytest.mark.parametrize(
    ("files", "sent", "not_sent"),
    [
        (CPP_FILE_IO, {"file-lock": 4}, f"Nothing: this commit has no {CACHE}."),
        (PYTHON_FILE_IO, {"autosave": 1}, "Nothing: the lock would have no user."),
        (AUTOSAVED, {}, "Nothing: RuntimeCache saves itself at exit already."),
    ],
)
def test_each_shape_gets_what_it_can_take(
    tmp_path: Path,
    out: Path,
    files: dict[str, str],
    sent: dict[str, int],
    not_sent: str,
) -> None:
    report = export(make_checkout(tmp_path / "checkout", files), out)
    assert sorted(path.name for path in out.iterdir()) == ["autosave", "file-lock"]
    for series in ("autosave", "file-lock"):
        assert len(patches(out, series)) == sent.get(series, 0)
        assert ("## Type of change" in letter(out, series)) == (series in sent)
    letters = letter(out, "autosave") + letter(out, "file-lock")
    assert f"- {not_sent}" in letters
    assert f"not sent: {not_sent}" in report


@pytest.mark.parametrize(
    "order",
    [
        ("file-lock",),
        ("autosave",),
        ("file-lock", "autosave"),
        ("autosave", "file-lock"),
    ],
)
def test_series_apply_alone_and_in_either_order(
    checkout: Path, out: Path, order: tuple[str, ...]
) -> None:
    export(checkout, out)
    base = git(checkout, "rev-parse", "HEAD").strip()
    am(checkout, out, *order)
    assert git(checkout, "diff", "--check", base, "HEAD") == ""
    assert git(checkout, "status", "--porcelain") == ""
    if "file-lock" in order:
        for path in file_lock.FILES:
            assert (checkout / path).read_bytes() == (ROOT / path).read_bytes()


def test_upstream_s_formatters_accept_each_commit(checkout: Path, out: Path) -> None:
    code = "import sysconfig; print(sysconfig.get_path('scripts'))"
    python = [os.environ["LINT_PYTHON"], "-c", code]
    scripts = subprocess.run(python, check=True, capture_output=True, text=True).stdout
    buildifier = ["-mode=check", "-lint=warn", "-warnings=all"]
    isort = ["--check", "--profile=black", "--thirdparty=torch_tensorrt"]
    export(checkout, out)
    am(checkout, out, "file-lock", "autosave")
    commits = git(checkout, "rev-list", "--reverse", "HEAD~5..HEAD").split()
    for commit in commits:
        git(checkout, "checkout", "--quiet", commit)
        names = git(checkout, "diff", "--name-only", "HEAD~").split()
        for command, suffix in [
            ([os.environ["BUILDIFIER"], *buildifier], "BUILD"),
            ([f"{scripts.strip()}/black", "--check", "--quiet"], ".py"),
            ([f"{scripts.strip()}/isort", *isort], ".py"),
        ]:
            if files := [name for name in names if name.endswith(suffix)]:
                subprocess.run([*command, *files], cwd=checkout, check=True)


def test_only_the_style_commit_changes_lines_of_build_files(
    checkout: Path, out: Path
) -> None:
    export(checkout, out)
    am(checkout, out, "file-lock")
    style = git(checkout, "diff", "--numstat", "HEAD~4", "HEAD~3").splitlines()
    assert style == ["2\t1\tcore/util/BUILD", "2\t3\ttests/cpp/BUILD"]
    builds = git(checkout, "diff", "HEAD~3", "HEAD", "--", "*/BUILD")
    assert not re.search(r"^-(?!--)", builds, re.MULTILINE)


def test_targets_are_listed_where_their_siblings_are(checkout: Path, out: Path) -> None:
    export(checkout, out)
    am(checkout, out, "file-lock")
    tests = (checkout / "tests/cpp/BUILD").read_text()
    suites = re.findall(r"test_suite\((.*?)\n\)", tests, re.DOTALL)
    assert [suite.count(":test_file_lock") for suite in suites] == [2, 2, 0]
    util = (checkout / "core/util/BUILD").read_text()
    assert '        "build_info.h",\n        "file_lock.h",\n' in util
    (target,) = re.findall(r'    name = "file_lock",\n.*?\n\)', util, re.DOTALL)
    assert "    alwayslink = True,\n" in target
    processes = (checkout / "tests/util/processes/BUILD").read_text()
    for text, name in [(processes, "child_process"), (tests, "test_file_lock_posix")]:
        (target,) = re.findall(rf'    name = "{name}",\n.*?\n\)', text, re.DOTALL)
        assert "@platforms//:incompatible" in target
    contents = (checkout / "docsrc/contributing.rst").read_text()
    assert contents.endswith("autocast\n   contributors/runtime_cache_lock\n")
    cmake = (checkout / "core/util/CMakeLists.txt").read_text()
    assert '/build_info.h"\n    "${CMAKE_CURRENT_SOURCE_DIR}/file_lock.h"' in cmake
    assert "/file_lock_$<IF:$<PLATFORM_ID:Windows>,windows,posix>.cpp" in cmake


def test_the_lock_covers_the_file_alone(checkout: Path, out: Path) -> None:
    export(checkout, out)
    am(checkout, out, "file-lock")
    source = (checkout / CONFIG).read_text()
    load, save = re.findall(r"^void .*?^}", source, re.MULTILINE | re.DOTALL)
    assert "#ifdef TRT_MAJOR_RTX\nvoid load" in source

    def order(body: str, *words: str) -> bool:
        places = [body.index(word) for word in words]
        return places == sorted(places)

    assert order(load, "exists(", "kShared", "try_lock_for()", "ifstream", "unlock()")
    assert order(load, "buf(", "unlock()", "buf.empty()", "deserialize")
    assert order(save, "serialize()", "kExclusive", "try_lock_for()", "ofstream")
    assert order(save, "create_directories", "FileLock lock", "rename", "unlock()")


def test_what_has_been_sent_is_not_sent_again(checkout: Path, out: Path) -> None:
    export(checkout, out)
    am(checkout, out, "file-lock", "autosave")
    second = out.with_name("second")
    report = export(checkout, second)
    assert "not sent: Nothing: this commit has the lock already." in report
    assert "not sent: Nothing: RuntimeCache saves itself at exit already." in report
    assert not patches(second, "file-lock") + patches(second, "autosave")

    contents = checkout / "docsrc/contributing.rst"
    contents.write_text(contents.read_text().replace("contributors/runtime_cache_", ""))
    git(checkout, "commit", "--quiet", "--all", "--message=lose an entry")
    third = out.with_name("third")
    assert "docs(runtime)" in export(checkout, third)
    assert len(patches(third, "file-lock")) == 1


@pytest.mark.parametrize(
    ("path", "old", "new", "reason"),
    [
        (CONFIG, "void save_runtime_cache_impl", "bool save", "no function save_runti"),
        (CONFIG, "  std::ifstream in(", "  auto in = open(", "0 lines begin with"),
        ("core/runtime/BUILD", '"runtime"', '"base"', "no target 'runtime'"),
        ("core/util/BUILD", '"include_files"', '"all"', "no target 'include_files'"),
        ("core/util/CMakeLists.txt", "/build_info.h", "/info.h", "0 lines begin with"),
        ("tests/cpp/BUILD", '"aarch64_api_tests"', '"a"', "no target 'aarch64_api_t"),
        ("tests/cpp/BUILD", "tests = [", "tests = TESTS + [", "has no list 'tests'"),
        ("docsrc/contributing.rst", "Feature Design", "More", "contents 'Feature Desi"),
        (CONCURRENCY, "def _compile(", "def _build(", "there is no _compile"),
        (CONCURRENCY, "test_filelock_works", "test_new", "must have just a docstring"),
        (CACHE, "class RuntimeCache:", "class Cache:", "there is no RuntimeCache"),
        (CACHE, "    def __del__", "    def close", "there is no __del__"),
        (CACHE, "  self.autosave_on_del = a", "  self.b = a", "does not end by"),
        (CACHE, "     self.save()", "     pass", "must have just a save"),
        (CACHE, "import threading\n", "", "0 lines begin with 'import threading'"),
        ("core/util/file_lock.h", "", "of others\n", "exists with other contents"),
        (AUTOSAVE, "", "of others\n", "exists with other contents"),
    ],
)
def test_what_is_missing_or_in_the_way_refuses_one_series_alone(
    tmp_path: Path, out: Path, path: str, old: str, new: str, reason: str
) -> None:
    text = BOTH[path].replace(old, new) if old else new
    report = export(make_checkout(tmp_path / "checkout", {**BOTH, path: text}), out)
    refused = "autosave" if path in (CACHE, AUTOSAVE) else "file-lock"
    assert re.search(rf"not sent: Nothing: {path}:? .*{reason}", report)
    assert re.search(rf"- Nothing: {path}:? .*{reason}", letter(out, refused))
    sent = {series: len(patches(out, series)) for series in ("file-lock", "autosave")}
    assert sent == {"file-lock": 4, "autosave": 1} | {refused: 0}


def test_letters_fill_in_upstream_s_template(checkout: Path, out: Path) -> None:
    export(checkout, out)
    for series, kind in [
        ("file-lock", "- New feature (adds)"),
        ("autosave", "- Bug fix (mends)"),
    ]:
        text = letter(out, series)
        headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)[1:]
        assert [name for name in headings if name != "What is not sent"] == [
            "Description",
            "Type of change",
            "Checklist:",
        ]
        assert f"## Type of change\n\n{kind}\n\n# Checklist:\n\n- [ ] It is f" in text
        assert "Fixes #" not in text


def test_the_autosave_keeps_the_rest_of_the_module(checkout: Path, out: Path) -> None:
    export(checkout, out)
    (patch,) = patches(out, "autosave")
    removed = re.findall(
        r"^-(?!-)(.*)", patch.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert removed == [
        "        if self.autosave_on_del and self.path:",
        "                self.save()",
        "            except Exception:",
    ]
    am(checkout, out, "autosave")
    text = (checkout / CACHE).read_text()
    assert "``__del__`` saves it.\n\n    A cache that saves itself does so when" in text


def run_python(checkout: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(checkout / "py")},
        cwd=checkout,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_exported_autosave_passes_its_tests(checkout: Path, out: Path) -> None:
    export(checkout, out)
    am(checkout, out, "autosave")
    run_python(checkout, "-m", "pytest", "-p", "no:cacheprovider", AUTOSAVE)


def test_the_exported_autosave_saves_at_exit(
    checkout: Path, out: Path, tmp_path: Path
) -> None:
    export(checkout, out)
    am(checkout, out, "autosave")
    code = """
import pickle, sys
from torch_tensorrt.runtime import RuntimeCache
cache = RuntimeCache(sys.argv[1], autosave_on_del=True)
copied = pickle.loads(pickle.dumps(cache))
assert copied.path == cache.path and copied.autosave_on_del
assert copied._atexit_token is not cache._atexit_token is not None
assert RuntimeCache(sys.argv[1])._atexit_token is None
copied.autosave_on_del = False
RuntimeCache.__new__(RuntimeCache)  # its __init__ never ran
sys.saved = cache  # nothing deletes it before the end
"""
    run_python(checkout, "-W", "error", "-c", code, str(tmp_path / "saved"))
    assert (tmp_path / "saved").read_bytes() == b"kernels"


def test_the_tests_of_the_lock_cover_both_runtimes(checkout: Path, out: Path) -> None:
    export(checkout, out)
    am(checkout, out, "file-lock")
    text = (checkout / CONCURRENCY).read_text()
    for name in ("test_filelock_works", "test_sequential_save_load"):
        assert f"@parameterized.expand(_RUNTIMES)\n    def {name}(" in text
    for name in (
        "test_python_lock_blocks_cpp_save",
        "test_filelock_cross_runtime_parallel",
    ):
        assert f"    def {name}(self):" in text
    assert "For the Python runtime alone" not in text
    assert "def tearDown" in text and "class TestTimingCacheSkipped" in text
    compile(text, CONCURRENCY, "exec")


def test_the_checkout_is_only_read(checkout: Path, out: Path) -> None:
    (checkout / "core/util/BUILD").write_text("# being edited\n")
    (checkout / "core/util/file_lock.h").write_text("// not added\n")

    def snapshot() -> dict[Path, str]:
        files = (path for path in sorted(checkout.rglob("*")) if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = snapshot()
    export(checkout, out)
    assert snapshot() == before
    (checkout / "core/util/BUILD").write_text(UTIL_BUILD)
    (checkout / "core/util/file_lock.h").unlink()
    am(checkout, out, "file-lock")


def test_the_user_s_configuration_does_not_interfere(checkout: Path, out: Path) -> None:
    names = ("commit.gpgSign", "core.autocrlf", "diff.noprefix", "format.attach")
    for name in names:
        git(checkout, "config", name, "true")
    export(checkout, out)
    for name in names:
        git(checkout, "config", "--unset", name)
    am(checkout, out, "file-lock", "autosave")
    author = git(checkout, "log", "-1", "--format=%an <%ae>")
    assert author == "Ada Löwe <ada@example.org>\n"


def test_a_shallow_clone_and_a_linked_worktree_will_do(
    checkout: Path, tmp_path: Path
) -> None:
    git(checkout, "commit", "--quiet", "--allow-empty", "--message=more")
    shallow, linked = tmp_path / "shallow", tmp_path / "linked"
    git(tmp_path, "clone", "--quiet", "--depth=1", checkout.as_uri(), str(shallow))
    git(checkout, "worktree", "add", "--quiet", str(linked))
    for number, tree in enumerate((shallow, linked)):
        out = tmp_path / f"out{number}"
        export(tree, out)
        am(tree, out, "file-lock", "autosave")


def test_refusals(checkout: Path, out: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    assert "is not a git checkout with a commit" in failure(plain, out)
    assert "there is no folder" in failure(tmp_path / "nowhere", out)
    assert "is in the checkout" in failure(checkout, checkout / "patches")
    (plain / "note").touch()
    assert "is not an empty folder" in failure(checkout, plain)
    assert "is not an empty folder" in failure(checkout, plain / "note")
    other = make_checkout(tmp_path / "other", {"README.md": ""})
    assert "is not pytorch/TensorRT" in failure(other, out)
    nobody = {"GIT_CONFIG_GLOBAL": os.devnull}
    assert "user.useConfigOnly" in failure(checkout, out, **nobody)
    assert "no `git` on the PATH" in failure(checkout, out, PATH=str(plain))
    template = ".github/pull_request_template.md"
    bare = make_checkout(tmp_path / "bare", {**BOTH, template: "# Description\n"})
    assert "has no '## Type of change'" in failure(bare, out)
