#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include <NvInferRuntime.h>

#include "core/runtime/RuntimeCacheKind.h"

namespace torch_tensorrt::tests {

// What TensorRT-RTX compares before it accepts a runtime cache (NvInferRuntime.h, IRuntimeCache::deserialize).
struct SimulatedEnvironment {
  std::string tensorrt_rtx_version = core::runtime::tensorrt_rtx_version();
  std::string gpu = "Simulated RTX GPU";
  std::string os_family = "Linux";
  bool cuda_in_graphics = false;
  int32_t cuda_driver = 13000; // 1000 * major + 10 * minor, as cudaDriverGetVersion() counts
};

// What IRuntimeCache::deserialize does with the kernels that the cache already holds. TensorRT-RTX does not document
// it.
enum class DeserializeMode {
  kAdds,
  kReplaces,
};

// A GPU with TensorRT-RTX, simulated on the host, with its knobs and counters. Kernels "compile" by sleeping, and
// engines run on host memory. Everything made for one device (by create_infer_runtime() in SimulatedRuntime.h and by
// the objects that it returns) shares that device. Several devices in one process are independent.
//
// Calls that can be counted and made to fail, by name:
//   createInferRuntime, IRuntime::deserializeCudaEngine, ICudaEngine::{serialize, createRuntimeConfig,
//   createExecutionContext}, IRuntimeConfig::{createRuntimeCache, setRuntimeCache, getRuntimeCache,
//   setCudaGraphStrategy}, IRuntimeCache::{serialize, deserialize, reset}, IExecutionContext::{setInputShape,
//   setTensorAddress, inferShapes, setOptimizationProfileAsync, isStreamCapturable, enqueueV3}
// A failing call does nothing and returns what the header documents for failure: nullptr, false, or -1. An unknown name
// throws torch_tensorrt::Error.
//
// Thread safety: all members may be called from any thread.
class SimulatedDevice {
 public:
  static constexpr uint64_t kAlways = ~uint64_t{0};

  struct Counters {
    uint64_t compilations = 0; // kernels that were compiled
    uint64_t cache_hits = 0;   // kernels found in a runtime cache
  };

  // `is_second` is for a process with two devices. The engines of the second one are on torch's device "cpu:0" instead
  // of "cpu". Their tensors stay on the host, because torch has no tensors on "cpu:0".
  explicit SimulatedDevice(SimulatedEnvironment environment = {}, bool is_second = false);

  bool is_second() const {
    return is_second_;
  }

  SimulatedEnvironment environment() const;
  // Simulates a change of TensorRT-RTX, the driver or the GPU. Kernels in live caches count as compiled in the new
  // environment.
  void set_environment(SimulatedEnvironment environment);

  // The time that each kernel takes to compile; 0 at first.
  void set_compile_time(std::chrono::nanoseconds time);

  DeserializeMode deserialize_mode() const;
  void set_deserialize_mode(DeserializeMode mode); // kAdds at first

  // Makes the next `times` calls of that name fail. Replaces an earlier fail() for that name. 0 ends it.
  void fail(std::string_view call, uint64_t times = kAlways);

  // Runs `hook` before each call of that name. The hook may make calls of other names. An empty hook ends this.
  void before(std::string_view call, std::function<void()> hook);

  // The number of those calls, including failed ones.
  uint64_t calls(std::string_view call) const;

  Counters counters() const;
  void reset_counters(); // including those of calls()

  // Waits until no execution context is compiling a kernel in the background (strategy kLAZY).
  void wait_for_background_compilation() const;

  // The rest is for the simulation itself.

  // Runs the call's hook and counts the call. Returns true if the call must fail.
  bool fails(std::string_view call);
  // Counts one compilation and sleeps for its time.
  void compile();
  void count_cache_hit();
  void begin_background_compilation();
  void end_background_compilation();

 private:
  struct Call {
    uint64_t made = 0;
    uint64_t to_fail = 0;
    std::function<void()> hook = {};
  };

  const bool is_second_;
  mutable std::mutex mutex_; // guards everything below
  mutable std::condition_variable idle_;
  SimulatedEnvironment environment_;
  std::chrono::nanoseconds compile_time_{0};
  DeserializeMode deserialize_mode_ = DeserializeMode::kAdds;
  std::map<std::string, Call, std::less<>> calls_;
  Counters counters_;
  uint64_t background_compilations_ = 0;
};

// What every simulated object carries: its device and the logger of its errors, which is an ILogger as for the real
// objects.
struct Simulation {
  std::shared_ptr<SimulatedDevice> device;
  nvinfer1::ILogger* logger = nullptr; // may be null; otherwise outlives every object of its runtime
  int64_t process = current_process(); // the process that made the objects

  static int64_t current_process() noexcept;

  void error(const std::string& text) const noexcept;

  // CUDA does not survive a fork, so a child that uses or destroys inherited objects aborts.
  void check_process() const noexcept;
};

// Aborts, and prints on stderr what the product did that TensorRT-RTX leaves undefined or that is not simulated.
[[noreturn]] void abort_simulation(const std::string& what) noexcept;

} // namespace torch_tensorrt::tests
