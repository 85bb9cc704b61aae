"""The compiler flags for our own C++. Third-party headers are included with -isystem, so the warnings do not apply to them."""

TORCHTRT_COPTS = [
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wshadow",
    "-Wconversion",
    "-Wsign-conversion",
    "-Wnon-virtual-dtor",
    "-Wold-style-cast",
    "-Woverloaded-virtual",
    "-Werror",
]
