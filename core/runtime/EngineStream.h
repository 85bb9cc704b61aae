#pragma once

#include <optional>

#include <NvInferRuntime.h>
#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

namespace torch_tensorrt::core::runtime {

// The stream for an engine's inferences, which run one after another. It is torch's current stream, unless that is the
// default stream. On the default stream, each enqueueV3 costs a synchronization (NvInferRuntime.h), and CUDA can't
// capture it for the graphs that TensorRT-RTX itself makes. Inferences then run on a stream of the engine's own, and
// the two streams wait for each other.
//
// Thread safety: one thread per object at a time (external synchronization), with the device current. Errors: throws
// c10::Error if CUDA fails.
class EngineStream {
 public:
  // A CPU has no streams, so nothing waits there.
  explicit EngineStream(c10::Device device) : device_(device) {}

  // Returns true if the current stream is being captured in a CUDA graph. Always returns false with versions of torch
  // that can't tell without CUDA's own headers (2.11).
  bool is_capturing() const;

  // Returns the stream for enqueueV3, or null on a CPU. The inference will wait for the work on the current stream and
  // for the previous inference. During a capture it waits for nothing, because a wait would tie the graph to work
  // outside it.
  cudaStream_t begin();

  // Must be called once the inference is enqueued or could not be enqueued. Makes the current stream wait for the
  // inference.
  void end();

  // Blocks the calling thread until the last inference has ended.
  void synchronize();

 private:
  const c10::Device device_;
  std::optional<c10::Stream> own_;
  std::optional<c10::Stream> current_;     // at begin(), until end(); unset during a capture
  std::optional<c10::Stream> last_stream_; // of the last inference
  std::optional<c10::Event> current_is_ready_;
  std::optional<c10::Event> last_inference_; // its end
};

} // namespace torch_tensorrt::core::runtime
