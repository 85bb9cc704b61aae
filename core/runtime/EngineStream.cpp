#include "core/runtime/EngineStream.h"

#include <c10/core/impl/VirtualGuardImpl.h>

namespace torch_tensorrt::core::runtime {
namespace {

using c10::impl::VirtualGuardImpl;

template <class Guard>
bool is_stream_capturing([[maybe_unused]] const Guard& guard, [[maybe_unused]] const c10::Stream& stream) {
  if constexpr (requires { guard.isStreamCapturing(stream); }) {
    return guard.isStreamCapturing(stream);
  } else {
    return false;
  }
}

void record(std::optional<c10::Event>& event, const c10::Stream& stream) {
  if (!event.has_value()) {
    event.emplace(stream.device_type());
  }
  event->record(stream);
}

} // namespace

bool EngineStream::is_capturing() const {
  if (device_.is_cpu()) {
    return false;
  }
  const VirtualGuardImpl guard(device_.type());
  return is_stream_capturing(guard, guard.getStream(device_));
}

cudaStream_t EngineStream::begin() {
  if (device_.is_cpu()) {
    return nullptr;
  }
  const VirtualGuardImpl guard(device_.type());
  const c10::Stream current = guard.getStream(device_);
  if (is_capturing()) {
    current_.reset();
    return static_cast<cudaStream_t>(guard.getStreamNativeHandle(current));
  }
  c10::Stream stream = current;
  if (current == guard.getDefaultStream(device_)) {
    if (!own_.has_value()) {
      own_ = guard.getStreamFromGlobalPool(device_);
    }
    stream = *own_;
    record(current_is_ready_, current);
    current_is_ready_->block(stream);
  }
  if (last_inference_.has_value() && last_stream_ != stream) {
    last_inference_->block(stream);
  }
  current_ = current;
  last_stream_ = stream;
  return static_cast<cudaStream_t>(guard.getStreamNativeHandle(stream));
}

void EngineStream::end() {
  if (!current_.has_value()) {
    return;
  }
  record(last_inference_, *last_stream_);
  if (*last_stream_ != *current_) {
    last_inference_->block(*current_);
  }
  current_.reset();
}

void EngineStream::synchronize() {
  if (last_inference_.has_value()) {
    last_inference_->synchronize();
  }
}

} // namespace torch_tensorrt::core::runtime
