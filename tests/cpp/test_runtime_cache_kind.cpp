#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "core/runtime/RuntimeCacheKind.h"
#include "core/util/Exception.h"
#include "tests/util/temporary_directory.h"

namespace torch_tensorrt::tests {
namespace {

// From fake_cuda_driver.cpp, which only builds with Bazel link.
extern "C" const bool is_fake_cuda_driver __attribute__((weak));

using core::runtime::file_in;
using core::runtime::files_to_load;
using core::runtime::is_directory;
using core::runtime::RuntimeCacheKind;

const RuntimeCacheKind kL4{
    .gpu = "NVIDIA L4",
    .compute_capability = 89,
    .tensorrt_rtx = "1.6.1.120",
    .os_family = "linux",
    .cuda_driver = 13020};

class RuntimeCacheKindTest : public ::testing::Test {
 protected:
  void put(const std::string& name, const std::string& bytes = "kernels") const {
    std::ofstream(directory_.file(name)) << bytes;
  }

  // The name of the kind's own file is always first.
  std::vector<std::string> names_to_load() const {
    std::vector<std::string> names;
    for (const std::string& file : files_to_load(directory_.path(), kL4)) {
      names.push_back(std::filesystem::path(file).filename());
    }
    return names;
  }

  const TemporaryDirectory directory_;
};

TEST_F(RuntimeCacheKindTest, FileNameSpellsTheKindOut) {
  EXPECT_EQ(kL4.file_name(), "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.2.bin");
}

TEST_F(RuntimeCacheKindTest, FileNameHasOnlySafeCharacters) {
  RuntimeCacheKind kind = kL4;
  kind.gpu = " ../NVIDIA\tGeForce  RTX\xe2\x84\xa2 5090 (Laptop)";
  EXPECT_TRUE(kind.file_name().starts_with("nvidia-geforce-rtx-5090-laptop-sm89-")) << kind.file_name();
  kind.gpu = std::string(300, 'x');
  EXPECT_EQ(kind.file_name().find("-sm89"), 128U);
}

TEST_F(RuntimeCacheKindTest, LoadsItsOwnFileThenThoseOfOlderDriversThenTheFormerDefault) {
  put("runtime_cache-1.6.1.120.bin");
  put("nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.0.bin");
  put("nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.1.bin");
  put("nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.2.bin");
  const std::vector<std::string> expected{
      "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.2.bin",
      "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.1.bin",
      "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.0.bin",
      "runtime_cache-1.6.1.120.bin"};
  EXPECT_EQ(names_to_load(), expected);
}

TEST_F(RuntimeCacheKindTest, LeavesWhatDoesNotFitOrIsEmpty) {
  for (const char* const name :
       {"nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.10.bin", // a newer driver: 10 follows 9
        "nvidia-l4-sm89-rtx1.6.1.120-linux-driver12.9.bin",
        "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.01.bin",
        "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.-1.bin",
        "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13..bin",
        "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.1.bin.lock",
        "nvidia-l4-sm89-rtx1.6.1.120-windows-driver13.1.bin",
        "nvidia-l4-sm89-rtx1.7.1.120-linux-driver13.1.bin",
        "nvidia-l40-sm89-rtx1.6.1.120-linux-driver13.1.bin",
        "runtime_cache-1.7.1.116.bin"}) {
    put(name);
  }
  put("nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.2.bin", "");
  put("nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.1.bin", "");
  EXPECT_EQ(names_to_load(), std::vector{kL4.file_name()});
}

TEST_F(RuntimeCacheKindTest, MissingDirectoryHasNoOtherFiles) {
  const std::string missing = directory_.file("missing/");
  EXPECT_EQ(files_to_load(missing, kL4), std::vector{file_in(missing, kL4)});
}

TEST_F(RuntimeCacheKindTest, PathIsDirectoryByItsEndOrByWhatIsThere) {
  put("file");
  std::filesystem::create_directory_symlink(directory_.path(), directory_.file("link"));
  EXPECT_TRUE(is_directory(directory_.path()));
  EXPECT_TRUE(is_directory(directory_.file("link")));
  EXPECT_TRUE(is_directory(directory_.file("missing/")));
  EXPECT_FALSE(is_directory(directory_.file("missing")));
  EXPECT_FALSE(is_directory(directory_.file("file")));
  EXPECT_FALSE(is_directory(""));
  EXPECT_EQ(file_in("/a/", kL4), "/a/" + kL4.file_name());
  EXPECT_EQ(file_in("/a", kL4), "/a/" + kL4.file_name());
}

TEST_F(RuntimeCacheKindTest, IsReadFromTheCudaDriver) {
  if (&is_fake_cuda_driver == nullptr) {
    GTEST_SKIP() << "the CUDA driver is real or missing";
  }
  ::setenv("FAKE_CUDA_GPU", "NVIDIA RTX A6000", 1);
  ::setenv("FAKE_CUDA_CAPABILITY", "8.6", 1);
  ::setenv("FAKE_CUDA_DRIVER", "12080", 1);
  const RuntimeCacheKind kind = RuntimeCacheKind::of(0);
  EXPECT_EQ(kind.gpu, "NVIDIA RTX A6000");
  EXPECT_EQ(kind.compute_capability, 86);
  EXPECT_EQ(kind.cuda_driver, 12080);
  EXPECT_EQ(kind.file_name(), "nvidia-rtx-a6000-sm86-rtx" + kind.tensorrt_rtx + "-linux-driver12.8.bin");
  EXPECT_THROW(RuntimeCacheKind::of(1), Error);
  ::unsetenv("FAKE_CUDA_GPU");
  EXPECT_THROW(RuntimeCacheKind::of(0), Error);
}

} // namespace
} // namespace torch_tensorrt::tests
