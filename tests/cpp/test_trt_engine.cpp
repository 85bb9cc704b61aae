#include "core/runtime/TRTEngine.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/zeros.h>

#include <chrono>
#include <cstdint>
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

using core::runtime::RuntimeCacheHandle;
using core::runtime::RuntimeSettings;
using core::runtime::TRTEngine;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
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

// sum = 2 * x + y, on tensors of two integers.
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

TEST_F(EngineTest, RefusesUndefinedTensors) {
  using Names = std::vector<std::string>;
  EXPECT_THAT([] { TRTEngine(at::Tensor(), Names{"x"}, Names{"y"}); }, ThrowsMessage<Error>(HasSubstr("undefined")));
  EXPECT_THAT(
      [] { make_engine(relu_plan({}))->execute({at::Tensor()}); },
      ThrowsMessage<Error>(HasSubstr("got an undefined one")));
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

TEST_F(EngineTest, WaitsForTheKernelThatCompiles) {
  const RuntimeSettings lazy{.runtime_cache = new_cache()};
  device_->set_compile_time(std::chrono::milliseconds(20));
  make_engine(dynamic_plan(), lazy)->execute({at::zeros({2, 3})});
  // When the engine ended, its thread may not have started on the second kernel.
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
        throw std::runtime_error("the caller's exception");
      },
      std::runtime_error);
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));

  const auto failing = [&] {
    const EnginePtr engine = engine_with({"b"}, c10::make_intrusive<RuntimeCacheHandle>(directory_.file("none/c")));
    run(*engine);
    throw std::runtime_error("the caller's exception");
  };
  EXPECT_THAT(warnings_of([&] { EXPECT_THROW(failing(), std::runtime_error); }), ElementsAre(HasSubstr("none/c")));
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

} // namespace
} // namespace torch_tensorrt::tests
