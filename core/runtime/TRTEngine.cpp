#include "core/runtime/TRTEngine.h"

#include <unistd.h>

#include <algorithm>
#include <sstream>
#include <string_view>
#include <utility>

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/ones.h>
#include <c10/core/DeviceGuard.h>
#include <c10/util/hash.h>

#include "core/util/prelude.h"

namespace torch_tensorrt::core::runtime {
namespace {

using nvinfer1::TensorIOMode;

constexpr size_t kMostShapes = 4096; // that an engine remembers, about 100 KiB

std::string_view bytes_of(const at::Tensor& plan) {
  if (!plan.defined()) {
    TORCHTRT_THROW_ERROR("The plan of an engine is an undefined tensor");
  }
  const bool is_plain = plan.layout() == at::kStrided && plan.is_cpu() && plan.is_contiguous();
  if (!(is_plain && plan.scalar_type() == at::kByte && plan.dim() == 1)) {
    TORCHTRT_THROW_ERROR(
        "The plan of an engine must be a contiguous one-dimensional uint8 tensor on the CPU, got one of "
        << plan.scalar_type() << " and shape " << plan.sizes() << " on " << plan.device());
  }
  return {static_cast<const char*>(plan.const_data_ptr()), plan.nbytes()};
}

// Returns nullopt for types that torch lacks.
std::optional<at::ScalarType> scalar_type(nvinfer1::DataType type) {
  switch (type) {
    case nvinfer1::DataType::kFLOAT:
      return at::kFloat;
    case nvinfer1::DataType::kHALF:
      return at::kHalf;
    case nvinfer1::DataType::kBF16:
      return at::kBFloat16;
    case nvinfer1::DataType::kFP8:
      return at::kFloat8_e4m3fn;
    case nvinfer1::DataType::kINT8:
      return at::kChar;
    case nvinfer1::DataType::kINT32:
      return at::kInt;
    case nvinfer1::DataType::kINT64:
      return at::kLong;
    case nvinfer1::DataType::kUINT8:
      return at::kByte;
    case nvinfer1::DataType::kBOOL:
      return at::kBool;
    default:
      return std::nullopt;
  }
}

std::vector<int64_t> extents(const nvinfer1::Dims& dims) {
  return {dims.d, dims.d + std::max(dims.nbDims, 0)};
}

nvinfer1::Dims to_dims(at::IntArrayRef extents) {
  nvinfer1::Dims dims{};
  dims.nbDims = static_cast<int32_t>(extents.size());
  std::copy(extents.begin(), extents.end(), dims.d);
  return dims;
}

const char* name_of(TensorIOMode mode) {
  return mode == TensorIOMode::kINPUT ? "input" : "output";
}

// Returns a text like "[1 to 8, 3]".
std::string ranges(const std::vector<int64_t>& min, const std::vector<int64_t>& max) {
  std::ostringstream text;
  for (size_t i = 0; i < min.size(); ++i) {
    text << (i == 0 ? "" : ", ") << min[i];
    if (min[i] != max[i]) {
      text << " to " << max[i];
    }
  }
  return "[" + text.str() + "]";
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) {
    text += (text.empty() ? "'" : ", '") + name + "'";
  }
  return text.empty() ? "none" : text;
}

std::vector<std::string> names_in(const nvinfer1::ICudaEngine& engine, TensorIOMode mode) {
  std::vector<std::string> names;
  for (int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
    const char* name = engine.getIOTensorName(i);
    if (engine.getTensorIOMode(name) == mode) {
      names.emplace_back(name);
    }
  }
  return names;
}

template <class Bindings>
std::vector<std::string> names_of(const Bindings& bindings) {
  std::vector<std::string> names;
  for (const auto& binding : bindings) {
    names.push_back(binding.name);
  }
  return names;
}

template <class Bindings>
bool any_dynamic(const Bindings& bindings) {
  return std::any_of(bindings.begin(), bindings.end(), [](const auto& binding) { return binding.min != binding.max; });
}

RuntimeSettings settings_of(const TRTEngine::State& state) {
  return {
      .dynamic_shapes_kernel_specialization_strategy =
          strategy_from_string<DynamicShapesKernelSpecializationStrategy>(std::get<3>(state)),
      .cuda_graph_strategy = strategy_from_string<CudaGraphStrategy>(std::get<4>(state)),
      .runtime_cache = std::get<5>(state).value_or(c10::intrusive_ptr<RuntimeCacheHandle>())};
}

} // namespace

TRTEngine::TRTEngine(
    const at::Tensor& plan,
    std::vector<std::string> input_names,
    std::vector<std::string> output_names,
    RuntimeSettings settings)
    : TRTEngine(load_engine(bytes_of(plan)), std::move(input_names), std::move(output_names), std::move(settings)) {}

TRTEngine::TRTEngine(
    LoadedEngine engine,
    std::vector<std::string> input_names,
    std::vector<std::string> output_names,
    RuntimeSettings settings)
    : process_(::getpid()),
      loaded_(std::move(engine)),
      inputs_(describe_all(input_names, TensorIOMode::kINPUT)),
      outputs_(describe_all(output_names, TensorIOMode::kOUTPUT)),
      has_dynamic_inputs_(any_dynamic(inputs_)),
      config_(std::move(settings)),
      stream_(loaded_.device) {}

TRTEngine::TRTEngine(const LoadedEngine& engine, RuntimeSettings settings)
    : TRTEngine(
          engine,
          names_in(*engine.engine, TensorIOMode::kINPUT),
          names_in(*engine.engine, TensorIOMode::kOUTPUT),
          std::move(settings)) {}

TRTEngine::TRTEngine(const State& state)
    : TRTEngine(std::get<0>(state), std::get<1>(state), std::get<2>(state), settings_of(state)) {}

TRTEngine::~TRTEngine() {
  if (process_ != ::getpid()) {
    new LoadedEngine(loaded_);
    new std::shared_ptr(std::move(context_));
    return;
  }
  try {
    const c10::DeviceGuard guard(loaded_.device);
    // Done before config_ is destroyed, which saves the cache. A kernel that is compiling in the background is then in
    // the cache.
    release_context();
  } catch (...) {
    // At the end of a process CUDA, and its work, may be gone.
  }
}

std::vector<std::string> TRTEngine::input_names() const {
  return names_of(inputs_);
}

std::vector<std::string> TRTEngine::output_names() const {
  return names_of(outputs_);
}

RuntimeSettings TRTEngine::runtime_settings() const {
  check_process();
  return config_.settings();
}

bool TRTEngine::set_runtime_settings(RuntimeSettings settings) {
  check_process();
  const std::lock_guard lock(mutex_);
  if (settings == config_.settings()) {
    return false;
  }
  const c10::DeviceGuard guard(loaded_.device);
  release_context(); // before the save, as in the destructor
  return config_.settings(std::move(settings));
}

std::vector<at::Tensor> TRTEngine::example_inputs() const {
  std::vector<at::Tensor> inputs;
  for (const Binding& input : inputs_) {
    inputs.push_back(at::ones(input.opt, at::TensorOptions(input.dtype).device(input.device)));
  }
  return inputs;
}

std::vector<at::Tensor> TRTEngine::execute(const std::vector<at::Tensor>& inputs) {
  check_process();
  if (inputs.size() != inputs_.size()) {
    TORCHTRT_THROW_ERROR(
        "The engine takes " << inputs_.size() << " inputs (" << joined(input_names()) << "), got " << inputs.size());
  }
  const c10::DeviceGuard guard(loaded_.device);
  std::vector<at::Tensor> checked_inputs;
  for (size_t i = 0; i < inputs.size(); ++i) {
    checked_inputs.push_back(checked(inputs[i], inputs_[i]));
  }

  const std::lock_guard lock(mutex_);
  const bool is_capturing = stream_.is_capturing();
  if (context_ == nullptr) {
    if (is_capturing) {
      TORCHTRT_THROW_ERROR(
          "The engine's first inference can't be captured in a CUDA graph; run it once before the capture");
    }
    context_ = config_.create_execution_context(loaded_);
  }
  bind_inputs(checked_inputs);
  std::vector<at::Tensor> outputs = bind_outputs();
  const cudaStream_t stream = stream_.begin();
  if (is_capturing && !config_.is_monolithic_capturable(has_dynamic_inputs_, *context_, stream)) {
    TORCHTRT_THROW_ERROR("This inference can't be captured in a CUDA graph, with " << config_.settings());
  }
  std::optional<RuntimeCacheHandle::Compiling> compiling;
  if (is_new_shape(checked_inputs)) {
    compiling.emplace(config_.attached_cache(), config_.specializes_lazily(has_dynamic_inputs_));
  }
  const bool is_enqueued = context_->enqueueV3(stream);
  stream_.end();
  if (!is_enqueued) {
    shapes_.erase(last_shapes_.value());
    last_shapes_.reset();
    TORCHTRT_THROW_ERROR("TensorRT-RTX could not run the engine; the log has its reasons");
  }
  return outputs;
}

TRTEngine::State TRTEngine::state() const {
  check_process();
  const c10::DeviceGuard guard(loaded_.device);
  const auto plan = util::make_trt(loaded_.engine->serialize());
  if (plan == nullptr) {
    TORCHTRT_THROW_ERROR("TensorRT-RTX could not serialize the engine");
  }
  const RuntimeSettings settings = config_.settings();
  return {
      at::from_blob(
          plan->data(), {static_cast<int64_t>(plan->size())}, [plan](void*) {}, at::kByte),
      input_names(),
      output_names(),
      to_string(settings.dynamic_shapes_kernel_specialization_strategy),
      to_string(settings.cuda_graph_strategy),
      settings.runtime_cache == nullptr ? std::nullopt : std::optional(settings.runtime_cache)};
}

std::vector<TRTEngine::Binding> TRTEngine::describe_all(const std::vector<std::string>& names, TensorIOMode mode)
    const {
  const std::vector<std::string> there = names_in(*loaded_.engine, mode);
  if (!std::is_permutation(names.begin(), names.end(), there.begin(), there.end())) {
    TORCHTRT_THROW_ERROR("The engine's " << name_of(mode) << "s are " << joined(there) << ", got " << joined(names));
  }
  std::vector<Binding> bindings;
  for (const std::string& name : names) {
    bindings.push_back(describe(name, mode));
  }
  return bindings;
}

TRTEngine::Binding TRTEngine::describe(const std::string& name, TensorIOMode mode) const {
  const nvinfer1::ICudaEngine& engine = *loaded_.engine;
  const nvinfer1::DataType type = engine.getTensorDataType(name.c_str());
  const std::optional<at::ScalarType> dtype = scalar_type(type);
  if (!dtype.has_value()) {
    TORCHTRT_THROW_ERROR(
        "The " << name_of(mode) << " '" << name << "' is of TensorRT-RTX's data type " << static_cast<int32_t>(type)
               << ", which torch does not support");
  }
  if (engine.getTensorFormat(name.c_str()) != nvinfer1::TensorFormat::kLINEAR) {
    TORCHTRT_THROW_ERROR(
        "The " << name_of(mode) << " '" << name << "' is not laid out as a contiguous tensor ("
               << engine.getTensorFormatDesc(name.c_str()) << ")");
  }
  const bool on_host = engine.getTensorLocation(name.c_str()) == nvinfer1::TensorLocation::kHOST;
  Binding binding{
      .name = name,
      .dtype = *dtype,
      .device = on_host ? c10::Device(c10::DeviceType::CPU) : loaded_.device,
      .dims = extents(engine.getTensorShape(name.c_str()))};
  if (mode == TensorIOMode::kINPUT) {
    const bool is_dynamic = std::find(binding.dims.begin(), binding.dims.end(), -1) != binding.dims.end();
    const auto allowed = [&](nvinfer1::OptProfileSelector which) {
      return is_dynamic ? extents(engine.getProfileShape(name.c_str(), 0, which)) : binding.dims;
    };
    binding.min = allowed(nvinfer1::OptProfileSelector::kMIN);
    binding.opt = allowed(nvinfer1::OptProfileSelector::kOPT);
    binding.max = allowed(nvinfer1::OptProfileSelector::kMAX);
  }
  return binding;
}

// Returns the contiguous form of `input`. Throws if the binding does not accept it.
at::Tensor TRTEngine::checked(const at::Tensor& input, const Binding& binding) {
  const auto fail = [&binding](const auto& got) {
    TORCHTRT_THROW_ERROR(
        "The input '" << binding.name << "' must be a dense " << binding.dtype << " tensor "
                      << ranges(binding.min, binding.max) << " on " << binding.device << ", got " << got);
  };
  if (!input.defined()) {
    fail("an undefined one");
  } else if (input.layout() != at::kStrided) {
    fail(input.layout());
  } else if (input.scalar_type() != binding.dtype) {
    fail(input.scalar_type());
  } else if (input.device() != binding.device) {
    fail(input.device());
  }
  bool fits = input.dim() == static_cast<int64_t>(binding.dims.size());
  for (size_t i = 0; fits && i < binding.dims.size(); ++i) {
    const int64_t extent = input.size(static_cast<int64_t>(i));
    fits = binding.min[i] <= extent && extent <= binding.max[i];
  }
  if (!fits) {
    fail(input.sizes());
  }
  return input.contiguous();
}

void TRTEngine::bind(const Binding& binding, const at::Tensor& tensor) {
  // TensorRT-RTX needs an address even for a tensor without elements, whose own address is null.
  static char nothing[256];
  void* const address = tensor.numel() > 0 ? const_cast<void*>(tensor.const_data_ptr()) : nothing;
  if (!context_->setTensorAddress(binding.name.c_str(), address)) {
    TORCHTRT_THROW_ERROR("TensorRT-RTX refused the memory of '" << binding.name << "' at " << address);
  }
}

void TRTEngine::bind_inputs(const std::vector<at::Tensor>& inputs) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!context_->setInputShape(inputs_[i].name.c_str(), to_dims(inputs[i].sizes()))) {
      TORCHTRT_THROW_ERROR(
          "TensorRT-RTX refused the shape " << inputs[i].sizes() << " of the input '" << inputs_[i].name << "'");
    }
    bind(inputs_[i], inputs[i]);
  }
}

std::vector<at::Tensor> TRTEngine::bind_outputs() {
  const int32_t unspecified = context_->inferShapes(0, nullptr);
  if (unspecified != 0) {
    TORCHTRT_THROW_ERROR("TensorRT-RTX could not infer the shapes of the outputs from those of the inputs");
  }
  std::vector<at::Tensor> outputs;
  for (const Binding& output : outputs_) {
    const std::vector<int64_t> shape = extents(context_->getTensorShape(output.name.c_str()));
    if (std::find(shape.begin(), shape.end(), -1) != shape.end()) {
      TORCHTRT_THROW_ERROR(
          "The shape of the output '" << output.name << "' depends on the inputs' values, which is not supported");
    }
    outputs.push_back(at::empty(shape, at::TensorOptions(output.dtype).device(output.device)));
    bind(output, outputs.back());
  }
  return outputs;
}

void TRTEngine::check_process() const {
  if (process_ != ::getpid()) {
    TORCHTRT_THROW_ERROR("Process " << process_ << " loaded this engine and forked this process; load it again here");
  }
}

bool TRTEngine::is_new_shape(const std::vector<at::Tensor>& inputs) {
  size_t hash = 0;
  for (const at::Tensor& input : inputs) {
    for (const int64_t extent : input.sizes()) {
      hash = c10::hash_combine(hash, static_cast<size_t>(extent));
    }
  }
  if (hash == last_shapes_) {
    return false;
  }
  last_shapes_ = hash;
  if (shapes_.contains(hash)) {
    return false;
  }
  if (shapes_.size() >= kMostShapes) {
    shapes_.clear();
  }
  shapes_.insert(hash);
  return true;
}

void TRTEngine::release_context() {
  stream_.synchronize();
  context_.reset();
  shapes_.clear();
  last_shapes_.reset();
}

} // namespace torch_tensorrt::core::runtime
