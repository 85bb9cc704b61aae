"""@googletest for Bazel 4: the sources of Debian's package, under the labels of the module that Bazel 7 uses."""

_SOURCES = "/usr/src/googletest"

_BUILD = """
load("@rules_cc//cc:defs.bzl", "cc_library")

package(default_visibility = ["//visibility:public"])

cc_library(
    name = "gtest",
    srcs = [
        "googlemock/src/gmock-all.cc",
        "googletest/src/gtest-all.cc",
    ],
    hdrs = glob(["googletest/include/**/*.h", "googlemock/include/**/*.h"]),
    copts = ["-Iexternal/googletest/googletest", "-Iexternal/googletest/googlemock"],
    includes = ["googletest/include", "googlemock/include"],
    linkopts = ["-pthread"],
    textual_hdrs = glob(["googletest/src/*", "googlemock/src/*"]),
)

cc_library(
    name = "gtest_main",
    srcs = ["googlemock/src/gmock_main.cc"],
    deps = [":gtest"],
)
"""

def _googletest_impl(ctx):
    if not ctx.path(_SOURCES + "/googletest/include/gtest/gtest.h").exists:
        fail("GoogleTest's sources are not in {}. To get them: apt-get install googletest".format(_SOURCES))
    for folder in ["googletest", "googlemock"]:
        ctx.symlink(_SOURCES + "/" + folder, folder)
    ctx.file("BUILD", _BUILD)

googletest = repository_rule(implementation = _googletest_impl, local = True)
