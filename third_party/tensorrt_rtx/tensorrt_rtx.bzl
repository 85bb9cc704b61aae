"""@tensorrt_rtx: TensorRT-RTX's library and its C++ headers, under upstream's label //:nvinfer.

The library comes from the tensorrt_rtx package, which has no headers. The headers of the same minor version come from a crate.
$TENSORRT_RTX_HOME, an unpacked SDK, overrides both.
"""

load("//third_party:run.bzl", "run")
load("//third_party:shared_library.bzl", "linked_library_from", "run_path")
load("//third_party/python:python_env.bzl", "site_packages")

_BUILD = """
load("@rules_cc//cc:defs.bzl", "cc_library")
load("@torch_tensorrt//third_party:shared_library.bzl", "linked_library")

package(default_visibility = ["//visibility:public"])

cc_library(
    name = "nvinfer",
    hdrs = glob(["include/*.h"]),
    includes = ["include"],
    deps = [
        ":tensorrt_rtx",
        "@cuda//:cudart",
    ],
)

filegroup(
    name = "version_header",
    srcs = ["include/NvInferVersion.h"],
)
"""

_MINIMUM_CARGO = (1, 78)  # the first to read version 4 of the lock file

_CARGO_HINT = """On Debian 12: apt-get install cargo-web, because the package cargo is too old. Elsewhere: install Rust {}.{} or newer.
TENSORRT_RTX_HOME=/path/to/an/unpacked/SDK needs no cargo.""".format(*_MINIMUM_CARGO)

def _find_cargo(ctx):
    """Returns the first cargo on the PATH that works and is new enough, and the environment that it needs."""
    tried = []
    for folder in ctx.os.environ.get("PATH", "").split(":"):
        cargo = ctx.path(folder + "/cargo") if folder.startswith("/") else None
        if cargo == None or not cargo.exists:
            continue

        # rustup's stand-in looks for its toolchains in the home directory. On build machines, HOME may be another directory. The
        # toolchains are still beside the stand-in.
        environment = {}
        toolchains = ctx.path(folder + "/../../.rustup")
        if toolchains.exists and "RUSTUP_HOME" not in ctx.os.environ:
            environment["RUSTUP_HOME"] = str(toolchains)
        result = ctx.execute([cargo, "--version"], environment = environment)
        words = result.stdout.split(" ")
        if result.return_code != 0 or len(words) < 2:
            tried.append("{} does not run: {}".format(cargo, result.stderr.strip()))
            continue
        if tuple([int(part) for part in words[1].split(".")[:2]]) >= _MINIMUM_CARGO:
            return cargo, environment
        tried.append("{} is {}".format(cargo, words[1]))
    fail("No usable cargo on the PATH ({}).\n{}".format("; ".join(tried) or "there is none", _CARGO_HINT))

def _fetch_headers(ctx, version):
    """Returns the crate's folder with the headers of the minor version. A lock file pins the crate and its dependencies."""
    cargo, environment = _find_cargo(ctx)
    ctx.report_progress("Fetching the headers of TensorRT-RTX {} with cargo".format(version))
    ctx.template("crate/Cargo.toml", ctx.attr.cargo_toml)
    ctx.file("crate/lib.rs")
    manifest = ["--manifest-path", ctx.path("crate/Cargo.toml")]
    metadata = [cargo, "metadata", "--format-version", "1"] + manifest

    # Only cargo knows from which registry it takes crates, and the lock file must name it.
    described = json.decode(run(ctx, metadata + ["--no-deps"], "cargo metadata --no-deps", quiet = True, environment = environment))
    registry = described["packages"][0]["dependencies"][0]["source"]
    ctx.template("crate/Cargo.lock", ctx.attr.cargo_lock, {"@REGISTRY@": registry})

    run(ctx, [cargo, "fetch", "--locked"] + manifest, "cargo fetch", "Is a crate registry reachable? " + _CARGO_HINT, environment = environment)
    resolved = json.decode(run(ctx, metadata + ["--locked", "--offline"], "cargo metadata", quiet = True, environment = environment))
    crate = [package for package in resolved["packages"] if package["name"] == "trtx-sys"][0]
    headers = ctx.path(crate["manifest_path"]).dirname.get_child("TensorRT-Headers")
    return headers.get_child("TRT-RTX-" + ".".join(version.split(".")[:2]))

def _tensorrt_rtx_impl(ctx):
    home = ctx.os.environ.get("TENSORRT_RTX_HOME", "")
    if home:
        include = ctx.path(home).get_child("include")
        libraries = ctx.path(home).get_child("lib")
        library = libraries.get_child("libtensorrt_rtx.so")
        hint = "TENSORRT_RTX_HOME={} must be an unpacked SDK with include/ and lib/.".format(home)
    else:
        packages = site_packages(ctx, ctx.attr.python_env)
        libraries = packages.get_child("tensorrt_rtx_libs")
        library = libraries.get_child("libtensorrt_rtx.so.1")
        include = _fetch_headers(ctx, _version_of_package(packages))
        hint = "Another version of the crate may have it. third_party/tensorrt_rtx/Cargo.toml names the version."
    if not include.get_child("NvInferVersion.h").exists:
        fail("NvInferVersion.h is missing from {}. {}".format(include, hint))

    # A copy: cargo may clean its own folder at any time.
    run(ctx, ["cp", "-RL", include, "include"], "Copying " + str(include))
    ctx.file("BUILD", _BUILD + run_path(libraries) + linked_library_from(ctx, "tensorrt_rtx", library))

def _version_of_package(packages):
    for entry in packages.readdir():
        name = entry.basename
        if name.startswith("tensorrt_rtx-") and name.endswith(".dist-info"):
            return name[len("tensorrt_rtx-"):-len(".dist-info")]
    fail("The package tensorrt_rtx is missing from {}".format(packages))

tensorrt_rtx = repository_rule(
    implementation = _tensorrt_rtx_impl,
    attrs = {
        "cargo_lock": attr.label(default = "//third_party/tensorrt_rtx:Cargo.lock.template", allow_single_file = True),
        "cargo_toml": attr.label(default = "//third_party/tensorrt_rtx:Cargo.toml", allow_single_file = True),
        "python_env": attr.label(mandatory = True, doc = "the python of a python_env repository. If that changes, this repository is made again"),
    },
    environ = ["TENSORRT_RTX_HOME"],
)
