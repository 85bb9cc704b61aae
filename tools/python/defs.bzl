"""Python programs and pytest targets that run with the interpreter of @python_env.

The native py_binary and py_test are not used. Their launcher in Bazel 4 needs a command named `python` on the PATH, and every build, even
one without Python, would have to register a Python toolchain.
"""

PythonPathInfo = provider(
    doc = "Says that a target in `deps` has Python packages, which come before the workspace's own.",
    fields = {"folder": "path of the packages' folder below the runfiles of the workspace"},
)

_LAUNCHER = """#!/usr/bin/env bash
set -euo pipefail
runfiles=${{RUNFILES_DIR:-${{TEST_SRCDIR:-$0.runfiles}}}}
[ -d "$runfiles" ] || {{ echo "$0: no runfiles at $runfiles" >&2; exit 1; }}
root=$(cd "$runfiles" && pwd)/{workspace}
export PYTHONPATH={path} PYTHONNOUSERSITE=1
{exports}
{command}
"""

# pytest exits with 5 if the filter matches no test. Such a target passes, as it does with GoogleTest.
_WITHOUT_TESTS = """ || {
  status=$?
  [ $status = 5 ] && [ -n "${TESTBRIDGE_TEST_ONLY:-}" ] || exit $status
}"""

def _implement(ctx, file, command):
    """Returns a launcher that runs `command`. `file` is what the command names in addition to srcs."""
    runfiles = ctx.runfiles(files = ctx.files.srcs + ctx.files.data + [ctx.file._python, file])
    exports = []
    for target, name in ctx.attr.data_env.items():
        file = target.files.to_list()[0]
        exports.append('export {}="$root/{}"'.format(name, file.short_path))
        runfiles = runfiles.merge(ctx.runfiles(files = [file])).merge(target[DefaultInfo].default_runfiles)
    for dependency in ctx.attr.data + ctx.attr.deps:
        runfiles = runfiles.merge(dependency[DefaultInfo].default_runfiles)
    path = ["$root/" + target[PythonPathInfo].folder for target in ctx.attr.deps if PythonPathInfo in target]
    path += ["$root", "$root/py"]
    launcher = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.write(launcher, _LAUNCHER.format(
        workspace = ctx.workspace_name,
        path = ":".join(path),
        exports = "\n".join(exports),
        command = command,
    ), is_executable = True)
    return [DefaultInfo(executable = launcher, runfiles = runfiles)]

def _python_command(ctx, arguments):
    return '"$root/{}" {} "$@"'.format(ctx.file._python.short_path, arguments)

def _python_program_impl(ctx):
    return _implement(ctx, ctx.file.main, "exec " + _python_command(ctx, '"$root/{}"'.format(ctx.file.main.short_path)))

def _pytest_test_impl(ctx):
    files = " ".join(['"$root/{}"'.format(file.short_path) for file in ctx.files.srcs if file.basename.startswith("test_")])
    if not files:
        fail("{} has no file named test_*.py in srcs".format(ctx.label))
    return _implement(ctx, ctx.file._config, _python_command(ctx, " ".join([
        "-m pytest -p no:cacheprovider",
        '-c "$root/{}" --rootdir "$root"'.format(ctx.file._config.short_path),
        '--junitxml="$XML_OUTPUT_FILE"',
        '${TESTBRIDGE_TEST_ONLY:+-k "$TESTBRIDGE_TEST_ONLY"}',
        files,
    ])) + _WITHOUT_TESTS)

_ATTRIBUTES = {
    "data": attr.label_list(allow_files = True),
    "data_env": attr.label_keyed_string_dict(
        allow_files = True,
        doc = "targets of one file each, and the environment variables that give the program their absolute paths",
    ),
    "deps": attr.label_list(),
    "srcs": attr.label_list(allow_files = [".py"]),
    "_python": attr.label(default = "@python_env//:python", allow_single_file = True),
}

python_program = rule(
    implementation = _python_program_impl,
    attrs = dict(_ATTRIBUTES, main = attr.label(mandatory = True, allow_single_file = [".py"])),
    executable = True,
    doc = "A script for `bazel run`, with the workspace's root and py/ on its path.",
)

pytest_test = rule(
    implementation = _pytest_test_impl,
    attrs = dict(_ATTRIBUTES, _config = attr.label(default = "//:pyproject.toml", allow_single_file = True)),
    test = True,
    doc = "Runs the files in srcs named test_*.py under pytest. --test_filter becomes pytest's -k.",
)
