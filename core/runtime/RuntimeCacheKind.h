#pragma once

#include <string>
#include <vector>

namespace torch_tensorrt::core::runtime {

// What TensorRT-RTX compares before it accepts a runtime cache (NvInferRuntime.h, IRuntimeCache::deserialize). A cache
// fits a machine if all fields are equal. The machine's driver may also be newer, with the same major version.
// TensorRT-RTX also compares CUDA in graphics, which torch's contexts never have.
//
// A path that is a directory holds one cache file for each kind, with a name that spells the kind out.
// docs/cache-file-contract.md has the scheme. The twin of torchtrt_cache/kinds.py.
//
// Thread safety: all functions, from any thread.
struct RuntimeCacheKind {
  std::string gpu;          // as CUDA names it: "NVIDIA L4"
  int compute_capability;   // 10 * major + minor: 89
  std::string tensorrt_rtx; // "1.6.1.120"
  std::string os_family;    // "linux"
  int cuda_driver;          // 1000 * major + 10 * minor, as cuDriverGetVersion() counts: 13000

  bool operator==(const RuntimeCacheKind&) const = default;

  // Such as "nvidia-l4-sm89-rtx1.6.1.120-linux-driver13.0.bin".
  std::string file_name() const;

  // The kind of the CUDA device with this ordinal. Initializes CUDA. Throws torch_tensorrt::Error with the reason if
  // the CUDA driver does not tell.
  static RuntimeCacheKind of(int ordinal);
};

// Whether a cache's path means a directory: it ends in a separator, or leads to a directory.
bool is_directory(const std::string& path);

// The file of a kind in a directory, which is where it is saved.
std::string file_in(const std::string& directory, const RuntimeCacheKind& kind);

// The files that a start may load for `kind`, the best first: its own; and, if they are not empty, those that differ in
// an older driver of the same major version, newest first, and the default cache from before it was a directory.
std::vector<std::string> files_to_load(const std::string& directory, const RuntimeCacheKind& kind);

} // namespace torch_tensorrt::core::runtime
