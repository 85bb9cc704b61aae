"""Small git checkouts with the layout of pytorch/TensorRT at three commits."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

TEMPLATE = """\
# Description

What it does.

Fixes # (issue)

## Type of change

Keep what applies.

- Bug fix (mends)
- New feature (adds)
- Breaking change (breaks)

# Checklist:

- [ ] It is formatted
- [ ] It is tested
"""

# buildifier complains about this and TESTS_BUILD, as it does about upstream's files at the first
# two commits.
UTIL_BUILD = """\
load("@rules_cc//cc:defs.bzl", "cc_library")
load("@rules_pkg//pkg:mappings.bzl", "pkg_files")
package(default_visibility = ["//visibility:public"])

cc_library(
    name = "exception",
    srcs = [
        "Exception.cpp",
    ],
    hdrs = [
        "Exception.h",
    ],
    alwayslink = True,
)

filegroup(
    name = "include_files",
    srcs = [
        "Exception.h",
        "build_info.h",
        "macros.h",
    ],
)

pkg_files(
    name = "include_pkg_files",
    srcs = ["//core/util:include_files"],
    visibility = ["//visibility:public"],
    prefix = "include/core/util/",
)
"""
TESTS_BUILD = """\
load("@rules_cc//cc:defs.bzl", "cc_test")

package(default_visibility = ["//visibility:public"])

config_setting(
    name = "jetpack",
    flag_values = {
        "//toolchains:libraries": "jetpack"
    },
)


test_suite(
    name = "api_tests",
    tests = [
        ":test_collections",
        # ":test_dynamic_size",
        ":test_example_tensors",
        ":test_serialization",
    ],
)

test_suite(
    name = "aarch64_api_tests",
    tests = [
        ":test_collections",
        ":test_serialization",
    ],
)

test_suite(
    name = "executorch_backend_tests",
    tests = [
        "//tests/cpp/executorch:test_binding_names",
    ],
)

cc_test(
    name = "test_serialization",
    srcs = ["test_serialization.cpp"],
    deps = [
        "//tests/util",
        "@googletest//:gtest_main",
    ] + select({
        ":windows": ["@libtorch_win//:libtorch"],
        ":jetpack": ["@torch_l4t//:libtorch"],
        "//conditions:default": ["@libtorch"],
    }),
)
"""
TESTS_UTIL_BUILD = """\
load("@rules_cc//cc:defs.bzl", "cc_library")

package(default_visibility = ["//visibility:public"])

cc_library(
    name = "util",
    hdrs = ["util.h"],
)
"""
UTIL_CMAKE = """\
set(CXX_SRCS
    "${CMAKE_CURRENT_SOURCE_DIR}/Exception.cpp"
    "${CMAKE_CURRENT_SOURCE_DIR}/trt_util.cpp"
)

set(HEADER_FILES
    "${CMAKE_CURRENT_SOURCE_DIR}/build_info.h"
    "${CMAKE_CURRENT_SOURCE_DIR}/jit_util.h"
)
"""
RUNTIME_BUILD = """\
load("@rules_cc//cc:defs.bzl", "cc_library")

cc_library(
    name = "runtime",
    srcs = [
        "TRTRuntimeConfig.cpp",
    ],
    deps = [
        "//core/plugins",
        "//core/util:prelude",
    ] + select({
        "//conditions:default": ["@libtorch"],
    }),
    alwayslink = True,
)
"""
CONFIG_CPP = """\
#include "core/runtime/TRTRuntimeConfig.h"

#include <filesystem>
#include <fstream>

#include "core/runtime/runtime.h"
#include "core/util/prelude.h"

namespace torch_tensorrt {
namespace core {
namespace runtime {
namespace {

#ifdef TRT_MAJOR_RTX
void load_runtime_cache(const std::string& path, nvinfer1::IRuntimeCache* cache) {
  if (!std::filesystem::exists(path)) {
    return;
  }
  std::ifstream in(path, std::ios::binary);
  std::vector<char> buf((std::istreambuf_iterator<char>(in)), {});
  if (buf.empty()) {
    return;
  }
  cache->deserialize(buf.data(), buf.size());
}

void save_runtime_cache_impl(const std::string& path, nvinfer1::IRuntimeCache* cache) {
  auto blob = make_trt(cache->serialize());
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::filesystem::path tmp_path = path + ".tmp";
  {
    std::ofstream out(tmp_path, std::ios::binary);
    out.write(static_cast<const char*>(blob->data()), blob->size());
  }
  std::filesystem::rename(tmp_path, path);
  LOG_INFO("Saved " << path);
}
#endif

} // namespace
} // namespace runtime
} // namespace core
} // namespace torch_tensorrt
"""
SETTINGS_H = """\
#pragma once

class RuntimeCacheHandle : public torch::CustomClassHolder {
 public:
  at::Tensor serialize() const;
  void deserialize(at::Tensor data);
};
"""
CONTENTS = """\
.. toctree::
   :maxdepth: 1
   :caption: Architecture

   contributors/phases

.. toctree::
   :maxdepth: 1
   :caption: Feature Design

   contributors/cuda_graphs
   contributors/autocast
"""
CONCURRENCY_PY = '''\
import gc
import os
import shutil
import tempfile
import unittest

import torch
from parameterized import parameterized
from torch_tensorrt._features import ENABLED_FEATURES


def _fresh_conv_model_and_inputs(seed=0):
    return torch.nn.Identity(), [torch.zeros(1)]


def _compile(model, inputs, *, use_python_runtime, runtime_cache_path=None):
    return model


def _find_python_trt_module(compiled):
    return compiled


_RUNTIMES = [("python", True), ("cpp", False)]


@unittest.skipIf(not ENABLED_FEATURES.tensorrt_rtx, "no runtime cache")
class TestRuntimeCacheConcurrency(unittest.TestCase):
    """For the Python runtime alone."""

    def setUp(self):
        self.cache_dir = tempfile.mkdtemp()
        self.cache_path = os.path.join(self.cache_dir, "cache.bin")

    def tearDown(self):
        shutil.rmtree(self.cache_dir)

    def test_filelock_works(self):
        from filelock import FileLock

        with FileLock(self.cache_path + ".lock"):
            pass

    def test_sequential_save_load(self):
        compiled = _compile(*_fresh_conv_model_and_inputs(), use_python_runtime=True)
        del compiled
        gc.collect()


class TestTimingCacheSkipped(unittest.TestCase):
    @parameterized.expand(_RUNTIMES)
    def test_no_timing_cache_file(self, name, use_python_runtime):
        self.assertTrue(name)
'''
CACHE_PY = '''\
"""The file is read and written here."""

from __future__ import annotations

import logging
import threading
from typing import (
    IO,
    Any,
    Optional,
)

logger = logging.getLogger(__name__)


class _RuntimeCacheHandle:
    def __init__(self, path: str = "") -> None:
        self.path = path
        self.lock: Optional[threading.Lock] = None


class RuntimeCache:
    """A cache.

    ``__del__`` saves it.
    """

    def __init__(self, path: str = "", autosave_on_del: bool = False) -> None:
        # First: the handle.
        self._handle: Any = _RuntimeCacheHandle(path=path)
        self.autosave_on_del = autosave_on_del

    @property
    def path(self) -> str:
        return self._handle.path

    def save_to_stream(self, stream: IO[bytes]) -> int:
        return stream.write(b"kernels")

    def save(self, path: Optional[str] = None) -> None:
        from filelock import FileLock

        target = path or self.path
        with FileLock(target + ".lock"), open(target, "wb") as f:
            self.save_to_stream(f)

    def __del__(self) -> None:
        # Nobody else does it.
        if self.autosave_on_del and self.path:
            try:
                self.save()
            except Exception:
                pass
'''
AUTOSAVED_CACHE_PY = """\
def _autosave_at_exit(ref):
    pass


class RuntimeCache:
    pass
"""

CACHE = "py/torch_tensorrt/runtime/_runtime_cache.py"
PACKAGE = {
    "py/torch_tensorrt/__init__.py": "",
    "py/torch_tensorrt/runtime/__init__.py": (
        "from torch_tensorrt.runtime._runtime_cache import RuntimeCache\n"
    ),
}
ALWAYS = {
    ".github/pull_request_template.md": TEMPLATE,
    "core/runtime/BUILD": RUNTIME_BUILD,
    "core/util/BUILD": UTIL_BUILD,
    "core/util/CMakeLists.txt": UTIL_CMAKE,
    "docsrc/contributing.rst": CONTENTS,
    "tests/cpp/BUILD": TESTS_BUILD,
    "tests/py/dynamo/runtime/test_000_runtime_cache.py": CONCURRENCY_PY,
    "tests/util/BUILD": TESTS_UTIL_BUILD,
}
# C++ loads and saves the file, as at 2705f498c5.
CPP_FILE_IO = {**ALWAYS, "core/runtime/TRTRuntimeConfig.cpp": CONFIG_CPP}
# Python loads and saves the file, and RuntimeCache saves itself only in __del__, as at 97defd7765.
PYTHON_FILE_IO = {
    **ALWAYS,
    **PACKAGE,
    "core/runtime/TRTRuntimeConfig.cpp": "// no file here\n",
    "core/runtime/RuntimeSettings.h": SETTINGS_H,
    CACHE: CACHE_PY,
}
# RuntimeCache saves itself at exit too, as at d7f2062810.
AUTOSAVED = {**PYTHON_FILE_IO, CACHE: AUTOSAVED_CACHE_PY}
# No commit has this: something for each series.
BOTH = {**CPP_FILE_IO, **PACKAGE, CACHE: CACHE_PY}


def environment(home: Path) -> dict[str, str]:
    """The environment for git, without the configuration of the user who runs the tests."""
    (home / ".gitconfig").write_text(
        "[user]\n\tname = Ada Löwe\n\temail = ada@example.org\n", encoding="utf-8"
    )
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return {**inherited, "GIT_CONFIG_NOSYSTEM": "1", "HOME": str(home)}


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
    """Makes a checkout with one commit."""
    path.mkdir()
    git(path, "init", "--quiet")
    for name, text in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    git(path, "add", "--all")
    git(path, "commit", "--quiet", "--message=upstream")
    return path
