#include "core/runtime/TRTRuntimeConfig.h"

#include <unistd.h>

#include <algorithm>
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

// Throws nothing, because a destructor calls it. `cache` may be null.
void detach_from(const c10::intrusive_ptr<RuntimeCacheHandle>& cache) noexcept {
  if (cache == nullptr || !cache->detach() || !cache->autosave() || cache->path().empty()) {
    return;
  }
  try {
    try {
      if (const auto deadline = CheckpointThread::exit_deadline()) {
        cache->save_within(std::max(*deadline - CheckpointThread::Clock::now(), CheckpointThread::Clock::duration(0)));
      } else {
        cache->save();
      }
    } catch (const std::exception& error) {
      LOG_WARNING(message_of(error));
    }
    cache->log_statistics();
  } catch (...) {
    // Not even the log could be written.
  }
}

} // namespace

TRTRuntimeConfig::TRTRuntimeConfig(RuntimeSettings settings) : process_(::getpid()), settings_(std::move(settings)) {}

TRTRuntimeConfig::~TRTRuntimeConfig() {
  if (process_ == ::getpid()) {
    detach_from(attached_cache_);
  } else {
    new std::shared_ptr(std::move(config_));
  }
}

RuntimeSettings TRTRuntimeConfig::settings() const {
  const std::lock_guard lock(mutex_);
  return settings_;
}

bool TRTRuntimeConfig::settings(RuntimeSettings settings) {
  c10::intrusive_ptr<RuntimeCacheHandle> old;
  {
    const std::lock_guard lock(mutex_);
    if (settings == settings_) {
      return false;
    }
    if (settings.runtime_cache != settings_.runtime_cache) {
      old = std::exchange(attached_cache_, {});
    }
    settings_ = std::move(settings);
    config_.reset();
  }
  detach_from(old);
  return true;
}

void TRTRuntimeConfig::initialize_locked(const LoadedEngine& engine) {
  if (config_ != nullptr) {
    return;
  }
  const auto config = util::make_trt(engine.engine->createRuntimeConfig());
  if (config == nullptr) {
    TORCHTRT_THROW_ERROR("TensorRT-RTX could not create the runtime config of an engine");
  }
  config->setDynamicShapesKernelSpecializationStrategy(
      static_cast<TheirSpecialization>(settings_.dynamic_shapes_kernel_specialization_strategy));
  if (!config->setCudaGraphStrategy(static_cast<nvinfer1::CudaGraphStrategy>(settings_.cuda_graph_strategy))) {
    LOG_WARNING(
        "TensorRT-RTX refused the CUDA graph strategy " << to_string(settings_.cuda_graph_strategy)
                                                        << "; the engine runs without it");
  }
  config_ = config;
  if (settings_.runtime_cache != nullptr) {
    attach_cache_locked(*config, engine);
  }
  LOG_DEBUG("Runtime config initialized with " << settings_);
}

void TRTRuntimeConfig::attach_cache_locked(nvinfer1::IRuntimeConfig& config, const LoadedEngine& engine) {
  const auto& handle = settings_.runtime_cache;
  try {
    auto cache = handle->ensure_materialized(&config, engine.device, engine.kind);
    // The config keeps the cache alive, because it may point to the cache even after TensorRT-RTX has refused it.
    config_ = std::shared_ptr<nvinfer1::IRuntimeConfig>(
        config_.get(), [config = config_, cache](nvinfer1::IRuntimeConfig*) mutable {
          config.reset();
          cache.reset();
        });
    if (!config.setRuntimeCache(*cache)) {
      TORCHTRT_THROW_ERROR("TensorRT-RTX refused the runtime cache '" << handle->path() << "'");
    }
    if (attached_cache_ == nullptr) {
      handle->attach();
      attached_cache_ = handle;
    }
  } catch (const std::exception& error) {
    LOG_WARNING("The engine runs without a runtime cache: " << message_of(error));
  }
}

std::shared_ptr<nvinfer1::IExecutionContext> TRTRuntimeConfig::create_execution_context(
    const LoadedEngine& engine,
    nvinfer1::ExecutionContextAllocationStrategy allocation_strategy) {
  // Held throughout, because the allocation strategy belongs to the config. Creating a context compiles its kernels.
  const std::lock_guard lock(mutex_);
  initialize_locked(engine);
  config_->setExecutionContextAllocationStrategy(allocation_strategy);
  const RuntimeCacheHandle::Compiling compiling(attached_cache_);
  nvinfer1::IExecutionContext* context = engine.engine->createExecutionContext(config_.get());
  if (context == nullptr) {
    TORCHTRT_THROW_ERROR("TensorRT-RTX could not create an execution context; the log has its reasons");
  }
  return {context, [config = config_](nvinfer1::IExecutionContext* c) { delete c; }};
}

bool TRTRuntimeConfig::specializes_lazily(bool has_dynamic_inputs) const {
  const std::lock_guard lock(mutex_);
  return has_dynamic_inputs && settings_.dynamic_shapes_kernel_specialization_strategy == Specialization::kLAZY;
}

c10::intrusive_ptr<RuntimeCacheHandle> TRTRuntimeConfig::attached_cache() const {
  const std::lock_guard lock(mutex_);
  return attached_cache_;
}

bool TRTRuntimeConfig::is_monolithic_capturable(
    bool has_dynamic_inputs,
    const nvinfer1::IExecutionContext& context,
    cudaStream_t stream) const {
  return !specializes_lazily(has_dynamic_inputs) && settings().cuda_graph_strategy == CudaGraphStrategy::kDISABLED &&
      context.isStreamCapturable(stream);
}

std::ostream& operator<<(std::ostream& stream, const TRTRuntimeConfig& config) {
  const std::lock_guard lock(config.mutex_);
  return stream << "TRTRuntimeConfig(" << config.settings_
                << ", initialized=" << (config.config_ != nullptr ? "true" : "false")
                << ", runtime_cache_in_use=" << (config.attached_cache_ != nullptr ? "true" : "false") << ")";
}

} // namespace torch_tensorrt::core::runtime
