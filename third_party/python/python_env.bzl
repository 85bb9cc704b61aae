"""Repositories of Python packages, made by `python3 -m venv` and pip from pinned requirements files.

The repositories declare no files of packages: an environment with torch has 30,000, and a sandbox would link each of them for every
action. Programs reach the packages through `:python`, a launcher with the absolute path of the interpreter. The launcher also has the
hash of the requirements or versions. So all targets and repositories that depend on `:python` are made again when the environment
changes.
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

# Prints the installed versions of the packages of a requirements file. If a pyproject.toml has a range for a package, its version must be
# in the range. Of the other packages, any version will do.
_VERSIONS_PROGRAM = """
import re, sys
from importlib import metadata
try:
    from packaging.requirements import Requirement
except ImportError:
    sys.exit("It lacks the package packaging, which is required to check the others.")
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
    """Makes an empty virtual environment at venv/ and returns its interpreter, which always has pip."""
    hint = "Install it (Debian, Ubuntu: apt-get install python3 python3-venv), or name an interpreter by TORCHTRT_PYTHON."
    python = ctx.which("python3")
    if python == None:
        fail("python3 is not on the PATH. {} with venv is required. {}".format(_SUPPORTED, hint))
    result = ctx.execute([python, "-c", _VERSION_PROGRAM])
    if result.return_code != 0:
        fail("{0} can't be used: {2}. {1} with venv is required. {3}".format(python, _SUPPORTED, result.stderr.strip(), hint))
    ctx.report_progress("Making a virtual environment with {}".format(python))
    run(ctx, [python, "-m", "venv", "venv"], "{} -m venv".format(python))
    return ctx.path("venv/bin/python")

def site_packages(ctx, label):
    """Returns the site-packages folder of the python_env repository that has the file `label`."""
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
            "It must be a Python interpreter with the packages that {0} lists. To install them: {1} -m pip install -r {0}".format(requirements, named),
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
        "effort": attr.string(mandatory = True, doc = "size of the download, for the message"),
        "project": attr.label(
            allow_single_file = True,
            doc = "a pyproject.toml with ranges of versions. With it, TORCHTRT_PYTHON can name an environment to use instead",
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
    doc = "A folder of packages, //:packages, for PYTHONPATH. It has no interpreter.",
)
