"""The module extension of MODULE.bazel. It has its own file because Bazel 4 does not know `module_extension`."""

load("//third_party:repositories.bzl", "repositories")

repositories_extension = module_extension(implementation = lambda _: repositories())
