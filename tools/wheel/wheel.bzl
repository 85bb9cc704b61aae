"""Builds wheels from files of several packages with hatchling. One of the files is the project file."""

def _wheel_impl(ctx):
    wheel = ctx.actions.declare_file("{}-{}-{}.whl".format(
        ctx.attr.distribution.replace("-", "_"),
        ctx.attr.version,
        ctx.attr.tag,
    ))
    arguments = ctx.actions.args()
    arguments.add("--output", wheel)
    arguments.add("--tag", ctx.attr.tag)
    for target, folder in ctx.attr.files.items():
        for file in target.files.to_list():
            path = file.short_path
            if path.startswith(ctx.label.package + "/"):
                path = path[len(ctx.label.package) + 1:]
            arguments.add("{}{}={}".format(folder, path, file.path))
    ctx.actions.run(
        outputs = [wheel],
        inputs = ctx.files.files,
        executable = ctx.executable._build_wheel,
        arguments = [arguments],
        mnemonic = "Wheel",
        progress_message = "Building " + wheel.basename,
    )
    return [DefaultInfo(files = depset([wheel]))]

def _optimized_impl(_settings, _attr):
    return {"//command_line_option:compilation_mode": "opt"}

_optimized = transition(
    implementation = _optimized_impl,
    inputs = [],
    outputs = ["//command_line_option:compilation_mode"],
)

wheel = rule(
    implementation = _wheel_impl,
    attrs = {
        "distribution": attr.string(mandatory = True),
        "files": attr.label_keyed_string_dict(
            mandatory = True,
            allow_files = True,
            cfg = _optimized,  # the wheel is optimized even if the rest is not
            doc = "the wheel's files, and the folder of the project for each. Paths of files in this package are relative to it",
        ),
        "tag": attr.string(mandatory = True, doc = "compatibility tag, such as py3-none-manylinux_2_28_x86_64"),
        "version": attr.string(mandatory = True),
        "_allowlist_function_transition": attr.label(default = "@bazel_tools//tools/allowlists/function_transition_allowlist"),
        "_build_wheel": attr.label(default = "//tools/wheel:build_wheel", executable = True, cfg = "exec"),
    },
)
