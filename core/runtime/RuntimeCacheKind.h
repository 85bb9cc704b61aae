#pragma once

#include <string>
#include <vector>

namespace torch_tensorrt::core::runtime {

// What TensorRT-RTX compares before it accepts a runtime cache (NvInferRuntime.h, IRuntimeCache::deserialize). A cache
// fits a machine if all fields are equal. The machine's driver may also be newer, with the same major version.
// TensorRT-RTX also compares CUDA in graphics, which torch's contexts never have.
//
// A path that is a directory holds one cache file per kind, and the file's name spells out the kind.
// docs/cache-file-contract.md has the scheme. The Python twin of this file is torchtrt_cache/kinds.py.
//
// Thread safety: all functions may be called from any thread.
struct RuntimeCacheKind {
  std::string gpu;          // as CUDA names it: "NVIDIA L4"
  int compute_capability;   // 10 * major + minor: 89
  std::string tensorrt_rtx; // "1.6.1.120"
  std::string os_family;    // "linux"
  int cuda_driver;          // 1000 * major + 10 * minor, as cuDriverGetVersion() counts: 13000

  bool operator==(const RuntimeCacheKind&) const = default;

  // Returns a name such as "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.0.bin".
  std::string file_name() const;

  // Returns the kind of the CUDA device with this ordinal. Initializes CUDA. Throws torch_tensorrt::Error with the
  // reason if the CUDA driver can't describe the device.
  static RuntimeCacheKind of(int ordinal);
};

// Returns the version of the TensorRT-RTX library that this process uses, such as "1.6.1.120".
std::string tensorrt_rtx_version();

// Returns true if a cache's path means a directory: it ends in a separator, or leads to a directory.
bool is_directory(const std::string& path);

// Returns the file in `directory` to which caches of `kind` are saved.
std::string file_in(const std::string& directory, const RuntimeCacheKind& kind);

// Returns the files that may be loaded for `kind`, best first. The first is the kind's own file. Non-empty files
// follow: those that differ only in an older driver of the same major version, newest first, and last the file that
// was the default cache before that became a directory.
std::vector<std::string> files_to_load(const std::string& directory, const RuntimeCacheKind& kind);

} // namespace torch_tensorrt::core::runtime
