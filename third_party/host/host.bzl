"""@host: what the machine that builds is, for names that must be known before anything is built."""

def _output(ctx, command):
    result = ctx.execute(command)
    return result.stdout.strip() if result.return_code == 0 else ""

def _host_impl(ctx):
    machine = _output(ctx, ["uname", "-m"])

    # "glibc 2.36"; empty where the C library is another. A library built here needs at most this version.
    glibc = _output(ctx, ["getconf", "GNU_LIBC_VERSION"]).split(" ")
    system = "manylinux_" + glibc[1].replace(".", "_") if glibc[0] == "glibc" else "linux"
    ctx.file("platform.bzl", 'PLATFORM_TAG = "{}_{}"\n'.format(system, machine))
    ctx.file("BUILD", "")

host = repository_rule(implementation = _host_impl, local = True)
