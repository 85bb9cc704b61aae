#include "tests/util/simulation/SimulatedDevice.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>

#include "core/util/prelude.h"

namespace torch_tensorrt::tests {
namespace {

constexpr std::string_view kCalls[] = {
    "createInferRuntime",
    "IRuntime::deserializeCudaEngine",
    "ICudaEngine::serialize",
    "ICudaEngine::createRuntimeConfig",
    "ICudaEngine::createExecutionContext",
    "IRuntimeConfig::createRuntimeCache",
    "IRuntimeConfig::setRuntimeCache",
    "IRuntimeConfig::getRuntimeCache",
    "IRuntimeConfig::setCudaGraphStrategy",
    "IRuntimeCache::serialize",
    "IRuntimeCache::deserialize",
    "IRuntimeCache::reset",
    "IExecutionContext::setInputShape",
    "IExecutionContext::setTensorAddress",
    "IExecutionContext::inferShapes",
    "IExecutionContext::setOptimizationProfileAsync",
    "IExecutionContext::isStreamCapturable",
    "IExecutionContext::enqueueV3",
};

// `calls` is a map of calls, const or not.
auto& find(auto& calls, std::string_view call) {
  const auto found = calls.find(call);
  TORCHTRT_CHECK(found != calls.end(), "The simulated device has no call named " << call);
  return found->second;
}

} // namespace

SimulatedDevice::SimulatedDevice(SimulatedEnvironment environment, bool is_second)
    : is_second_(is_second), environment_(std::move(environment)) {
  for (const std::string_view call : kCalls) {
    calls_.emplace(call, Call{});
  }
}

SimulatedEnvironment SimulatedDevice::environment() const {
  const std::lock_guard guard(mutex_);
  return environment_;
}

void SimulatedDevice::set_environment(SimulatedEnvironment environment) {
  const std::lock_guard guard(mutex_);
  environment_ = std::move(environment);
}

void SimulatedDevice::set_compile_time(std::chrono::nanoseconds time) {
  const std::lock_guard guard(mutex_);
  compile_time_ = time;
}

DeserializeMode SimulatedDevice::deserialize_mode() const {
  const std::lock_guard guard(mutex_);
  return deserialize_mode_;
}

void SimulatedDevice::set_deserialize_mode(DeserializeMode mode) {
  const std::lock_guard guard(mutex_);
  deserialize_mode_ = mode;
}

void SimulatedDevice::fail(std::string_view call, uint64_t times) {
  const std::lock_guard guard(mutex_);
  find(calls_, call).to_fail = times;
}

void SimulatedDevice::before(std::string_view call, std::function<void()> hook) {
  const std::lock_guard guard(mutex_);
  find(calls_, call).hook = std::move(hook);
}

uint64_t SimulatedDevice::calls(std::string_view call) const {
  const std::lock_guard guard(mutex_);
  return find(calls_, call).made;
}

bool SimulatedDevice::fails(std::string_view call) {
  std::function<void()> hook;
  {
    const std::lock_guard guard(mutex_);
    hook = find(calls_, call).hook;
  }
  if (hook) {
    hook();
  }
  const std::lock_guard guard(mutex_);
  Call& entry = find(calls_, call);
  ++entry.made;
  if (entry.to_fail == 0) {
    return false;
  }
  if (entry.to_fail != kAlways) {
    --entry.to_fail;
  }
  return true;
}

SimulatedDevice::Counters SimulatedDevice::counters() const {
  const std::lock_guard guard(mutex_);
  return counters_;
}

void SimulatedDevice::reset_counters() {
  const std::lock_guard guard(mutex_);
  counters_ = {};
  for (auto& [name, call] : calls_) {
    call.made = 0;
  }
}

void SimulatedDevice::compile() {
  std::chrono::nanoseconds time;
  {
    const std::lock_guard guard(mutex_);
    ++counters_.compilations;
    time = compile_time_;
  }
  std::this_thread::sleep_for(time);
}

void SimulatedDevice::count_cache_hit() {
  const std::lock_guard guard(mutex_);
  ++counters_.cache_hits;
}

void SimulatedDevice::begin_background_compilation() {
  const std::lock_guard guard(mutex_);
  ++background_compilations_;
}

void SimulatedDevice::end_background_compilation() {
  const std::lock_guard guard(mutex_);
  --background_compilations_;
  idle_.notify_all();
}

void SimulatedDevice::wait_for_background_compilation() const {
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [this] { return background_compilations_ == 0; });
}

void Simulation::error(const std::string& text) const noexcept {
  if (logger != nullptr) {
    logger->log(nvinfer1::ILogger::Severity::kERROR, text.c_str());
  }
}

int64_t Simulation::current_process() noexcept {
  return ::getpid();
}

void Simulation::check_process() const noexcept {
  if (process != current_process()) {
    abort_simulation("a forked child used or destroyed an object of its parent");
  }
}

void abort_simulation(const std::string& what) noexcept {
  std::fprintf(stderr, "Simulated TensorRT-RTX: %s\n", what.c_str());
  std::abort();
}

} // namespace torch_tensorrt::tests
