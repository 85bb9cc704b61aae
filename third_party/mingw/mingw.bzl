"""@mingw: the Windows cross compiler and wine of this machine, if it has both.

@mingw//:defs.bzl defines AVAILABLE, and GXX and WINE, their absolute paths or empty strings. Nothing is installed. Debian's packages are
g++-mingw-w64-x86-64-posix and wine.
"""

_DEFS = """AVAILABLE = {available}
GXX = "{gxx}"
WINE = "{wine}"
"""

def _mingw_impl(ctx):
    # The compiler with the POSIX thread model. Before GCC 13, the standard library of the other model has no std::thread.
    gxx = ctx.which("x86_64-w64-mingw32-g++-posix")
    wine = ctx.which("wine")
    ctx.file("BUILD")
    ctx.file("defs.bzl", _DEFS.format(
        available = gxx != None and wine != None,
        gxx = gxx or "",
        wine = wine or "",
    ))

mingw = repository_rule(
    implementation = _mingw_impl,
    local = True,
    environ = ["PATH"],
)
