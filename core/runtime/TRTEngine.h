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

// A TensorRT-RTX engine that runs on torch's tensors; in Python `torch.classes.tensorrt.Engine(plan, inputs, outputs)`,
// run by `torch.ops.tensorrt.execute_engine`.
//
// Its inputs and outputs ("bindings") are known by their names in the plan; the lists of names say in which order they
// are given and returned. It uses the plan's first optimization profile. Its execution context is made on first use.
//
// Errors: torch_tensorrt::Error, in Python a RuntimeError. About its runtime cache there are warnings alone.
//
// A child of fork() can't use an engine of its parent: all that needs TensorRT-RTX throws there, and the destructor
// destroys nothing that TensorRT-RTX made.
//
// Thread safety: all members, from any thread, one inference being set up at a time. Inferences on several streams run
// one after another, since they share the context's memory.
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
  // impossible, such as on a machine without a GPU, if the names are not exactly those of the plan, or if a binding is
  // of a kind that torch's tensors can't be bound to.
  TRTEngine(
      const at::Tensor& plan,
      std::vector<std::string> input_names,
      std::vector<std::string> output_names,
      RuntimeSettings settings = {});

  // The same for an engine that has been loaded.
  TRTEngine(
      LoadedEngine engine,
      std::vector<std::string> input_names,
      std::vector<std::string> output_names,
      RuntimeSettings settings = {});

  // The same with all bindings in the plan's own order.
  explicit TRTEngine(const LoadedEngine& engine, RuntimeSettings settings = {});

  explicit TRTEngine(const State& state);

  // Waits for its last inference, and detaches from its runtime cache as ~TRTRuntimeConfig() does.
  ~TRTEngine() override;

  std::vector<std::string> input_names() const;
  std::vector<std::string> output_names() const;

  RuntimeSettings runtime_settings() const;

  // True if these are other settings than before: then the next inference makes a new execution context, and if another
  // runtime cache is among them, the one before it is saved.
  bool set_runtime_settings(RuntimeSettings settings);

  // Inputs that execute() takes, all ones, of the shapes that the optimization profile was tuned for: to warm up with.
  std::vector<at::Tensor> example_inputs() const;

  // Enqueues one inference, in order with the current stream of the engine's device, and returns the outputs, which are
  // filled when that stream gets there. Throws, naming the binding and what it wants, for an input of another number,
  // dtype, device, rank or shape.
  std::vector<at::Tensor> execute(const std::vector<at::Tensor>& inputs);

  // Serializes the engine anew, so that no engine has to keep its plan in memory.
  State state() const;

 private:
  struct Binding {
    std::string name;
    at::ScalarType dtype;
    c10::Device device;        // host memory for what TensorRT-RTX reads or writes there
    std::vector<int64_t> dims; // -1 where dynamic
    // What an input may have; all of them dims where that is static.
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
  std::optional<size_t> last_shapes_ = {}; // hash of the last inference's
  std::unordered_set<size_t> shapes_ = {}; // hashes of those that the context has run
  EngineStream stream_;
};

} // namespace torch_tensorrt::core::runtime
