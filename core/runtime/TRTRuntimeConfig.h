#pragma once

#include <cstdint>
#include <iosfwd>
#include <memory>
#include <mutex>

#include <NvInferRuntime.h>
#include <c10/util/intrusive_ptr.h>

#include "core/runtime/RuntimeSettings.h"

namespace torch_tensorrt::core::runtime {

// Carries an engine's RuntimeSettings into the nvinfer1::IRuntimeConfig that its execution contexts are created with.
//
// Nothing about the runtime cache is an error here: whatever keeps it from being loaded, attached or saved is a
// warning, and the engine runs, compiling its kernels anew where it must.
//
// Errors: torch_tensorrt::Error where named below.
//
// Thread safety: all members, from any thread.
class TRTRuntimeConfig {
 public:
  explicit TRTRuntimeConfig(RuntimeSettings settings = {});

  TRTRuntimeConfig(const TRTRuntimeConfig&) = delete;
  TRTRuntimeConfig& operator=(const TRTRuntimeConfig&) = delete;

  RuntimeSettings settings() const;

  // True if these are other settings than before. Then they hold for contexts created from now on, while those there
  // are keep theirs; and if another cache is among them, the one before it is saved, as save_runtime_cache() does.
  bool settings(RuntimeSettings settings);

  // Creates the IRuntimeConfig unless it is there, and with it makes the settings' runtime cache live and attaches it.
  // Requires the engine's device to be the current one. Throws if TensorRT-RTX can't create an IRuntimeConfig. One
  // engine only, until reset().
  void ensure_initialized(nvinfer1::ICudaEngine* engine);

  // A context with these settings, which keeps alive what it needs of them, but not `engine`. Initializes where
  // necessary, and throws as that does, and if TensorRT-RTX can't create a context.
  std::shared_ptr<nvinfer1::IExecutionContext> create_execution_context(
      nvinfer1::ICudaEngine* engine,
      nvinfer1::ExecutionContextAllocationStrategy allocation_strategy =
          nvinfer1::ExecutionContextAllocationStrategy::kSTATIC);

  // Whether TensorRT-RTX is the one to capture CUDA graphs of this engine: always when its strategy says so, and also
  // when the caller's CUDA graphs are on, which then are to be had by CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE; a
  // capture around each inference would freeze the kernels of the moment, which TensorRT-RTX replaces once it has
  // better ones.
  bool uses_internal_capture(bool cudagraphs_enabled) const;

  // Whether somebody else may capture the next inference of `context` on `stream`, with whatever is around it, in one
  // CUDA graph. No if TensorRT-RTX says so, if it would itself capture meanwhile, or if it would specialize kernels in
  // the background, which the graph would never get to use.
  bool is_monolithic_capturable(
      bool has_dynamic_inputs,
      const nvinfer1::IExecutionContext& context,
      cudaStream_t stream) const;

  // Saves the runtime cache in use to its file; for destructors. Does nothing before one is attached, if the handle has
  // no path, if its autosave is off, and in a forked child of the process that attached it.
  void save_runtime_cache() noexcept;

  // Forgets the IRuntimeConfig, so that the next use creates it anew, for whichever engine. Saves nothing.
  void reset();

  friend std::ostream& operator<<(std::ostream& stream, const TRTRuntimeConfig& config);

 private:
  // A cache that was attached, and the process that attached it.
  struct InUse {
    c10::intrusive_ptr<RuntimeCacheHandle> cache;
    int64_t process = 0;
  };

  void initialize_locked(nvinfer1::ICudaEngine* engine);
  void attach_cache_locked(nvinfer1::IRuntimeConfig& config);
  static void autosave(const InUse& in_use) noexcept;

  mutable std::mutex mutex_; // not held while a cache is saved; guards the rest
  RuntimeSettings settings_;
  std::shared_ptr<nvinfer1::IRuntimeConfig> config_; // keeps the cache attached to it alive
  const nvinfer1::ICudaEngine* engine_ = nullptr;    // config_'s
  InUse cache_in_use_;
};

} // namespace torch_tensorrt::core::runtime
