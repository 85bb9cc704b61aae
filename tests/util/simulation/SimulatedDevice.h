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

namespace torch_tensorrt::tests {

// What TensorRT-RTX compares before it accepts a runtime cache (NvInferRuntime.h, IRuntimeCache::deserialize).
struct SimulatedEnvironment {
  std::string tensorrt_rtx_version = "1.6.1.120";
  std::string gpu = "Simulated RTX GPU";
  std::string os_family = "Linux";
  bool cuda_in_graphics = false;
  int32_t cuda_driver = 13000; // 1000 * major + 10 * minor, as cudaDriverGetVersion() counts
};

// What IRuntimeCache::deserialize does with the kernels that the cache holds already; undocumented for the real one.
enum class DeserializeMode {
  kAdds,
  kReplaces,
};

// A GPU with TensorRT-RTX on it, played on the host: the knobs and the counters. Kernels "compile" by sleeping, engines
// run on host memory. Everything made for one device (create_infer_runtime() in SimulatedRuntime.h and what comes out
// of it) shares that device; several devices in one process do not know of each other.
//
// Calls that can be counted and made to fail, by name:
//   createInferRuntime, IRuntime::deserializeCudaEngine, ICudaEngine::{serialize, createRuntimeConfig,
//   createExecutionContext}, IRuntimeConfig::{createRuntimeCache, setRuntimeCache, getRuntimeCache,
//   setCudaGraphStrategy}, IRuntimeCache::{serialize, deserialize, reset}, IExecutionContext::{setInputShape,
//   setTensorAddress, inferShapes, setOptimizationProfileAsync, isStreamCapturable, enqueueV3}
// A failing call does nothing and answers what the header documents for failure: nullptr, false, or -1. Another name is
// a torch_tensorrt::Error.
//
// Thread safety: all members, from any thread.
class SimulatedDevice {
 public:
  static constexpr uint64_t kAlways = ~uint64_t{0};

  struct Counters {
    uint64_t compilations = 0; // kernels that took their time
    uint64_t cache_hits = 0;   // kernels that a runtime cache had
  };

  // `is_second` is for a process with two: the engines of a second one are on torch's device "cpu:0" instead of "cpu",
  // and have their tensors on the host, because torch has none on "cpu:0".
  explicit SimulatedDevice(SimulatedEnvironment environment = {}, bool is_second = false);

  bool is_second() const {
    return is_second_;
  }

  SimulatedEnvironment environment() const;
  // As if TensorRT-RTX, the driver or the GPU had been changed. Kernels in live caches count as the new one's.
  void set_environment(SimulatedEnvironment environment);

  // How long each kernel compiles; 0 at first.
  void set_compile_time(std::chrono::nanoseconds time);

  DeserializeMode deserialize_mode() const;
  void set_deserialize_mode(DeserializeMode mode); // kAdds at first

  // The next `times` calls of that name fail; replaces an earlier fail() of that name, and 0 ends it.
  void fail(std::string_view call, uint64_t times = kAlways);

  // Each call of that name first runs `hook`, which may make calls of other names; an empty one ends that.
  void before(std::string_view call, std::function<void()> hook);

  // How often that call was made, failures included.
  uint64_t calls(std::string_view call) const;

  Counters counters() const;
  void reset_counters(); // calls() included

  // Until no kernel compiles in the background (strategy kLAZY), of any execution context.
  void wait_for_background_compilation() const;

  // The rest is for the simulation itself.

  // Runs the call's hook and counts the call; true if it shall fail.
  bool fails(std::string_view call);
  // Counts one compilation and takes its time.
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
  mutable std::mutex mutex_; // guards all below
  mutable std::condition_variable idle_;
  SimulatedEnvironment environment_;
  std::chrono::nanoseconds compile_time_{0};
  DeserializeMode deserialize_mode_ = DeserializeMode::kAdds;
  std::map<std::string, Call, std::less<>> calls_;
  Counters counters_;
  uint64_t background_compilations_ = 0;
};

// What every simulated object carries: its device, and where it tells its errors, as the real one tells its ILogger.
struct Simulation {
  std::shared_ptr<SimulatedDevice> device;
  nvinfer1::ILogger* logger = nullptr; // may be null; outlives every object of its runtime otherwise
  int64_t process = current_process(); // that made the objects

  static int64_t current_process() noexcept;

  void error(const std::string& text) const noexcept;

  // CUDA does not survive a fork, so a child that uses or destroys what it inherited aborts.
  void check_process() const noexcept;
};

// Names what the product did that TensorRT-RTX leaves undefined, or what is not simulated, on stderr, and aborts.
[[noreturn]] void abort_simulation(const std::string& what) noexcept;

} // namespace torch_tensorrt::tests
