"""Bazel 4's own names, under others, so that a file can export them under theirs."""

# buildifier: disable=native-cc-info
native_cc_info = CcInfo

# buildifier: disable=native-cc-common
native_cc_common = cc_common
