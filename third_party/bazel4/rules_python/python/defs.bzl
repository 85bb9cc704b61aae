"""The part of rules_python that this project uses: Bazel 4 has the rules built in."""

py_library = native.py_library
