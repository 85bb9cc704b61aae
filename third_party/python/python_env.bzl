"""Repositories of Python packages, made by `python3 -m venv` and pip from pinned requirements files.

No package is declared as a file of the repository: an environment with torch has 30,000 of them, and a sandbox would link each one
for every action. Programs reach them through `:python`, a launcher that names the interpreter by its absolute path. What depends on
`:python`, other repositories too, is made again when the environment changes, because the launcher holds the hash of the requirements or
versions.
"""

load("//third_party:run.bzl", "run")

_PIP = ["-m", "pip", "--disable-pip-version-check", "--no-input", "install", "--progress-bar=off"]

_SUPPORTED = "Python 3.10 to 3.14"

_VERSION_PROGRAM = """
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 14):
    sys.exit("it is Python " + sys.version.split()[0])
import ensurepip, venv
"""

# Prints the versions that the interpreter's environment has of the packages of a requirements file. Any version will do, except where a
# pyproject.toml says which.
_VERSIONS_PROGRAM = """
import re, sys
from importlib import metadata
try:
    from packaging.requirements import Requirement
except ImportError:
    sys.exit("It lacks the package packaging, without which the others can't be checked.")
requirements, project = (open(path).read() for path in sys.argv[1:])
ranges = dict(re.findall(r'"([\\w-]+)([<>=!~][^"]+)"', project))
versions, missing = [], []
for line in requirements.splitlines():
    text = line.split("#")[0].strip()
    if not text:
        continue
    requirement = Requirement(text)
    if requirement.marker and not requirement.marker.evaluate():
        continue
    name = requirement.name
    wanted = name + ranges.get(name, "")
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        missing.append(wanted + " (not installed)")
        continue
    if found not in Requirement(wanted).specifier:
        missing.append(wanted + " (found " + found + ")")
    versions.append(name + " " + found)
if missing:
    sys.exit("It lacks:\\n  " + "\\n  ".join(missing))
print(versions)
"""

_LAUNCHER = """#!/bin/sh
# {identity}
exec "{python}" "$@"
"""

_BUILD = """
package(default_visibility = ["//visibility:public"])

exports_files(["python"])
"""

def _make_venv(ctx):
    """Makes an empty virtual environment at venv/ and returns its interpreter: the only one sure to have pip."""
    hint = "Install it (Debian, Ubuntu: apt-get install python3 python3-venv), or name an interpreter by TORCHTRT_PYTHON."
    python = ctx.which("python3")
    if python == None:
        fail("No python3 on the PATH; {} with venv is needed. {}".format(_SUPPORTED, hint))
    result = ctx.execute([python, "-c", _VERSION_PROGRAM])
    if result.return_code != 0:
        fail("{} can't be used: {} with venv is needed, but {} {}".format(python, _SUPPORTED, result.stderr.strip(), hint))
    ctx.report_progress("Making a virtual environment with {}".format(python))
    run(ctx, [python, "-m", "venv", "venv"], "{} -m venv".format(python))
    return ctx.path("venv/bin/python")

def site_packages(ctx, label):
    """The site-packages folder of a python_env repository, given the label of a file of it."""
    return ctx.path(label).dirname.get_child("site-packages").realpath

def _finish(ctx, python, identity):
    folder = run(ctx, [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], "Asking {} for its packages".format(python), quiet = True)
    ctx.symlink(folder, "site-packages")
    ctx.file("python", _LAUNCHER.format(python = python, identity = identity), executable = True)
    ctx.file("BUILD", _BUILD)

def _python_env_impl(ctx):
    requirements = ctx.path(ctx.attr.requirements)
    named = ctx.os.environ.get("TORCHTRT_PYTHON", "") if ctx.attr.project else ""
    if named:
        ctx.report_progress("Checking the environment of " + named)
        versions = run(
            ctx,
            [named, "-c", _VERSIONS_PROGRAM, requirements, ctx.path(ctx.attr.project)],
            "Asking TORCHTRT_PYTHON={} for its packages".format(named),
            "It must be a Python interpreter that has what {0} lists: {1} -m pip install -r {0}".format(requirements, named),
            quiet = True,
        )
        _finish(ctx, named, identity = str(hash(versions)))
        return

    python = _make_venv(ctx)
    ctx.report_progress("pip installs {}: {}".format(requirements.basename, ctx.attr.effort))
    run(
        ctx,
        [python] + _PIP + ["--requirement", requirements],
        "pip install -r {}".format(requirements),
        "Is a package index reachable? TORCHTRT_PYTHON=/path/to/python uses an environment that has the packages.",
    )
    _finish(ctx, python, identity = str(hash(ctx.read(requirements))))

python_env = repository_rule(
    implementation = _python_env_impl,
    attrs = {
        "effort": attr.string(mandatory = True, doc = "how much there is to download, for the message"),
        "project": attr.label(
            allow_single_file = True,
            doc = "a pyproject.toml; TORCHTRT_PYTHON, where set, is used instead if it has versions of the packages in its ranges",
        ),
        "requirements": attr.label(mandatory = True, allow_single_file = True),
    },
    environ = ["TORCHTRT_PYTHON"],
    doc = "A virtual environment with the packages of a requirements file. //:python is its interpreter.",
)

def _python_packages_impl(ctx):
    requirements = ctx.path(ctx.attr.requirements)
    python = _make_venv(ctx)
    ctx.report_progress("pip installs {}".format(requirements.basename))
    run(
        ctx,
        [python] + _PIP + ["--no-deps", "--target", "packages", "--requirement", requirements],
        "pip install -r {}".format(requirements),
    )
    ctx.file("BUILD", """
package(default_visibility = ["//visibility:public"])

exports_files(["packages"])
""")

python_packages = repository_rule(
    implementation = _python_packages_impl,
    attrs = {"requirements": attr.label(mandatory = True, allow_single_file = True)},
    doc = "A folder of packages alone, //:packages, to put on PYTHONPATH before those of another environment.",
)
