#include "core/runtime/TRTEngine.h"

#include <ATen/core/ivalue.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/custom_class.h>
#include <torch/library.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/util/Exception.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_testing.h"

namespace torch_tensorrt::tests {
namespace {

using core::runtime::CudaGraphStrategy;
using core::runtime::DynamicShapesKernelSpecializationStrategy;
using core::runtime::RuntimeCacheHandle;
using core::runtime::RuntimeSettings;
using core::runtime::TRTEngine;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::ThrowsMessage;

using EnginePtr = c10::intrusive_ptr<TRTEngine>;

at::Tensor tensor_of(const std::string& bytes) {
  const at::Tensor tensor = at::empty({static_cast<int64_t>(bytes.size())}, at::kByte);
  bytes.copy(static_cast<char*>(tensor.mutable_data_ptr()), bytes.size());
  return tensor;
}

at::Tensor plan_of(const SimulatedPlan& plan) {
  return tensor_of(make_plan(plan));
}

EnginePtr make_engine(const SimulatedPlan& plan, RuntimeSettings settings = {}) {
  std::vector<std::string> inputs;
  std::vector<std::string> outputs;
  for (const SimulatedTensor& input : plan.inputs) {
    inputs.push_back(input.name);
  }
  for (const SimulatedTensor& output : plan.outputs) {
    outputs.push_back(output.name);
  }
  return c10::make_intrusive<TRTEngine>(plan_of(plan), inputs, outputs, std::move(settings));
}

// Batches of 0 to 8 rows of 3.
SimulatedPlan dynamic_plan() {
  SimulatedPlan plan = relu_plan({{"base", 100}, {"rows", 50, true}}, {-1, 3});
  plan.inputs[0].min = {0, 3};
  plan.inputs[0].opt = {4, 3};
  plan.inputs[0].max = {8, 3};
  return plan;
}

// sum = 2 * x + y, on two integers.
SimulatedPlan scale_add_plan() {
  SimulatedPlan plan;
  plan.operation = SimulatedOperation::kScaleAdd;
  plan.scale = 2;
  plan.inputs = {
      {.name = "x", .type = nvinfer1::DataType::kINT32, .dims = {2}},
      {.name = "y", .type = nvinfer1::DataType::kINT32, .dims = {2}}};
  plan.outputs = {{.name = "sum", .type = nvinfer1::DataType::kINT32, .dims = {2}}};
  return plan;
}

class EngineTest : public RuntimeTest {
 protected:
  EnginePtr engine_with(const KernelNames& names, const CachePtr& cache) const {
    return make_engine(relu_plan(kernels(names)), {.runtime_cache = cache});
  }

  static void run(TRTEngine& engine) {
    const at::Tensor x = at::randn({4});
    EXPECT_TRUE(at::equal(engine.execute({x}).at(0), at::relu(x)));
  }
};

TEST_F(EngineTest, RunsWithStaticShapes) {
  const EnginePtr engine = make_engine(relu_plan({}, {2, 3}));
  EXPECT_THAT(engine->input_names(), ElementsAre("x"));
  EXPECT_THAT(engine->output_names(), ElementsAre("y"));
  for (int i = 0; i < 3; ++i) {
    const at::Tensor x = at::randn({2, 3});
    const std::vector<at::Tensor> outputs = engine->execute({x});
    ASSERT_EQ(outputs.size(), 1U);
    EXPECT_TRUE(at::equal(outputs[0], at::relu(x)));
  }
  EXPECT_EQ(device_->calls("ICudaEngine::createExecutionContext"), 1U);
}

TEST_F(EngineTest, RunsWithDynamicShapes) {
  const EnginePtr engine = make_engine(dynamic_plan());
  for (const int64_t rows : {1, 8, 4, 0, 8}) {
    const at::Tensor x = at::randn({rows, 3});
    EXPECT_TRUE(at::equal(engine->execute({x}).at(0), at::relu(x))) << rows;
  }
}

TEST_F(EngineTest, RunsOnStridedTensors) {
  const EnginePtr engine = make_engine(relu_plan({}, {2, 3}));
  const at::Tensor x = at::randn({3, 2}).t();
  ASSERT_FALSE(x.is_contiguous());
  EXPECT_TRUE(at::equal(engine->execute({x}).at(0), at::relu(x)));
}

TEST_F(EngineTest, MakesItsOwnExampleInputs) {
  TRTEngine engine(load_simulated(dynamic_plan()));
  const std::vector<at::Tensor> inputs = engine.example_inputs();
  ASSERT_EQ(inputs.size(), 1U);
  EXPECT_EQ(inputs[0].sizes(), at::IntArrayRef({4, 3}));
  EXPECT_TRUE(at::equal(engine.execute(inputs).at(0), inputs[0]));
}

TEST_F(EngineTest, OutputsAreNewTensors) {
  const EnginePtr engine = make_engine(relu_plan({}));
  const at::Tensor x = at::full({4}, 2.0F);
  const at::Tensor first = engine->execute({x}).at(0);
  engine->execute({at::full({4}, 3.0F)});
  EXPECT_TRUE(at::equal(first, x));
}

TEST_F(EngineTest, TakesInputsInTheOrderOfTheNames) {
  const at::Tensor plan = plan_of(scale_add_plan());
  const at::Tensor x = at::full({2}, 10, at::kInt);
  const at::Tensor y = at::full({2}, 1, at::kInt);
  using Names = std::vector<std::string>;
  TRTEngine straight(plan, Names{"x", "y"}, Names{"sum"});
  EXPECT_TRUE(at::equal(straight.execute({x, y}).at(0), at::full({2}, 21, at::kInt)));
  TRTEngine swapped(plan, Names{"y", "x"}, Names{"sum"});
  EXPECT_TRUE(at::equal(swapped.execute({x, y}).at(0), at::full({2}, 12, at::kInt)));
}

TEST_F(EngineTest, WantsTheNamesOfThePlan) {
  const at::Tensor plan = plan_of(scale_add_plan());
  using Names = std::vector<std::string>;
  for (const Names& inputs : {Names{}, Names{"x"}, Names{"x", "x"}, Names{"x", "sum"}, Names{"x", "y", "z"}}) {
    EXPECT_THAT(
        [&] { TRTEngine(plan, inputs, Names{"sum"}); }, ThrowsMessage<Error>(HasSubstr("inputs are 'x', 'y', got")));
  }
  EXPECT_THAT(
      [&] { TRTEngine(plan, Names{"x", "y"}, Names{"y"}); },
      ThrowsMessage<Error>(HasSubstr("outputs are 'sum', got 'y'")));
}

TEST_F(EngineTest, WantsAPlan) {
  using Names = std::vector<std::string>;
  const auto construct = [](const at::Tensor& plan) { TRTEngine(plan, Names{"x"}, Names{"y"}); };
  EXPECT_THAT([&] { construct(tensor_of("garbage")); }, ThrowsMessage<Error>(HasSubstr("7 bytes")));
  EXPECT_THAT([&] { construct(at::zeros({7})); }, ThrowsMessage<Error>(HasSubstr("uint8")));
  EXPECT_THAT([&] { construct(at::Tensor()); }, ThrowsMessage<Error>(HasSubstr("undefined")));
}

TEST(EngineWithoutSimulationTest, SaysInOneErrorWhatItLacks) {
  const bool has_gpu = c10::impl::hasDeviceGuardImpl(c10::DeviceType::CUDA) &&
      c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).deviceCount() > 0;
  EXPECT_THAT(
      [] { make_engine(relu_plan({})); },
      ThrowsMessage<Error>(HasSubstr(has_gpu ? "could not load a plan" : "needs an NVIDIA GPU")));
}

TEST_F(EngineTest, WrongInputsAreErrorsThatNameTheBinding) {
  const EnginePtr engine = make_engine(dynamic_plan());
  const auto refuses = [&](const at::Tensor& input, const std::string& got) {
    EXPECT_THAT(
        [&] { engine->execute({input}); },
        ThrowsMessage<Error>(AllOf(HasSubstr("'x' wants a dense Float tensor [0 to 8, 3] on cpu"), HasSubstr(got))));
  };
  refuses(at::zeros({2, 3}, at::kDouble), "got Double");
  refuses(at::zeros({2, 3}, at::TensorOptions().device(at::kMeta)), "got meta");
  refuses(at::zeros({2, 3}).to_sparse(), "got Sparse");
  refuses(at::Tensor(), "got an undefined one");
  refuses(at::zeros({3}), "got [3]");
  refuses(at::zeros({2, 3, 1}), "got [2, 3, 1]");
  refuses(at::zeros({2, 4}), "got [2, 4]");
  refuses(at::zeros({9, 3}), "got [9, 3]");
  const at::Tensor x = at::zeros({2, 3});
  for (const std::vector<at::Tensor>& inputs : {std::vector<at::Tensor>{}, std::vector<at::Tensor>{x, x}}) {
    EXPECT_THAT(
        [&] { engine->execute(inputs); },
        ThrowsMessage<Error>(HasSubstr("1 inputs ('x'), got " + std::to_string(inputs.size()))));
  }
  EXPECT_TRUE(at::equal(engine->execute({x}).at(0), x));
}

TEST_F(EngineTest, SurvivesEachFailureOfTensorRTRTX) {
  for (const char* call :
       {"ICudaEngine::createRuntimeConfig",
        "ICudaEngine::createExecutionContext",
        "IExecutionContext::setInputShape",
        "IExecutionContext::setTensorAddress",
        "IExecutionContext::inferShapes",
        "IExecutionContext::enqueueV3"}) {
    SCOPED_TRACE(call);
    const EnginePtr engine = make_engine(relu_plan({}));
    device_->fail(call, 1);
    EXPECT_THROW(run(*engine), Error);
    run(*engine);
  }
  device_->fail("ICudaEngine::serialize", 1);
  EXPECT_THROW(make_engine(relu_plan({}))->state(), Error);
  for (const char* call : {"createInferRuntime", "IRuntime::deserializeCudaEngine"}) {
    device_->fail(call, 1);
    EXPECT_THROW(make_engine(relu_plan({})), Error) << call;
  }
}

TEST_F(EngineTest, NothingAboutTheCacheMakesItFail) {
  save_as_other({"b"});
  for (const char* call :
       {"IRuntimeConfig::createRuntimeCache",
        "IRuntimeConfig::setRuntimeCache",
        "IRuntimeCache::serialize",
        "IRuntimeCache::deserialize"}) {
    SCOPED_TRACE(call);
    device_->fail(call);
    EXPECT_THAT(warnings_of([&] { run(*engine_with({"a"}, new_cache())); }), ElementsAre(HasSubstr(path_)));
    device_->fail(call, 0);
  }
}

TEST_F(EngineTest, TheSecondStartCompilesNothing) {
  run(*engine_with({"a", "b"}, new_cache()));
  EXPECT_EQ(device_->counters().compilations, 2U);
  device_->reset_counters();
  run(*engine_with({"a", "b"}, new_cache()));
  EXPECT_EQ(device_->counters().compilations, 0U);
  EXPECT_EQ(device_->counters().cache_hits, 2U);
}

TEST_F(EngineTest, EnginesShareACacheAndItsFile) {
  const CachePtr cache = new_cache();
  {
    const EnginePtr first = engine_with({"a", "b"}, cache);
    const EnginePtr second = engine_with({"b", "c"}, cache);
    run(*first);
    run(*second);
    EXPECT_EQ(device_->counters().compilations, 3U);
  }
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b", "c"));
}

TEST_F(EngineTest, SavesAtItsEnd) {
  EXPECT_THAT(warnings_of([&] { run(*engine_with({"a"}, new_cache())); }), IsEmpty());
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
}

TEST_F(EngineTest, WaitsForTheKernelThatCompiles) {
  const RuntimeSettings lazy{.runtime_cache = new_cache()};
  device_->set_compile_time(std::chrono::milliseconds(20));
  make_engine(dynamic_plan(), lazy)->execute({at::zeros({2, 3})});
  // Its thread may not have begun with the second one when the engine ended.
  EXPECT_THAT(kernels_on_disk(), ::testing::Contains("base"));
  device_->set_compile_time(std::chrono::milliseconds(0));
  {
    const EnginePtr engine = make_engine(dynamic_plan(), {.runtime_cache = new_cache()});
    engine->execute({at::zeros({2, 3})});
    device_->wait_for_background_compilation();
  }
  EXPECT_EQ(kernels_on_disk().size(), 2U);
}

TEST_F(EngineTest, SavesWhileTheStackUnwinds) {
  EXPECT_THROW(
      {
        const EnginePtr engine = engine_with({"a"}, new_cache());
        run(*engine);
        throw std::runtime_error("the caller's");
      },
      std::runtime_error);
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));

  const auto failing = [&] {
    const EnginePtr engine = engine_with({"b"}, c10::make_intrusive<RuntimeCacheHandle>(directory_.file("none/c")));
    run(*engine);
    throw std::runtime_error("the caller's");
  };
  EXPECT_THAT(warnings_of([&] { EXPECT_THROW(failing(), std::runtime_error); }), ElementsAre(HasSubstr("none/c")));
}

TEST_F(EngineTest, ACacheOfAnotherVersionCostsAWarningAndAColdStart) {
  run(*engine_with({"a"}, new_cache()));
  device_->set_environment({.tensorrt_rtx_version = "1.7.1.116"});
  device_->reset_counters();
  EXPECT_THAT(
      warnings_of([&] { run(*engine_with({"a"}, new_cache())); }),
      ElementsAre(AllOf(HasSubstr(path_), HasSubstr("another TensorRT-RTX version"))));
  EXPECT_EQ(device_->counters().compilations, 1U);
  device_->reset_counters();
  EXPECT_THAT(warnings_of([&] { run(*engine_with({"a"}, new_cache())); }), IsEmpty());
  EXPECT_EQ(device_->counters().compilations, 0U);
}

TEST_F(EngineTest, NewSettingsMakeANewContext) {
  const EnginePtr engine = engine_with({"a"}, new_cache());
  EXPECT_FALSE(engine->set_runtime_settings(engine->runtime_settings()));
  run(*engine);
  const CachePtr other = c10::make_intrusive<RuntimeCacheHandle>(directory_.file("other.bin"));
  EXPECT_TRUE(engine->set_runtime_settings({.runtime_cache = other}));
  EXPECT_EQ(engine->runtime_settings().runtime_cache, other);
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
  run(*engine);
  EXPECT_EQ(device_->calls("ICudaEngine::createExecutionContext"), 2U);
  EXPECT_THAT(kernels_in(other->serialize()), ElementsAre("a"));
}

TEST_F(EngineTest, RunsInSeveralThreads) {
  const EnginePtr engine = make_engine(dynamic_plan(), {.runtime_cache = new_cache()});
  std::vector<std::thread> threads;
  for (int64_t rows = 1; rows <= 4; ++rows) {
    threads.emplace_back([&, rows] {
      for (int i = 0; i < 50; ++i) {
        const at::Tensor x = at::randn({rows, 3});
        EXPECT_TRUE(at::equal(engine->execute({x}).at(0), at::relu(x)));
      }
    });
  }
  threads.emplace_back([&] {
    for (int i = 0; i < 10; ++i) {
      RuntimeSettings settings = engine->runtime_settings();
      settings.runtime_cache = i % 2 == 0 ? nullptr : new_cache();
      EXPECT_TRUE(engine->set_runtime_settings(settings));
      EXPECT_EQ(engine->input_names().size(), 1U);
    }
  });
  for (std::thread& thread : threads) {
    thread.join();
  }
}

TEST_F(EngineTest, ItsStateMakesAnotherEngine) {
  const EnginePtr engine = make_engine(
      relu_plan(kernels({"a"})),
      {.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy::kNONE,
       .cuda_graph_strategy = CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE,
       .runtime_cache = new_cache()});
  TRTEngine copy(engine->state());
  run(copy);
  RuntimeSettings settings = copy.runtime_settings();
  EXPECT_EQ(settings.runtime_cache, engine->runtime_settings().runtime_cache);
  EXPECT_EQ(settings, engine->runtime_settings());

  TRTEngine::State unknown = engine->state();
  std::get<3>(unknown) = 3;
  EXPECT_THAT([&] { TRTEngine{unknown}; }, ThrowsMessage<Error>(HasSubstr("lazy (0), eager (1) or none (2)")));
}

// The class as Python sees it.
class EngineInTorchTest : public EngineTest {
 protected:
  static c10::IValue call(const EnginePtr& engine, const std::string& method, std::vector<c10::IValue> arguments = {}) {
    arguments.insert(arguments.begin(), engine);
    const auto type = torch::getCustomClass("__torch__.torch.classes.tensorrt.Engine");
    type->getMethod(method).run(arguments);
    return arguments.at(0);
  }
};

TEST_F(EngineInTorchTest, IsRunByItsOp) {
  const EnginePtr engine = make_engine(relu_plan({}));
  torch::jit::Stack stack{c10::List<at::Tensor>({at::full({4}, -1.0F)}), engine};
  c10::Dispatcher::singleton().findSchemaOrThrow("tensorrt::execute_engine", "").callBoxed(stack);
  ASSERT_EQ(stack.size(), 1U);
  EXPECT_TRUE(at::equal(stack[0].toTensorVector().at(0), at::zeros({4})));
}

TEST_F(EngineInTorchTest, TakesSettingsByNameAndByNumber) {
  const EnginePtr engine = make_engine(relu_plan({}));
  const CachePtr cache = new_cache();
  EXPECT_TRUE(call(engine, "set_runtime_settings", {"eager", 1, cache}).toBool());
  EXPECT_FALSE(call(engine, "set_runtime_settings", {1, "whole_graph_capture", cache}).toBool());
  EXPECT_EQ(engine->runtime_settings().runtime_cache, cache);
  const c10::IValue settings = call(engine, "runtime_settings");
  EXPECT_EQ(settings.toTupleRef().elements().at(0).toStringRef(), "eager");
  EXPECT_EQ(settings.toTupleRef().elements().at(1).toStringRef(), "whole_graph_capture");
  EXPECT_EQ(settings.toTupleRef().elements().at(2).toCustomClass<RuntimeCacheHandle>(), cache);
  EXPECT_TRUE(call(engine, "set_runtime_settings", {0, 0, c10::IValue()}).toBool());
  EXPECT_TRUE(call(engine, "runtime_settings").toTupleRef().elements().at(2).isNone());
  EXPECT_THAT(
      [&] { call(engine, "set_runtime_settings", {1.5, 0, c10::IValue()}); },
      ThrowsMessage<Error>(HasSubstr("a string or an integer, got a Double")));
}

TEST_F(EngineInTorchTest, IsPickled) {
  const EnginePtr engine = engine_with({"a"}, new_cache());
  const c10::IValue state = call(engine, "__getstate__");
  const auto copy = c10::make_intrusive<TRTEngine>(engine->state());
  call(copy, "__setstate__", {state});
  run(*copy);
}

} // namespace
} // namespace torch_tensorrt::tests
