"""Bazel 4's built-in values under other names. cc_common.bzl and cc_info.bzl export them under the usual names."""

# buildifier: disable=native-cc-info
native_cc_info = CcInfo

# buildifier: disable=native-cc-common
native_cc_common = cc_common
