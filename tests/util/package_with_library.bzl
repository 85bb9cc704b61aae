"""package_with_library: the Python package for tests, with another build of its C++ library."""

load("//tools/python:defs.bzl", "PythonPathInfo")

_LIBRARY = "torch_tensorrt/lib/libtorchtrt_runtime.so"

def _package_with_library_impl(ctx):
    folder = "{}/{}".format(ctx.label.package, ctx.label.name)
    symlinks = {}
    for file in ctx.files.package_files:
        path = file.short_path[len("py/"):]
        symlinks["{}/{}".format(folder, path)] = ctx.file.library if path == _LIBRARY else file
    return [
        DefaultInfo(runfiles = ctx.runfiles(symlinks = symlinks)),
        PythonPathInfo(folder = folder),
    ]

package_with_library = rule(
    implementation = _package_with_library_impl,
    attrs = {
        "library": attr.label(
            mandatory = True,
            allow_single_file = [".so"],
            doc = "replaces //py's library and must register the same names, because a process can load only one of the two",
        ),
        "package_files": attr.label(default = "//py:package_files"),
    },
    doc = "A target for the deps of a pytest_test or python_program, in place of //py:torch_tensorrt.",
)
