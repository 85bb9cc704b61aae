#pragma once

#include <optional>

#include <NvInferRuntime.h>
#include <c10/core/Device.h>
#include <c10/core/Event.h>
#include <c10/core/Stream.h>

namespace torch_tensorrt::core::runtime {

// Where an engine's inferences run, one after another: on torch's current stream, unless that is the default one. On
// the default stream each enqueueV3 costs a synchronization (NvInferRuntime.h), and CUDA can't capture it for the
// graphs that TensorRT-RTX makes by itself. In its place comes a stream of the engine's own; each of the two waits for
// the other.
//
// One object in one thread at a time, with the device current. Errors of CUDA: c10::Error.
class EngineStream {
 public:
  // A CPU has no streams; nothing waits there.
  explicit EngineStream(c10::Device device) : device_(device) {}

  // Whether the current stream is being captured in a CUDA graph. False with versions of torch that can't tell without
  // CUDA's own headers (2.11).
  bool is_capturing() const;

  // What to give to enqueueV3: null on a CPU. The inference will wait for what the current stream has to do, and for
  // the inference before. While capturing nothing is waited for, since that would tie the graph to what is outside of
  // it.
  cudaStream_t begin();

  // To be called once the inference that began is enqueued, or failed to be: the current stream waits for it.
  void end();

  // Waits for the last inference on the host.
  void synchronize();

 private:
  const c10::Device device_;
  std::optional<c10::Stream> own_;
  std::optional<c10::Stream> current_;     // of the inference that began, unless it is captured
  std::optional<c10::Stream> last_stream_; // of the last inference
  std::optional<c10::Event> current_is_ready_;
  std::optional<c10::Event> last_inference_; // its end
};

} // namespace torch_tensorrt::core::runtime
