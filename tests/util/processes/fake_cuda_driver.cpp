// Fakes the functions of libcuda.so.1 that the product calls directly. There is a GPU if the environment variable
// FAKE_CUDA_GPU names it. FAKE_CUDA_CAPABILITY ("8.9") and FAKE_CUDA_DRIVER ("13000") describe the rest. FAKE_CUDA_FAIL
// names a function that fails.

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kSuccess = 0;
constexpr int kNoDevice = 100;
constexpr int kUnknownError = 999;
constexpr int kComputeCapabilityMajor = 75;

thread_local int stream_capture_mode = 0; // CU_STREAM_CAPTURE_MODE_GLOBAL

const char* variable(const char* name, const char* otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

int result_of(const char* function) {
  if (std::getenv("FAKE_CUDA_GPU") == nullptr) {
    return kNoDevice;
  }
  return std::strcmp(variable("FAKE_CUDA_FAIL", ""), function) == 0 ? kUnknownError : kSuccess;
}

} // namespace

extern "C" {

extern const bool is_fake_cuda_driver;
const bool is_fake_cuda_driver = true;

int cuThreadExchangeStreamCaptureMode(int* mode) {
  const int before = stream_capture_mode;
  stream_capture_mode = *mode;
  *mode = before;
  return kSuccess;
}

int cuInit(unsigned int /*flags*/) {
  return result_of("cuInit");
}

int cuDeviceGetCount(int* count) {
  *count = 1;
  return result_of("cuDeviceGetCount");
}

int cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return ordinal == 0 ? result_of("cuDeviceGet") : kNoDevice;
}

int cuDeviceGetName(char* name, int size, int /*device*/) {
  std::snprintf(name, static_cast<std::size_t>(size), "%s", variable("FAKE_CUDA_GPU", ""));
  return result_of("cuDeviceGetName");
}

int cuDeviceGetAttribute(int* value, int attribute, int /*device*/) {
  int capability[2] = {8, 9};
  std::sscanf(variable("FAKE_CUDA_CAPABILITY", "8.9"), "%d.%d", &capability[0], &capability[1]);
  *value = capability[attribute == kComputeCapabilityMajor ? 0 : 1];
  return result_of("cuDeviceGetAttribute");
}

int cuDriverGetVersion(int* version) {
  *version = std::atoi(variable("FAKE_CUDA_DRIVER", "13000"));
  return result_of("cuDriverGetVersion");
}

} // extern "C"
