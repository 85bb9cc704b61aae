"""Links a library that pip installed: by its file at link time, and by a run path at run time.

cc_import would make Bazel put a link to the library into _solib. The run paths inside torch's libraries are relative to their own folder and
lead nowhere from there. cc_import would also put run paths to _solib into the shipped library.
"""

load("@rules_cc//cc/common:cc_common.bzl", "cc_common")
load("@rules_cc//cc/common:cc_info.bzl", "CcInfo")

def _linked_library_impl(ctx):
    linker_input = cc_common.create_linker_input(
        owner = ctx.label,
        # At run time, torch's libraries find CUDA's by their own run paths.
        user_link_flags = depset([ctx.file.library.path, "-Wl,--allow-shlib-undefined"]),
        additional_inputs = depset([ctx.file.library]),
    )
    return [CcInfo(linking_context = cc_common.create_linking_context(linker_inputs = depset([linker_input])))]

linked_library = rule(
    implementation = _linked_library_impl,
    attrs = {"library": attr.label(mandatory = True, allow_single_file = True)},
    doc = "Adds a shared library to the command line of the targets linked with it, and nothing else.",
)

_LINKED_LIBRARY = """
linked_library(
    name = "{name}",
    library = "link/lib{name}.so",
)
"""

_RUN_PATH = """
# For programs that run only on this machine. The shipped library has its own run paths.
cc_library(
    name = "run_path",
    linkopts = ["-Wl,-rpath,{folder}"],
)
"""

def linked_library_from(ctx, name, file):
    """Makes lib`name` linkable in a repository rule.

    Args:
      ctx: the repository_ctx.
      name: the library's name without `lib`, also the target's.
      file: path of the shared library.

    Returns:
      The target for the repository's BUILD file, which must load linked_library.
    """
    if not file.exists:
        fail("{} is missing. Is the package complete?".format(file))
    ctx.symlink(file, "link/lib{}.so".format(name))
    return _LINKED_LIBRARY.format(name = name)

def run_path(folder):
    """Returns a cc_library //:run_path that lets a program find the libraries in a folder at run time."""
    return _RUN_PATH.format(folder = folder)
