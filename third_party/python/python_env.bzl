"""Repositories of Python packages, made by `python3 -m venv` and pip from pinned requirements files.

No package is declared as a file of the repository: an environment with torch has 30,000 of them, and a sandbox would link each one
for every action. Programs reach them through `:python`, a launcher that names the interpreter by its absolute path. What depends on
`:python` runs again when the environment changes, because the launcher holds the hash of the requirements.
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

# Prints the requirements that the interpreter's environment does not meet, one a line.
_MISSING_PROGRAM = """
import sys
from importlib import metadata
try:
    from packaging.requirements import Requirement
except ImportError:
    sys.exit(print("packaging (not installed), without which the others can't be checked"))
for line in open(sys.argv[1]):
    text = line.split("#")[0].strip()
    if not text:
        continue
    requirement = Requirement(text)
    if requirement.marker and not requirement.marker.evaluate():
        continue
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        print(text + " (not installed)")
        continue
    if found not in requirement.specifier:
        print(text + " (found " + found + ")")
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
    identity = ctx.read(requirements)
    named = ctx.os.environ.get("TORCHTRT_PYTHON", "") if ctx.attr.replaceable else ""
    if named:
        ctx.report_progress("Checking the environment of " + named)
        missing = run(
            ctx,
            [named, "-c", _MISSING_PROGRAM, requirements],
            "Asking TORCHTRT_PYTHON={} for its packages".format(named),
            "It must be the path of a Python interpreter.",
            quiet = True,
        )
        if missing:
            fail("The environment of TORCHTRT_PYTHON={python} lacks:\n  {missing}\nTo get them: {python} -m pip install -r {requirements}".format(
                python = named,
                missing = missing.replace("\n", "\n  "),
                requirements = requirements,
            ))
        _finish(ctx, named, identity = str(hash(identity)))
        return

    python = _make_venv(ctx)
    ctx.report_progress("pip installs {}: {}".format(requirements.basename, ctx.attr.effort))
    run(
        ctx,
        [python] + _PIP + ["--requirement", requirements],
        "pip install -r {}".format(requirements),
        "Is a package index reachable? TORCHTRT_PYTHON=/path/to/python uses an environment that has the packages.",
    )
    _finish(ctx, python, identity = str(hash(identity)))

python_env = repository_rule(
    implementation = _python_env_impl,
    attrs = {
        "effort": attr.string(mandatory = True, doc = "how much there is to download, for the message"),
        "replaceable": attr.bool(default = False, doc = "whether TORCHTRT_PYTHON, where set, is used instead"),
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
