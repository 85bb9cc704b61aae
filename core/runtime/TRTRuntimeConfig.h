#pragma once

#include <sys/types.h>

#include <iosfwd>
#include <memory>
#include <mutex>

#include <NvInferRuntime.h>
#include <c10/util/intrusive_ptr.h>

#include "core/runtime/EngineLoader.h"
#include "core/runtime/RuntimeSettings.h"

namespace torch_tensorrt::core::runtime {

// Carries an engine's RuntimeSettings into the nvinfer1::IRuntimeConfig that its execution contexts are created with.
//
// A runtime cache never makes the engine fail: if it can't be loaded, attached or saved, a warning is logged and the
// engine compiles the kernels that it lacks.
//
// Errors: throws torch_tensorrt::Error where stated below.
//
// Thread safety: all members may be called from any thread.
class TRTRuntimeConfig {
 public:
  explicit TRTRuntimeConfig(RuntimeSettings settings = {});

  // Detaches from the runtime cache (RuntimeCacheHandle::detach), and saves it to its file if nobody else uses it and
  // its autosave is on. In a child of fork() it destroys nothing that TensorRT-RTX made in the parent.
  ~TRTRuntimeConfig();

  TRTRuntimeConfig(const TRTRuntimeConfig&) = delete;
  TRTRuntimeConfig& operator=(const TRTRuntimeConfig&) = delete;

  RuntimeSettings settings() const;

  // Returns true if the settings differ from the previous ones. They apply to contexts created from now on; existing
  // contexts keep theirs. If the cache differs, detaches from the previous one as the destructor does.
  bool settings(RuntimeSettings settings);

  // Returns a context with these settings. The context keeps alive what it needs of them, but not the engine. All calls
  // must be for the same engine, with its device current. The first call after a change of settings creates the
  // IRuntimeConfig, makes the settings' runtime cache live and attaches it. Throws if TensorRT-RTX can't create an
  // IRuntimeConfig or a context.
  std::shared_ptr<nvinfer1::IExecutionContext> create_execution_context(
      const LoadedEngine& engine,
      nvinfer1::ExecutionContextAllocationStrategy allocation_strategy =
          nvinfer1::ExecutionContextAllocationStrategy::kSTATIC);

  // Returns true if kernels may be compiled in the background, long after the inference that needed them.
  bool specializes_lazily(bool has_dynamic_inputs) const;

  // Returns the runtime cache that the contexts compile into, or null if there is none.
  c10::intrusive_ptr<RuntimeCacheHandle> attached_cache() const;

  // Returns true if the caller may capture the next inference of `context` on `stream`, together with the work around
  // it, in one CUDA graph. Returns false if TensorRT-RTX reports that it can't be captured, if TensorRT-RTX would
  // itself capture a graph, or if it would specialize kernels in the background, which the graph would never use.
  bool is_monolithic_capturable(
      bool has_dynamic_inputs,
      const nvinfer1::IExecutionContext& context,
      cudaStream_t stream) const;

  friend std::ostream& operator<<(std::ostream& stream, const TRTRuntimeConfig& config);

 private:
  void initialize_locked(const LoadedEngine& engine);
  void attach_cache_locked(nvinfer1::IRuntimeConfig& config, const LoadedEngine& engine);

  const pid_t process_;
  mutable std::mutex mutex_; // not held while a cache is saved; guards the rest
  RuntimeSettings settings_;
  std::shared_ptr<nvinfer1::IRuntimeConfig> config_;           // keeps the cache attached to it alive
  c10::intrusive_ptr<RuntimeCacheHandle> attached_cache_ = {}; // the one to detach from
};

} // namespace torch_tensorrt::core::runtime
