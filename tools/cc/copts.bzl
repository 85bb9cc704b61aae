"""The compiler flags of our own C++, in one place. Third-party headers come by -isystem, so none of these reach them."""

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
