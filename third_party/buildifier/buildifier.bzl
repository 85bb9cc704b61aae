"""@buildifier: the formatter of BUILD files, from its npm package."""

load("//third_party:run.bzl", "run")

_VERSION = "8.2.1"

_BUILD = """
package(default_visibility = ["//visibility:public"])

exports_files(["buildifier"])
"""

def _buildifier_impl(ctx):
    npm = ctx.path(ctx.attr.lint_env).dirname.get_child("venv").get_child("bin").get_child("npm")
    ctx.report_progress("npm installs buildifier {}".format(_VERSION))
    path = "{}:{}".format(npm.dirname, ctx.os.environ.get("PATH", ""))  # npm starts the node beside it
    run(
        ctx,
        ["env", "PATH=" + path, npm, "install", "--prefix", "npm", "--no-audit", "--no-fund", "@bazel/buildifier@" + _VERSION],
        "npm install @bazel/buildifier",
        "Is an npm registry reachable?",
    )
    machine = run(ctx, ["uname", "-m"], "uname", quiet = True)
    system = run(ctx, ["uname", "-s"], "uname", quiet = True).lower()
    names = {"aarch64": "arm64", "x86_64": "amd64"}
    ctx.symlink("npm/node_modules/@bazel/buildifier/buildifier-{}_{}".format(system, names.get(machine, machine)), "buildifier")
    ctx.file("BUILD", _BUILD)

buildifier = repository_rule(
    implementation = _buildifier_impl,
    attrs = {"lint_env": attr.label(mandatory = True, doc = "a file of the python_env repository with npm")},
)
