"""wine_test: a windows_binary that is a test, run by @mingw's wine."""

load("@mingw//:defs.bzl", "WINE")

def _wine_test_impl(ctx):
    launcher = ctx.actions.declare_file(ctx.label.name)
    ctx.actions.expand_template(
        template = ctx.file._template,
        output = launcher,
        substitutions = {
            "@PROGRAM@": ctx.file.program.short_path,
            "@WINE@": WINE,
        },
        is_executable = True,
    )
    return [DefaultInfo(executable = launcher, runfiles = ctx.runfiles([ctx.file.program]))]

wine_test = rule(
    implementation = _wine_test_impl,
    attrs = {
        "program": attr.label(
            mandatory = True,
            allow_single_file = [".exe"],
            doc = "the windows_binary",
        ),
        "_template": attr.label(
            default = "//tools/cc:run_in_wine.sh",
            allow_single_file = True,
        ),
    },
    test = True,
)
