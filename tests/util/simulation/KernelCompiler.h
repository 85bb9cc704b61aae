#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "tests/util/simulation/SimulatedDevice.h"
#include "tests/util/simulation/SimulatedPlan.h"
#include "tests/util/simulation/SimulatedRuntimeCache.h"

namespace torch_tensorrt::tests {

// Compiles kernels for one execution context, at once or in a thread of its own, and adds them to `store` if there is
// one. Thread-safe for the caller's thread and its own.
class KernelCompiler {
 public:
  KernelCompiler(std::shared_ptr<SimulatedDevice> device, std::shared_ptr<KernelStore> store);
  // Lets the kernel that is being compiled finish, and drops the others.
  ~KernelCompiler();

  KernelCompiler(const KernelCompiler&) = delete;
  KernelCompiler& operator=(const KernelCompiler&) = delete;

  void compile(const SimulatedKernel& kernel);
  // Returns at once. SimulatedDevice::wait_for_background_compilation() waits for these kernels until they are compiled
  // or dropped.
  void compile_in_background(std::vector<SimulatedKernel> kernels);

 private:
  void work();

  std::shared_ptr<SimulatedDevice> device_;
  std::shared_ptr<KernelStore> store_;

  std::mutex mutex_; // guards the rest
  std::condition_variable changed_;
  std::deque<SimulatedKernel> queue_;
  bool stop_ = false;
  std::thread worker_; // started by the first kernel
};

} // namespace torch_tensorrt::tests
