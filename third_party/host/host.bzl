"""@host: the platform tag of a wheel that is built on this machine. The tag must be known before anything is built."""

# Newest release of GCC with which the wheel runs on manylinux_2_28. Later C++ libraries add symbols that py/glibc_2_28.cpp lacks.
_NEWEST_RELEASE = 12

def _output(ctx, command):
    result = ctx.execute(["sh", "-c", command])
    return result.stdout.strip() if result.return_code == 0 else ""

def _host_impl(ctx):
    machine = _output(ctx, "uname -m")

    # Finds a line such as "#define _GLIBCXX_RELEASE 12". Clang prints it, too.
    release = _output(ctx, "echo '#include <cstddef>' | ${CC:-gcc} -x c++ -E -dM - | grep _GLIBCXX_RELEASE").split(" ")[-1]
    is_portable = machine == "x86_64" and release.isdigit() and int(release) <= _NEWEST_RELEASE
    ctx.file("platform.bzl", 'PLATFORM_TAG = "{}_{}"\n'.format("manylinux_2_28" if is_portable else "linux", machine))
    ctx.file("BUILD", "")

host = repository_rule(
    implementation = _host_impl,
    environ = ["CC"],
    local = True,
)
