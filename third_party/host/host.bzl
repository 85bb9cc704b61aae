"""@host: the platform tag of a wheel that is built on this machine. The tag must be known before anything is built."""

# The newest release of GCC whose C++ library adds no symbols that py/glibc_2_28.cpp does not define.
_NEWEST_RELEASE = 12

def _output(ctx, command):
    result = ctx.execute(["sh", "-c", command])
    return result.stdout.strip() if result.return_code == 0 else ""

def _host_impl(ctx):
    machine = _output(ctx, "uname -m")

    # A line such as "#define _GLIBCXX_RELEASE 12". Clang has it, too.
    release = _output(ctx, "echo '#include <cstddef>' | ${CC:-gcc} -x c++ -E -dM - | grep _GLIBCXX_RELEASE").split(" ")[-1]
    is_portable = machine == "x86_64" and release.isdigit() and int(release) <= _NEWEST_RELEASE
    ctx.file("platform.bzl", 'PLATFORM_TAG = "{}_{}"\n'.format("manylinux_2_28" if is_portable else "linux", machine))
    ctx.file("BUILD", "")

host = repository_rule(
    implementation = _host_impl,
    environ = ["CC"],
    local = True,
)
