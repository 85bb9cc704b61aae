"""The module extension of MODULE.bazel; a file of its own because Bazel 4 does not know the word."""

load("//third_party:repositories.bzl", "repositories")

repositories_extension = module_extension(implementation = lambda _: repositories())
