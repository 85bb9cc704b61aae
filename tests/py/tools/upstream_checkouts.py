"""Small git checkouts of the shape that pytorch/TensorRT has where the exported series touch it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

EXCEPTION_H = """\
#pragma once

#include <cstdint>
#include <exception>
#include <sstream>
#include <string>

namespace torch_tensorrt {
struct Error : std::exception {
  Error(const char*, uint32_t, const std::string& text) : text_(text) {}
  const char* what() const noexcept override {
    return text_.c_str();
  }
  std::string text_;
};
} // namespace torch_tensorrt
"""

# One argument, and no do-while, as upstream has them.
MACROS_H = """\
#pragma once
#include <iostream>
#include "core/util/Exception.h"
#define LOG_WARNING(...) (std::cerr << __VA_ARGS__ << std::endl)
#define TORCHTRT_THROW_ERROR(text) \\
  std::stringstream ss{};          \\
  ss << text;                      \\
  throw ::torch_tensorrt::Error(__FILE__, static_cast<uint32_t>(__LINE__), ss.str());
#define TORCHTRT_CHECK(cond, ...)      \\
  if (!(cond)) {                       \\
    TORCHTRT_THROW_ERROR(__VA_ARGS__); \\
  }
"""

UTIL_BUILD = """\
load("@rules_cc//cc:defs.bzl", "cc_library")

package(default_visibility = ["//visibility:public"])

cc_library(
    name = "prelude",
    hdrs = ["prelude.h"],
    deps = [":macros"],
)

cc_library(
    name = "macros",
    srcs = ["Exception.cpp"],
    hdrs = [
        "Exception.h",
        "macros.h",
    ],
)

filegroup(
    name = "include_files",
    srcs = [
        "Exception.h",
        "macros.h",
        "prelude.h",
    ],
)
"""

UTIL_CMAKE = """\
set(SOURCES
    "${CMAKE_CURRENT_SOURCE_DIR}/trt_util.cpp"
    "${CMAKE_CURRENT_SOURCE_DIR}/Exception.cpp"
)
# Exception.h is public
set(HEADERS
    "${CMAKE_CURRENT_SOURCE_DIR}/Exception.h"
    "${CMAKE_CURRENT_SOURCE_DIR}/macros.h")
"""

RUNTIME_BUILD = """\
load("@rules_cc//cc:defs.bzl", "cc_library")

package(default_visibility = ["//visibility:public"])

cc_library(
    name = "runtime",
    srcs = ["TRTRuntimeConfig.cpp"],
    hdrs = ["TRTRuntimeConfig.h"],
    deps = [
        "//core/plugins:torch_tensorrt_plugins",
        "//core/util:prelude",
    ] + select({
        "//conditions:default": ["@libtorch"],
    }),
)
"""

CONFIG_H = """\
#pragma once

#include <string>

namespace torch_tensorrt {
namespace core {
namespace runtime {

struct TRTRuntimeConfig {
  std::string runtime_cache_path;
  std::string cache;
  void ensure_initialized();
  void save_runtime_cache() noexcept;
};

} // namespace runtime
} // namespace core
} // namespace torch_tensorrt
"""

CONFIG_CPP_WITHOUT_FILES = """\
#include "core/runtime/TRTRuntimeConfig.h"

#include "core/util/prelude.h"

namespace torch_tensorrt {
namespace core {
namespace runtime {

void TRTRuntimeConfig::ensure_initialized() {}

} // namespace runtime
} // namespace core
} // namespace torch_tensorrt
"""

CONFIG_CPP = """\
#include "core/runtime/TRTRuntimeConfig.h"

#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/util/prelude.h"

namespace torch_tensorrt {
namespace core {
namespace runtime {

namespace {

// A brace in a comment: {
bool load_runtime_cache(const std::string& path, std::string& cache) {
  if (!std::filesystem::exists(path)) {
    return false;
  }
  std::ifstream file(path, std::ios::binary);
  cache.assign(std::istreambuf_iterator<char>(file), {});
  return true;
}

} // namespace

void TRTRuntimeConfig::ensure_initialized() {
  load_runtime_cache(runtime_cache_path, cache);
}

void TRTRuntimeConfig::save_runtime_cache() noexcept {
  if (cache.empty()) {
    return;
  }
  try {
    const std::filesystem::path target(runtime_cache_path);
    std::filesystem::create_directories(target.parent_path());
    const std::string temporary = target.string() + ".{tmp}";
    {
      std::ofstream file(temporary, std::ios::binary);
      file << cache;
    }
    std::filesystem::rename(temporary, target);
  } catch (const std::exception& error) {
    LOG_WARNING("no save: " << error.what());
  }
}

} // namespace runtime
} // namespace core
} // namespace torch_tensorrt
"""

TESTS_BUILD = """\
load("@rules_cc//cc:defs.bzl", "cc_test")

package(default_visibility = ["//visibility:public"])

test_suite(
    name = "tests",
    tests = [
        ":test_collections",
        ":test_multiple_registered_engines",
        ":test_tensorrt",
    ],
)

cc_test(
    name = "test_collections",
    srcs = ["test_collections.cpp"],
    deps = [
        "//tests/util",
        "@googletest//:gtest_main",
    ],
)
"""

TESTS_UTIL_BUILD = """\
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "util",
    srcs = ["util.cpp"],
)
"""

DOCS_INDEX = """\
Torch-TensorRT
==============

.. toctree::
   :caption: Contributors
   :hidden:

   contributors/system_overview
   contributors/runtime
   Indices <indices/supported_ops>
"""

TEMPLATE = """\
# Description

# Checklist:

- [ ] My code is tidy
- [x] My tests pass
"""

CACHE_PY = '''\
"""The cache that engines share."""

from __future__ import annotations

import logging
import os
from typing import Any, Optional

import torch_tensorrt

logger = logging.getLogger(__name__)


class Handle:
    def __init__(self, path: str) -> None:
        self.path = path


# The façade over a handle.
class RuntimeCache:
    """Saves itself when it goes, if it is told to."""

    def __init__(
        self,
        path: str = "",
        autosave_on_del: bool = False,
    ) -> None:
        self._handle: Any = Handle(path)
        self.autosave_on_del = autosave_on_del

    @property
    def path(self) -> str:
        return self._handle.path

    def save(self, path: Optional[str] = None) -> None:
        # Lazy, so that it fails when the interpreter shuts down.
        import json

        with open(path or self.path, "w") as file:
            json.dump(os.getpid(), file)

    def __del__(self) -> None:
        if not self.autosave_on_del:
            return
        try:
            self.save()
        except Exception as e:
            logger.warning(f"no autosave: {e}")

    def __repr__(self) -> str:
        return f"RuntimeCache({self.path!r})"
'''

TEST_CACHE_PY = """\
import os
import unittest

from torch_tensorrt.runtime import RuntimeCache


class TestRepr(unittest.TestCase):
    def test_path(self):
        self.assertEqual(repr(RuntimeCache(os.sep)), f"RuntimeCache({os.sep!r})")


if __name__ == "__main__":
    unittest.main()
"""

UPSTREAM = {
    ".github/pull_request_template.md": TEMPLATE,
    "core/runtime/BUILD": RUNTIME_BUILD,
    "core/runtime/TRTRuntimeConfig.cpp": CONFIG_CPP_WITHOUT_FILES,
    "core/runtime/TRTRuntimeConfig.h": CONFIG_H,
    "core/util/BUILD": UTIL_BUILD,
    "core/util/CMakeLists.txt": UTIL_CMAKE,
    "core/util/Exception.h": EXCEPTION_H,
    "core/util/macros.h": MACROS_H,
    "core/util/prelude.h": '#pragma once\n#include "core/util/macros.h"\n',
    "docsrc/index.rst": DOCS_INDEX,
    "py/torch_tensorrt/__init__.py": "",
    "py/torch_tensorrt/runtime/__init__.py": (
        "from torch_tensorrt.runtime._runtime_cache import RuntimeCache\n"
    ),
    "py/torch_tensorrt/runtime/_runtime_cache.py": CACHE_PY,
    "tests/cpp/BUILD": TESTS_BUILD,
    "tests/py/dynamo/runtime/test_000_runtime_cache.py": TEST_CACHE_PY,
    "tests/util/BUILD": TESTS_UTIL_BUILD,
}
WITH_CPP_FILES = {**UPSTREAM, "core/runtime/TRTRuntimeConfig.cpp": CONFIG_CPP}

AUTHOR = {"NAME": "Ada Löwe", "EMAIL": "ada@example.org"}
DATE = "2024-02-29T12:00:00+01:00"


def environment(home: Path) -> dict[str, str]:
    """For git, of nobody's configuration but AUTHOR's."""
    result = {
        key: value for key, value in os.environ.items() if not key.startswith("GIT_")
    }
    config = home / ".gitconfig"
    if not config.exists():
        config.write_text(
            f"[user]\n\tname = {AUTHOR['NAME']}\n\temail = {AUTHOR['EMAIL']}\n"
        )
    return {
        **result,
        "GIT_AUTHOR_DATE": DATE,
        "GIT_COMMITTER_DATE": DATE,
        "GIT_CONFIG_NOSYSTEM": "1",
        "HOME": str(home),
    }


def git(checkout: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(checkout), *arguments],
        env=environment(checkout.parent),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_checkout(path: Path, files: dict[str, str]) -> Path:
    """A checkout with one commit."""
    path.mkdir()
    git(path, "init", "--quiet")
    commit_files(path, files)
    return path


def commit_files(checkout: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        file = checkout / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode())
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message=upstream")


def without(files: dict[str, str], *names: str) -> dict[str, str]:
    return {name: text for name, text in files.items() if name not in names}
