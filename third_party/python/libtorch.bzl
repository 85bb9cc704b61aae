"""@libtorch: the C++ half of the torch package of a python_env, under upstream's labels."""

load("//third_party:shared_library.bzl", "linked_library_from", "run_path")
load(":python_env.bzl", "site_packages")

# Only the headers that torch extensions include, because the sandbox links each of them for every action.
_BUILD = """
load("@rules_cc//cc:defs.bzl", "cc_library")
load("@torch_tensorrt//third_party:shared_library.bzl", "linked_library")

package(default_visibility = ["//visibility:public"])

cc_library(
    name = "libtorch",
    hdrs = glob(
        [
            "include/ATen/**/*.h",
            "include/c10/**/*.h",
            "include/torch/**/*.h",
        ],
        exclude = [
            "include/ATen/ops/*_native.h",
            "include/torch/csrc/inductor/**",
        ],
    ),
    includes = [
        "include",
        "include/torch/csrc/api/include",
    ],
    deps = [":c10", ":torch", ":torch_cpu"],
)

filegroup(
    name = "version_header",
    srcs = ["include/torch/headeronly/version.h"],
)
"""

_LIBRARIES = ["c10", "torch", "torch_cpu"]

def _libtorch_impl(ctx):
    torch = site_packages(ctx, ctx.attr.python_env).get_child("torch")
    ctx.symlink(torch.get_child("include"), "include")
    libraries = torch.get_child("lib")
    rules = [linked_library_from(ctx, name, libraries.get_child("lib{}.so".format(name))) for name in _LIBRARIES]
    ctx.file("BUILD", _BUILD + run_path(libraries) + "".join(rules))

libtorch = repository_rule(
    implementation = _libtorch_impl,
    attrs = {"python_env": attr.label(mandatory = True, doc = "the python of a python_env repository. If that changes, this repository is made again")},
)
