"""@cuda: the CUDA headers, from the nvidia packages of a python_env or from $CUDA_HOME."""

load(":python_env.bzl", "site_packages")

_BUILD = """
load("@rules_cc//cc:defs.bzl", "cc_library")

package(default_visibility = ["//visibility:public"])

cc_library(
    name = "cudart",
    hdrs = glob(
        [
            "include/*.h",
            "include/*.hpp",
            "include/crt/**",
        ],
    ),
    includes = ["include"],
)
"""

def _cuda_impl(ctx):
    home = ctx.os.environ.get("CUDA_HOME", "")
    if home:
        include = ctx.path(home).get_child("include")
        hint = "CUDA_HOME={} must be a CUDA toolkit. If CUDA_HOME is not set, pip's nvidia packages are used.".format(home)
    else:
        include = site_packages(ctx, ctx.attr.python_env).get_child("nvidia").get_child("cu13").get_child("include")
        hint = "The packages nvidia-cuda-runtime and nvidia-cuda-crt have it. CUDA_HOME=/path/to/toolkit overrides them."
    for header in ["cuda_runtime_api.h", "crt/host_defines.h"]:
        if not ctx.path(str(include) + "/" + header).exists:
            fail("{} is missing from {}. {}".format(header, include, hint))
    ctx.symlink(include, "include")
    ctx.file("BUILD", _BUILD)

cuda = repository_rule(
    implementation = _cuda_impl,
    attrs = {"python_env": attr.label(mandatory = True, doc = "the python of a python_env repository. If that changes, this repository is made again")},
    environ = ["CUDA_HOME"],
)
