"""The part of rules_python that this project uses. Bazel 4 has these rules built in."""

py_library = native.py_library
