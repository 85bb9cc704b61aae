#include "tests/util/simulation/KernelCompiler.h"

#include <utility>

namespace torch_tensorrt::tests {

KernelCompiler::KernelCompiler(std::shared_ptr<SimulatedDevice> device, std::shared_ptr<KernelStore> store)
    : device_(std::move(device)), store_(std::move(store)) {}

KernelCompiler::~KernelCompiler() {
  if (!worker_.joinable()) {
    return;
  }
  {
    const std::lock_guard guard(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  worker_.join();
  for (size_t i = 0; i < queue_.size(); ++i) {
    device_->end_background_compilation();
  }
}

void KernelCompiler::compile(const SimulatedKernel& kernel) {
  if (store_ != nullptr) {
    store_->get_or_compile(*device_, kernel.name, kernel.size);
  } else {
    device_->compile();
  }
}

void KernelCompiler::compile_in_background(std::vector<SimulatedKernel> kernels) {
  const std::lock_guard guard(mutex_);
  for (SimulatedKernel& kernel : kernels) {
    device_->begin_background_compilation();
    queue_.push_back(std::move(kernel));
  }
  if (!worker_.joinable()) {
    worker_ = std::thread([this] { work(); });
  }
  changed_.notify_all();
}

void KernelCompiler::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (stop_) {
      return;
    }
    const SimulatedKernel kernel = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    compile(kernel);
    device_->end_background_compilation();
    lock.lock();
  }
}

} // namespace torch_tensorrt::tests
