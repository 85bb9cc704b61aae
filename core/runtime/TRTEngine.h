#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <unordered_set>
#include <vector>

#include <ATen/core/Tensor.h>
#include <NvInferRuntime.h>
#include <c10/core/Device.h>
#include <torch/custom_class.h>

#include "core/runtime/EngineLoader.h"
#include "core/runtime/EngineStream.h"
#include "core/runtime/RuntimeSettings.h"
#include "core/runtime/TRTRuntimeConfig.h"

namespace torch_tensorrt::core::runtime {

// A TensorRT-RTX engine that runs on torch's tensors. In Python it is `torch.classes.tensorrt.Engine(plan, inputs,
// outputs)`, and `torch.ops.tensorrt.execute_engine` runs it.
//
// Its inputs and outputs ("bindings") are identified by their names in the plan. The lists of names set the order in
// which they are given and returned. The engine uses the plan's first optimization profile. Its execution context is
// made on first use.
//
// Errors: throws torch_tensorrt::Error, in Python a RuntimeError. Failures of its runtime cache are only logged, as
// warnings.
//
// A child of fork() can't use an engine of its parent: all methods that need TensorRT-RTX throw there, and the
// destructor destroys nothing that TensorRT-RTX made.
//
// Thread safety: all members may be called from any thread. One inference at a time is set up. Inferences on several
// streams run one after another, because they share the context's memory.
class TRTEngine : public torch::CustomClassHolder {
 public:
  // Plan (uint8 [size in bytes]), input names, output names, the two strategies' names, and the runtime cache.
  using State = std::tuple<
      at::Tensor,
      std::vector<std::string>,
      std::vector<std::string>,
      std::string,
      std::string,
      std::optional<c10::intrusive_ptr<RuntimeCacheHandle>>>;

  // Loads a serialized plan, a uint8 tensor [size in bytes] on the CPU, on the current CUDA device. Throws if that is
  // impossible, such as on a machine without a GPU, if the names are not exactly those in the plan, or if a torch
  // tensor can't be bound to one of the bindings.
  TRTEngine(
      const at::Tensor& plan,
      std::vector<std::string> input_names,
      std::vector<std::string> output_names,
      RuntimeSettings settings = {});

  // The same, for an engine that has already been loaded.
  TRTEngine(
      LoadedEngine engine,
      std::vector<std::string> input_names,
      std::vector<std::string> output_names,
      RuntimeSettings settings = {});

  // The same, with all bindings in the order of the plan.
  explicit TRTEngine(const LoadedEngine& engine, RuntimeSettings settings = {});

  explicit TRTEngine(const State& state);

  // Waits for its last inference, and detaches from its runtime cache as ~TRTRuntimeConfig() does.
  ~TRTEngine() override;

  std::vector<std::string> input_names() const;
  std::vector<std::string> output_names() const;

  RuntimeSettings runtime_settings() const;

  // Returns true if the settings differ from the previous ones. Then the next inference makes a new execution context.
  // If the runtime cache differs, the engine detaches from the previous one as the destructor does.
  bool set_runtime_settings(RuntimeSettings settings);

  // Returns inputs for a warm-up with execute(): tensors of ones, with the shapes that the optimization profile was
  // tuned for.
  std::vector<at::Tensor> example_inputs() const;

  // Enqueues one inference, in order with the current stream of the engine's device, and returns the outputs. They are
  // complete once that stream has reached this point. Throws if the number of inputs is wrong, or the dtype, device,
  // rank or shape of one of them. The error names the input and what it must be.
  std::vector<at::Tensor> execute(const std::vector<at::Tensor>& inputs);

  // Serializes the engine each time, so that no engine has to keep its plan in memory.
  State state() const;

 private:
  struct Binding {
    std::string name;
    at::ScalarType dtype;
    c10::Device device;        // the CPU if TensorRT-RTX uses the tensor in host memory
    std::vector<int64_t> dims; // -1 where dynamic
    // The shapes that an input may have. All three equal `dims` if that is static.
    std::vector<int64_t> min = {};
    std::vector<int64_t> opt = {};
    std::vector<int64_t> max = {};
  };

  Binding describe(const std::string& name, nvinfer1::TensorIOMode mode) const;
  std::vector<Binding> describe_all(const std::vector<std::string>& names, nvinfer1::TensorIOMode mode) const;
  static at::Tensor checked(const at::Tensor& input, const Binding& binding);
  void bind(const Binding& binding, const at::Tensor& tensor);
  void bind_inputs(const std::vector<at::Tensor>& inputs);
  std::vector<at::Tensor> bind_outputs();
  void check_process() const;
  bool is_new_shape(const std::vector<at::Tensor>& inputs);
  void release_context();

  const pid_t process_;
  const LoadedEngine loaded_;
  const std::vector<Binding> inputs_;
  const std::vector<Binding> outputs_;
  const bool has_dynamic_inputs_;
  TRTRuntimeConfig config_;

  std::mutex mutex_; // guards the rest
  std::shared_ptr<nvinfer1::IExecutionContext> context_;
  std::optional<size_t> last_shapes_ = {}; // hash of the input shapes of the last inference
  std::unordered_set<size_t> shapes_ = {}; // hashes of the input shapes that the context has run with
  EngineStream stream_;
};

} // namespace torch_tensorrt::core::runtime
