#include "tests/util/simulation/SimulatedExecutionContext.h"

#include <algorithm>
#include <utility>

namespace torch_tensorrt::tests {
namespace {

int64_t element_count(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (const int64_t extent : shape) {
    count *= extent;
  }
  return count;
}

// The only shape that the plan allows, or nullopt if it allows several.
std::optional<std::vector<int64_t>> only_shape(const SimulatedTensor& input) {
  if (input.min.empty()) {
    return input.dims;
  }
  return input.min == input.max ? std::optional(input.min) : std::nullopt;
}

// Returns an empty string if the plan accepts that shape, or else what the plan requires.
std::string reason_against(const SimulatedTensor& input, const nvinfer1::Dims& dims) {
  if (dims.nbDims != static_cast<int32_t>(input.dims.size())) {
    return input.name + " has rank " + std::to_string(input.dims.size());
  }
  for (size_t i = 0; i < input.dims.size(); ++i) {
    const int64_t least = input.min.empty() ? input.dims[i] : input.min[i];
    const int64_t most = input.max.empty() ? input.dims[i] : input.max[i];
    if (dims.d[i] < least || dims.d[i] > most) {
      return "dimension " + std::to_string(i) + " of " + input.name + " has " + std::to_string(least) + " to " +
          std::to_string(most) + " elements";
    }
  }
  return "";
}

template <class Entries>
auto find_entry(Entries& entries, const char* name) -> decltype(entries.data()) {
  for (auto& entry : entries) {
    if (entry.tensor->name == name) {
      return &entry;
    }
  }
  return nullptr;
}

} // namespace

SimulatedExecutionContext::SimulatedExecutionContext(
    Simulation simulation,
    SimulatedEngine& engine,
    nvinfer1::IRuntimeConfig* config,
    const SimulatedRuntimeConfig& settings)
    : simulation_(std::move(simulation)),
      engine_(engine),
      config_(config),
      specialization_(settings.getDynamicShapesKernelSpecializationStrategy()),
      compiler_(simulation_.device, settings.store()) {
  mImpl = this;
  for (const SimulatedTensor& input : engine_.plan().inputs) {
    inputs_.push_back({.tensor = &input, .shape = only_shape(input)});
  }
  for (const SimulatedTensor& output : engine_.plan().outputs) {
    outputs_.push_back({.tensor = &output});
  }
  engine_.add_context();
  for (const SimulatedKernel& kernel : engine_.plan().kernels) {
    if (!kernel.per_shape) {
      compiler_.compile(kernel);
    }
  }
}

SimulatedExecutionContext::~SimulatedExecutionContext() noexcept {
  simulation_.check_process();
  engine_.remove_context();
}

nvinfer1::IExecutionContext* SimulatedExecutionContext::getPImpl() noexcept {
  return this;
}

const nvinfer1::ICudaEngine& SimulatedExecutionContext::getEngine() const noexcept {
  return engine_;
}

nvinfer1::IRuntimeConfig* SimulatedExecutionContext::getRuntimeConfig() const noexcept {
  return config_;
}

void SimulatedExecutionContext::setName(const char* name) noexcept {
  name_ = name;
}

const char* SimulatedExecutionContext::getName() const noexcept {
  return name_.c_str();
}

int32_t SimulatedExecutionContext::getOptimizationProfile() const noexcept {
  return 0;
}

bool SimulatedExecutionContext::setOptimizationProfileAsync(int32_t profile, cudaStream_t) noexcept {
  return !fails("IExecutionContext::setOptimizationProfileAsync", profile == 0 ? "" : "the engine has one profile");
}

void SimulatedExecutionContext::setDeviceMemoryV2(void*, int64_t) noexcept {}

size_t SimulatedExecutionContext::updateDeviceMemorySizeForShapes() noexcept {
  return 0;
}

SimulatedExecutionContext::Input* SimulatedExecutionContext::find_input(const char* name) {
  return find_entry(inputs_, name);
}

SimulatedExecutionContext::Output* SimulatedExecutionContext::find_output(const char* name) {
  return find_entry(outputs_, name);
}

const SimulatedExecutionContext::Output* SimulatedExecutionContext::find_output(const char* name) const {
  return find_entry(outputs_, name);
}

// Counts the call. Returns true, and logs why, if it fails: on request, or because `reason` is not empty.
bool SimulatedExecutionContext::fails(const char* call, const std::string& reason) const {
  const bool on_request = simulation_.device->fails(call);
  if (on_request || !reason.empty()) {
    simulation_.error(std::string(call) + " fails" + (on_request ? " on request" : ": " + reason));
  }
  return on_request || !reason.empty();
}

bool SimulatedExecutionContext::setInputShape(const char* name, const nvinfer1::Dims& dims) noexcept {
  Input* input = find_input(name);
  const std::string reason =
      input == nullptr ? std::string(name) + " is not an input" : reason_against(*input->tensor, dims);
  if (fails("IExecutionContext::setInputShape", reason)) {
    return false;
  }
  input->shape.emplace(dims.d, dims.d + dims.nbDims);
  return true;
}

nvinfer1::Dims SimulatedExecutionContext::getTensorShape(const char* name) const noexcept {
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const bool is_its_output = i < outputs_.size() && outputs_[i].tensor->name == name;
    if (inputs_[i].tensor->name == name || is_its_output) {
      return to_dims(inputs_[i].shape.value_or(inputs_[i].tensor->dims));
    }
  }
  return invalid_dims();
}

bool SimulatedExecutionContext::allInputDimensionsSpecified() const noexcept {
  return std::all_of(inputs_.begin(), inputs_.end(), [](const Input& input) { return input.shape.has_value(); });
}

int32_t SimulatedExecutionContext::inferShapes(int32_t max_names, const char** names) noexcept {
  const bool invalid = max_names < 0 || (names == nullptr && max_names != 0);
  if (fails("IExecutionContext::inferShapes", invalid ? "there is no room for names" : "")) {
    return -1;
  }
  int32_t unspecified = 0;
  for (const Input& input : inputs_) {
    if (!input.shape.has_value()) {
      if (unspecified < max_names) {
        names[unspecified] = input.tensor->name.c_str();
      }
      ++unspecified;
    }
  }
  return unspecified;
}

bool SimulatedExecutionContext::setTensorAddress(const char* name, void* data) noexcept {
  return find_input(name) != nullptr ? setInputTensorAddress(name, data) : setOutputTensorAddress(name, data);
}

bool SimulatedExecutionContext::setInputTensorAddress(const char* name, const void* data) noexcept {
  Input* input = find_input(name);
  if (fails("IExecutionContext::setTensorAddress", input == nullptr ? std::string(name) + " is not an input" : "")) {
    return false;
  }
  input->address = data;
  return true;
}

bool SimulatedExecutionContext::setOutputTensorAddress(const char* name, void* data) noexcept {
  Output* output = find_output(name);
  if (fails("IExecutionContext::setTensorAddress", output == nullptr ? std::string(name) + " is not an output" : "")) {
    return false;
  }
  output->address = data;
  return true;
}

const void* SimulatedExecutionContext::getTensorAddress(const char* name) const noexcept {
  const auto* input = find_entry(inputs_, name);
  return input != nullptr ? input->address : getOutputTensorAddress(name);
}

void* SimulatedExecutionContext::getOutputTensorAddress(const char* name) const noexcept {
  const Output* output = find_output(name);
  return output == nullptr ? nullptr : output->address;
}

bool SimulatedExecutionContext::isStreamCapturable(cudaStream_t) const noexcept {
  return !fails("IExecutionContext::isStreamCapturable", "");
}

std::string SimulatedExecutionContext::shape_key() const {
  std::string key;
  for (const Input& input : inputs_) {
    key += '@';
    for (const int64_t extent : *input.shape) {
      key += std::to_string(extent) + ',';
    }
  }
  return key;
}

void SimulatedExecutionContext::specialize_kernels() {
  using nvinfer1::DynamicShapesKernelSpecializationStrategy;
  const std::string key = shape_key();
  if (specialization_ == DynamicShapesKernelSpecializationStrategy::kNONE || !seen_shapes_.insert(key).second) {
    return;
  }
  std::vector<SimulatedKernel> kernels;
  for (const SimulatedKernel& kernel : engine_.plan().kernels) {
    if (kernel.per_shape) {
      kernels.push_back({kernel.name + key, kernel.size});
    }
  }
  if (specialization_ == DynamicShapesKernelSpecializationStrategy::kLAZY) {
    compiler_.compile_in_background(std::move(kernels));
    return;
  }
  for (const SimulatedKernel& kernel : kernels) {
    compiler_.compile(kernel);
  }
}

template <class T>
void SimulatedExecutionContext::compute(size_t output) const {
  const SimulatedPlan& plan = engine_.plan();
  const T* in = static_cast<const T*>(inputs_[output].address);
  T* out = static_cast<T*>(outputs_[output].address);
  const int64_t count = element_count(*inputs_[output].shape);
  if (plan.operation == SimulatedOperation::kRelu) {
    std::transform(in, in + count, out, [](T x) { return std::max(x, T{0}); });
    return;
  }
  const T* addend = static_cast<const T*>(inputs_[1].address);
  const T scale = static_cast<T>(plan.scale);
  std::transform(in, in + count, addend, out, [scale](T x, T y) { return static_cast<T>(scale * x + y); });
}

bool SimulatedExecutionContext::enqueueV3(cudaStream_t) noexcept {
  simulation_.check_process();
  std::string reason;
  for (const Input& input : inputs_) {
    if (!input.shape.has_value() || input.address == nullptr) {
      reason = input.tensor->name + " has no shape or no address";
    }
  }
  for (const Output& output : outputs_) {
    if (output.address == nullptr) {
      reason = output.tensor->name + " has no address";
    }
  }
  // kScaleAdd's inputs may be dynamic, each within its own profile.
  if (reason.empty() && engine_.plan().operation == SimulatedOperation::kScaleAdd &&
      inputs_[0].shape != inputs_[1].shape) {
    reason = "the inputs have different shapes";
  }
  if (fails("IExecutionContext::enqueueV3", reason)) {
    return false;
  }
  specialize_kernels();
  for (size_t i = 0; i < outputs_.size(); ++i) {
    switch (outputs_[i].tensor->type) {
      case nvinfer1::DataType::kINT32:
        compute<int32_t>(i);
        break;
      case nvinfer1::DataType::kINT64:
        compute<int64_t>(i);
        break;
      default: // plans have no other types
        compute<float>(i);
    }
  }
  return true;
}

} // namespace torch_tensorrt::tests
