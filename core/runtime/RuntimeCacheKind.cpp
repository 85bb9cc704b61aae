#include "core/runtime/RuntimeCacheKind.h"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string_view>
#include <system_error>

#include <NvInferRuntime.h>

#include "core/runtime/RuntimeCacheFile.h"
#include "core/util/prelude.h"

namespace torch_tensorrt::core::runtime {
namespace {

namespace fs = std::filesystem;

constexpr size_t kLongestSlug = 128; // leaves room for the suffixes of lock files and temporary files
constexpr std::string_view kSuffix = ".bin";

// Returns `text` in lower-case letters, digits and single dashes.
std::string slug(std::string_view text) {
  std::string slug;
  for (const char c : text) {
    const char lower = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    if ((lower >= 'a' && lower <= 'z') || (lower >= '0' && lower <= '9')) {
      slug += lower;
    } else if (!slug.empty() && slug.back() != '-') {
      slug += '-';
    }
  }
  slug.resize(std::min(slug.size(), kLongestSlug));
  if (slug.ends_with('-')) {
    slug.pop_back();
  }
  return slug;
}

// Returns the file name up to the driver's version.
std::string prefix(const RuntimeCacheKind& kind) {
  return slug(kind.gpu) + "-sm" + std::to_string(kind.compute_capability) + "-rtx" + kind.tensorrt_rtx + "-" +
      slug(kind.os_family) + "-driver";
}

// Returns the driver's minor version in `name`, or nullopt if anything else in `name`, including the driver's major
// version, differs from `kind`.
std::optional<int> minor_of_driver(std::string_view name, const RuntimeCacheKind& kind) {
  const std::string start = prefix(kind) + std::to_string(kind.cuda_driver / 1000) + ".";
  if (!name.starts_with(start) || !name.ends_with(kSuffix)) {
    return std::nullopt;
  }
  const std::string_view digits = name.substr(start.size(), name.size() - start.size() - kSuffix.size());
  int minor = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), minor);
  const bool is_number = error == std::errc() && end == digits.data() + digits.size() && minor >= 0;
  return is_number && std::to_string(minor) == digits ? std::optional(minor) : std::nullopt;
}

// libcuda.so.1, which comes with the driver. It stays loaded.
class CudaDriver {
 public:
  CudaDriver() : library_(::dlopen("libcuda.so.1", RTLD_NOW)) {
    if (library_ == nullptr) {
      TORCHTRT_THROW_ERROR("there is no CUDA driver: " << ::dlerror());
    }
    call("cuInit", 0U);
  }

  template <class... Arguments>
  void call(const char* function, Arguments... arguments) const {
    const auto address = reinterpret_cast<int (*)(Arguments...)>(::dlsym(library_, function));
    const int result = address == nullptr ? -1 : address(arguments...);
    if (result != 0) {
      TORCHTRT_THROW_ERROR("the CUDA driver's " << function << " failed with " << result);
    }
  }

 private:
  void* library_;
};

} // namespace

std::string RuntimeCacheKind::file_name() const {
  return prefix(*this) + std::to_string(cuda_driver / 1000) + "." + std::to_string(cuda_driver % 1000 / 10) +
      std::string(kSuffix);
}

RuntimeCacheKind RuntimeCacheKind::of(int ordinal) {
  // CUdevice_attribute of cuda.h
  constexpr int kComputeCapabilityMajor = 75;
  constexpr int kComputeCapabilityMinor = 76;
  const CudaDriver driver;
  int device = 0;
  int major = 0;
  int minor = 0;
  int version = 0;
  std::array<char, 256> name{};
  driver.call("cuDeviceGet", &device, ordinal);
  driver.call("cuDeviceGetName", name.data(), static_cast<int>(name.size()), device);
  driver.call("cuDeviceGetAttribute", &major, kComputeCapabilityMajor, device);
  driver.call("cuDeviceGetAttribute", &minor, kComputeCapabilityMinor, device);
  driver.call("cuDriverGetVersion", &version);
  return {
      .gpu = name.data(),
      .compute_capability = 10 * major + minor,
      .tensorrt_rtx = tensorrt_rtx_version(),
      .os_family = "linux",
      .cuda_driver = version};
}

std::string tensorrt_rtx_version() {
  return std::to_string(::getInferLibMajorVersion()) + "." + std::to_string(::getInferLibMinorVersion()) + "." +
      std::to_string(::getInferLibPatchVersion()) + "." + std::to_string(::getInferLibBuildVersion());
}

bool is_directory(const std::string& path) {
  std::error_code error;
  return path.ends_with('/') || fs::is_directory(path, error);
}

std::string file_in(const std::string& directory, const RuntimeCacheKind& kind) {
  return (fs::path(directory) / kind.file_name()).string();
}

std::vector<std::string> files_to_load(const std::string& directory, const RuntimeCacheKind& kind) {
  std::map<int, std::string, std::greater<>> older; // by minor version
  std::error_code error;
  for (fs::directory_iterator entry(directory, error), end; !error && entry != end; entry.increment(error)) {
    const auto minor = minor_of_driver(entry->path().filename().string(), kind);
    if (minor && *minor < kind.cuda_driver % 1000 / 10) {
      older.emplace(*minor, entry->path().string());
    }
  }
  std::vector<std::string> files;
  for (const auto& [minor, file] : older) {
    files.push_back(file);
  }
  files.push_back((fs::path(directory) / ("runtime_cache-" + kind.tensorrt_rtx + std::string(kSuffix))).string());
  std::erase_if(files, RuntimeCacheFile::is_empty);
  files.insert(files.begin(), file_in(directory, kind)); // even if it looks empty, so that its errors are reported
  return files;
}

} // namespace torch_tensorrt::core::runtime
