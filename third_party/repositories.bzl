"""Every repository that our own rules make, for both WORKSPACE and MODULE.bazel."""

load("//third_party/buildifier:buildifier.bzl", "buildifier")
load("//third_party/host:host.bzl", "host")
load("//third_party/mingw:mingw.bzl", "mingw")
load("//third_party/python:cuda.bzl", "cuda")
load("//third_party/python:libtorch.bzl", "libtorch")
load("//third_party/python:python_env.bzl", "python_env", "python_packages")
load("//third_party/tensorrt_rtx:tensorrt_rtx.bzl", "tensorrt_rtx")

def repositories():
    """Declares the repositories. Each is fetched when something needs it."""
    python_env(
        name = "python_env",
        effort = "torch alone is a download of 3 GB and takes minutes",
        project = "//py:pyproject.toml",
        requirements = "//third_party/python:requirements.txt",
    )
    python_env(
        name = "lint_env",
        effort = "about 100 MB",
        requirements = "//third_party/python:requirements_lint.txt",
    )
    python_packages(
        name = "filelock_3",
        requirements = "//third_party/python:filelock_3.txt",
    )
    libtorch(
        name = "libtorch",
        python_env = "@python_env//:python",
    )
    cuda(
        name = "cuda",
        python_env = "@python_env//:python",
    )
    tensorrt_rtx(
        name = "tensorrt_rtx",
        python_env = "@python_env//:python",
    )
    buildifier(
        name = "buildifier",
        lint_env = "@lint_env//:BUILD",
    )
    host(name = "host")
    mingw(name = "mingw")
