#include "core/runtime/TRTRuntimeConfig.h"

#include <unistd.h>

#include <ostream>
#include <utility>

#include "core/util/prelude.h"

namespace torch_tensorrt::core::runtime {
namespace {

template <class Ours, class Theirs>
constexpr bool same_value(Ours ours, Theirs theirs) {
  return static_cast<int32_t>(ours) == static_cast<int32_t>(theirs);
}

using Specialization = DynamicShapesKernelSpecializationStrategy;
using TheirSpecialization = nvinfer1::DynamicShapesKernelSpecializationStrategy;
static_assert(same_value(Specialization::kLAZY, TheirSpecialization::kLAZY));
static_assert(same_value(Specialization::kEAGER, TheirSpecialization::kEAGER));
static_assert(same_value(Specialization::kNONE, TheirSpecialization::kNONE));

static_assert(same_value(CudaGraphStrategy::kDISABLED, nvinfer1::CudaGraphStrategy::kDISABLED));
static_assert(same_value(CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE, nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE));

} // namespace

TRTRuntimeConfig::TRTRuntimeConfig(RuntimeSettings settings) : settings_(std::move(settings)) {}

RuntimeSettings TRTRuntimeConfig::settings() const {
  const std::lock_guard lock(mutex_);
  return settings_;
}

bool TRTRuntimeConfig::settings(RuntimeSettings settings) {
  InUse old;
  {
    const std::lock_guard lock(mutex_);
    if (settings == settings_) {
      return false;
    }
    if (settings.runtime_cache != settings_.runtime_cache) {
      old = std::exchange(cache_in_use_, {});
    }
    settings_ = std::move(settings);
    config_.reset();
  }
  autosave(old);
  return true;
}

void TRTRuntimeConfig::ensure_initialized(nvinfer1::ICudaEngine* engine) {
  const std::lock_guard lock(mutex_);
  initialize_locked(engine);
}

void TRTRuntimeConfig::initialize_locked(nvinfer1::ICudaEngine* engine) {
  TORCHTRT_CHECK(engine != nullptr, "A runtime config needs an engine");
  if (config_ != nullptr) {
    TORCHTRT_CHECK(engine == engine_, "This runtime config belongs to another engine; reset() it first");
    return;
  }
  const auto config = util::make_trt(engine->createRuntimeConfig());
  TORCHTRT_CHECK(config != nullptr, "TensorRT-RTX could not create the runtime config of an engine");
  config->setDynamicShapesKernelSpecializationStrategy(
      static_cast<TheirSpecialization>(settings_.dynamic_shapes_kernel_specialization_strategy));
  if (!config->setCudaGraphStrategy(static_cast<nvinfer1::CudaGraphStrategy>(settings_.cuda_graph_strategy))) {
    LOG_WARNING(
        "TensorRT-RTX refused the CUDA graph strategy " << to_string(settings_.cuda_graph_strategy)
                                                        << "; the engine runs without it");
  }
  config_ = config;
  engine_ = engine;
  if (settings_.runtime_cache != nullptr) {
    attach_cache_locked(*config);
  }
  LOG_DEBUG("Runtime config initialized with " << settings_);
}

void TRTRuntimeConfig::attach_cache_locked(nvinfer1::IRuntimeConfig& config) {
  const auto& handle = settings_.runtime_cache;
  try {
    auto cache = handle->ensure_materialized(&config);
    // Both live as long as the config, which TensorRT-RTX may let point to the cache even after it has refused it.
    config_ = std::shared_ptr<nvinfer1::IRuntimeConfig>(
        config_.get(), [config = config_, cache](nvinfer1::IRuntimeConfig*) mutable {
          config.reset();
          cache.reset();
        });
    if (!config.setRuntimeCache(*cache)) {
      TORCHTRT_THROW_ERROR("TensorRT-RTX refused the runtime cache '" << handle->path() << "'");
    }
    cache_in_use_ = {.cache = handle, .process = getpid()};
  } catch (const std::exception& error) {
    const auto* ours = dynamic_cast<const Error*>(&error);
    LOG_WARNING(
        "The engine runs without a runtime cache: " << (ours != nullptr ? ours->msg() : std::string(error.what())));
  }
}

std::shared_ptr<nvinfer1::IExecutionContext> TRTRuntimeConfig::create_execution_context(
    nvinfer1::ICudaEngine* engine,
    nvinfer1::ExecutionContextAllocationStrategy allocation_strategy) {
  // Held throughout, since the allocation strategy is the config's. A context compiles its kernels here.
  const std::lock_guard lock(mutex_);
  initialize_locked(engine);
  config_->setExecutionContextAllocationStrategy(allocation_strategy);
  nvinfer1::IExecutionContext* context = engine->createExecutionContext(config_.get());
  TORCHTRT_CHECK(context != nullptr, "TensorRT-RTX could not create an execution context; the log has its reasons");
  return {context, [config = config_](nvinfer1::IExecutionContext* c) { delete c; }};
}

bool TRTRuntimeConfig::uses_internal_capture(bool cudagraphs_enabled) const {
  const std::lock_guard lock(mutex_);
  return cudagraphs_enabled || settings_.cuda_graph_strategy != CudaGraphStrategy::kDISABLED;
}

bool TRTRuntimeConfig::is_monolithic_capturable(
    bool has_dynamic_inputs,
    const nvinfer1::IExecutionContext& context,
    cudaStream_t stream) const {
  {
    const std::lock_guard lock(mutex_);
    const bool specializes_in_background =
        has_dynamic_inputs && settings_.dynamic_shapes_kernel_specialization_strategy == Specialization::kLAZY;
    if (specializes_in_background || settings_.cuda_graph_strategy != CudaGraphStrategy::kDISABLED) {
      return false;
    }
  }
  return context.isStreamCapturable(stream);
}

void TRTRuntimeConfig::save_runtime_cache() noexcept {
  InUse in_use;
  try {
    const std::lock_guard lock(mutex_);
    in_use = cache_in_use_;
  } catch (const std::exception&) {
    return; // a mutex that can't be locked
  }
  autosave(in_use);
}

void TRTRuntimeConfig::autosave(const InUse& in_use) noexcept {
  const auto& cache = in_use.cache;
  try {
    try {
      if (cache != nullptr && in_use.process == getpid() && cache->autosave() && !cache->path().empty()) {
        cache->save();
      }
    } catch (const Error& error) {
      LOG_WARNING(error.msg());
    } catch (const std::exception& error) {
      LOG_WARNING("Can't save the runtime cache '" << cache->path() << "': " << error.what());
    }
  } catch (...) {
    // Not even the log could be written.
  }
}

void TRTRuntimeConfig::reset() {
  const std::lock_guard lock(mutex_);
  config_.reset();
}

std::ostream& operator<<(std::ostream& stream, const TRTRuntimeConfig& config) {
  const std::lock_guard lock(config.mutex_);
  return stream << "TRTRuntimeConfig(" << config.settings_
                << ", initialized=" << (config.config_ != nullptr ? "true" : "false")
                << ", runtime_cache_in_use=" << (config.cache_in_use_.cache != nullptr ? "true" : "false") << ")";
}

} // namespace torch_tensorrt::core::runtime
