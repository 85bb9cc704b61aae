"""windows_binary: the same cc_library targets that Linux tests use, compiled once more for Windows by @mingw's compiler.

A C++ toolchain for Windows would also work, but Bazel 4 and 8 need two different descriptions of it, and every machine would need it.
"""

load("@mingw//:defs.bzl", "GXX")
load("@rules_cc//cc/common:cc_info.bzl", "CcInfo")

_SourcesInfo = provider(
    doc = "What it takes to compile a cc_library and all that it depends on.",
    fields = {
        "headers": "depset of files",
        "include_options": "depset of compiler options",
        "units": "depset of structs of a source file and the options that its target asks for",
    },
)

_SOURCE_EXTENSIONS = ["cc", "cpp"]

def _sources_aspect_impl(target, ctx):
    dependencies = [dependency[_SourcesInfo] for dependency in ctx.rule.attr.deps if _SourcesInfo in dependency]
    context = target[CcInfo].compilation_context
    include_options = (
        ["-iquote" + path for path in context.quote_includes.to_list()] +
        ["-I" + path for path in context.includes.to_list()] +
        ["-isystem" + path for path in context.system_includes.to_list()] +
        ["-D" + define for define in context.defines.to_list()]
    )
    sources = [file for file in ctx.rule.files.srcs if file.extension in _SOURCE_EXTENSIONS]
    private_headers = [file for file in ctx.rule.files.srcs if file.extension not in _SOURCE_EXTENSIONS]
    return [_SourcesInfo(
        headers = depset(
            private_headers,
            transitive = [context.headers] + [info.headers for info in dependencies],
        ),
        include_options = depset(
            include_options,
            transitive = [info.include_options for info in dependencies],
        ),
        units = depset(
            [struct(source = source, options = tuple(ctx.rule.attr.copts)) for source in sources],
            transitive = [info.units for info in dependencies],
        ),
    )]

_sources_aspect = aspect(
    implementation = _sources_aspect_impl,
    attr_aspects = ["deps"],
)

def _windows_binary_impl(ctx):
    infos = [dependency[_SourcesInfo] for dependency in ctx.attr.deps]
    headers = depset(transitive = [info.headers for info in infos])
    include_options = depset(transitive = [info.include_options for info in infos])
    objects = []
    for number, unit in enumerate(depset(transitive = [info.units for info in infos]).to_list()):
        object = ctx.actions.declare_file("{}_objects/{}_{}.o".format(ctx.label.name, number, unit.source.basename))
        compile = ctx.actions.args()
        compile.add_all(["-std=c++20", "-O1", "-c", unit.source, "-o", object])
        compile.add_all(unit.options)
        compile.add_all(include_options)
        ctx.actions.run(
            executable = GXX,
            arguments = [compile],
            inputs = depset([unit.source], transitive = [headers]),
            outputs = [object],
            mnemonic = "WindowsCompile",
            use_default_shell_env = True,
        )
        objects.append(object)
    program = ctx.actions.declare_file(ctx.label.name + ".exe")
    link = ctx.actions.args()
    link.add_all(objects)
    link.add_all(["-static", "-o", program])
    ctx.actions.run(
        executable = GXX,
        arguments = [link],
        inputs = objects,
        outputs = [program],
        mnemonic = "WindowsLink",
        use_default_shell_env = True,
    )
    return [DefaultInfo(files = depset([program]), runfiles = ctx.runfiles([program]))]

def _windows_impl(_settings, _attr):
    return {"//tools/cc:is_windows": True}

_windows = transition(
    implementation = _windows_impl,
    inputs = [],
    outputs = ["//tools/cc:is_windows"],
)

windows_binary = rule(
    implementation = _windows_binary_impl,
    attrs = {
        "deps": attr.label_list(
            aspects = [_sources_aspect],
            cfg = _windows,
            providers = [CcInfo],
            doc = "cc_library targets, one of which has main()",
        ),
        "_allowlist_function_transition": attr.label(default = "@bazel_tools//tools/allowlists/function_transition_allowlist"),
    },
    doc = "NAME.exe, linked statically: it runs without the compiler's DLLs.",
)
