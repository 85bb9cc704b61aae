"""Bazel 4's own values under other names, so that other files can export them under their names."""

# buildifier: disable=native-cc-info
native_cc_info = CcInfo

# buildifier: disable=native-cc-common
native_cc_common = cc_common
