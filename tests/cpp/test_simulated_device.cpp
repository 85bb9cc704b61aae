// Tests of the simulated device itself. The end-to-end tests depend on it, so its headers' promises are tested here.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/util/prelude.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/util/processes/run_program.h"
#include "tests/util/simulation/SimulatedDevice.h"
#include "tests/util/simulation/SimulatedPlan.h"
#include "tests/util/simulation/SimulatedRuntime.h"
#include "tests/util/simulation/byte_stream.h"
#include "tests/util/temporary_directory.h"

namespace torch_tensorrt::tests {
namespace {

using nvinfer1::Dims;
using nvinfer1::DynamicShapesKernelSpecializationStrategy;
using nvinfer1::ICudaEngine;
using nvinfer1::IExecutionContext;
using nvinfer1::IRuntime;
using nvinfer1::IRuntimeCache;
using nvinfer1::IRuntimeConfig;
using std::chrono::milliseconds;
using testing::HasSubstr;

class RecordingLogger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, const char* message) noexcept override {
    const std::lock_guard guard(mutex_);
    if (severity == Severity::kERROR) {
      text_ += std::string(message) + "\n";
    }
  }

  std::string take() {
    const std::lock_guard guard(mutex_);
    return std::exchange(text_, {});
  }

 private:
  std::mutex mutex_;
  std::string text_;
};

// One runtime, engine and config, destroyed in the order that TensorRT-RTX requires.
struct Loaded {
  std::unique_ptr<IRuntime> runtime;
  std::unique_ptr<ICudaEngine> engine;
  std::unique_ptr<IRuntimeConfig> config;

  std::unique_ptr<IRuntimeCache> new_cache() const {
    return std::unique_ptr<IRuntimeCache>(config->createRuntimeCache());
  }

  std::unique_ptr<IExecutionContext> new_context() const {
    return std::unique_ptr<IExecutionContext>(engine->createExecutionContext(config.get()));
  }
};

Loaded load(std::shared_ptr<SimulatedDevice> device, const SimulatedPlan& plan, nvinfer1::ILogger* logger = nullptr) {
  const std::string bytes = make_plan(plan);
  Loaded loaded;
  loaded.runtime.reset(create_infer_runtime(std::move(device), logger));
  loaded.engine.reset(loaded.runtime->deserializeCudaEngine(bytes.data(), bytes.size()));
  loaded.config.reset(loaded.engine->createRuntimeConfig());
  return loaded;
}

std::string serialized(const IRuntimeCache& cache) {
  const std::unique_ptr<nvinfer1::IHostMemory> memory(cache.serialize());
  return {static_cast<const char*>(memory->data()), memory->size()};
}

bool feed(IRuntimeCache& cache, const std::string& blob) {
  return cache.deserialize(blob.data(), blob.size());
}

// Returns the blob of a cache in which `kernels` were compiled.
std::string blob_with(const std::shared_ptr<SimulatedDevice>& device, const std::vector<SimulatedKernel>& kernels) {
  const Loaded loaded = load(device, relu_plan(kernels));
  const auto cache = loaded.new_cache();
  EXPECT_TRUE(loaded.config->setRuntimeCache(*cache));
  const auto context = loaded.new_context();
  return serialized(*cache);
}

Dims dims_of(std::initializer_list<int64_t> extents) {
  Dims dims{};
  dims.nbDims = static_cast<int32_t>(extents.size());
  std::copy(extents.begin(), extents.end(), dims.d);
  return dims;
}

std::vector<int64_t> extents_of(const Dims& dims) {
  return {dims.d, dims.d + std::max(dims.nbDims, 0)};
}

// Batches of 1 to 8 rows of 3, with one kernel for all shapes and one for each shape.
SimulatedPlan dynamic_plan() {
  SimulatedPlan plan = relu_plan({{"base", 100}, {"rows", 50, true}}, {-1, 3});
  plan.inputs[0].min = {1, 3};
  plan.inputs[0].opt = {4, 3};
  plan.inputs[0].max = {8, 3};
  return plan;
}

// Runs relu on `rows` rows of 3. The context must belong to dynamic_plan()'s engine.
void infer_rows(IExecutionContext& context, int64_t rows) {
  std::vector<float> x(static_cast<size_t>(rows) * 3);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = i % 2 == 0 ? static_cast<float>(i) : -static_cast<float>(i);
  }
  std::vector<float> y(x.size(), 7.0F);
  ASSERT_TRUE(context.setInputShape("x", dims_of({rows, 3})));
  ASSERT_TRUE(context.setTensorAddress("x", x.data()));
  ASSERT_TRUE(context.setTensorAddress("y", y.data()));
  ASSERT_TRUE(context.enqueueV3(nullptr));
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(y[i], i % 2 == 0 ? x[i] : 0.0F) << i;
  }
}

TEST(SimulatedPlanTest, RoundTrips) {
  SimulatedPlan plan = dynamic_plan();
  plan.name = "a name";
  plan.scale = 2.5F;
  const std::string bytes = make_plan(plan);
  const SimulatedPlan parsed = parse_plan(bytes);
  EXPECT_EQ(parsed.name, "a name");
  EXPECT_EQ(parsed.inputs[0].max, (std::vector<int64_t>{8, 3}));
  EXPECT_TRUE(parsed.kernels[1].per_shape);
  EXPECT_EQ(make_plan(parsed), bytes);
}

TEST(SimulatedPlanTest, TruncatedPlansAreRefused) {
  const std::string bytes = make_plan(dynamic_plan());
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THROW(parse_plan(bytes.substr(0, size)), Error) << size;
  }
  EXPECT_THROW(parse_plan(bytes + "x"), Error);
}

TEST(SimulatedPlanTest, InconsistentPlansAreRefused) {
  const std::vector<std::function<void(SimulatedPlan&)>> faults = {
      [](SimulatedPlan& plan) { plan.inputs[0].name = ""; },
      [](SimulatedPlan& plan) { plan.outputs[0].name = "x"; },
      [](SimulatedPlan& plan) { plan.inputs[0].type = nvinfer1::DataType::kHALF; },
      [](SimulatedPlan& plan) { plan.inputs[0].dims = {-2, 3}; },
      [](SimulatedPlan& plan) { plan.inputs[0].dims.assign(9, 1); },
      [](SimulatedPlan& plan) { plan.inputs[0].min = {9, 3}; },
      [](SimulatedPlan& plan) { plan.inputs[0].max = {8, 4}; },
      [](SimulatedPlan& plan) { plan.inputs[0].opt.clear(); },
      [](SimulatedPlan& plan) { plan.outputs[0].dims = {-1, 4}; },
      [](SimulatedPlan& plan) { plan.outputs[0].type = nvinfer1::DataType::kINT32; },
      [](SimulatedPlan& plan) { plan.outputs.clear(); },
      [](SimulatedPlan& plan) { plan.operation = SimulatedOperation::kScaleAdd; },
      [](SimulatedPlan& plan) { plan.kernels.push_back(plan.kernels[0]); },
  };
  for (size_t i = 0; i < faults.size(); ++i) {
    SimulatedPlan plan = dynamic_plan();
    EXPECT_NO_THROW(make_plan(plan));
    faults[i](plan);
    EXPECT_THROW(make_plan(plan), Error) << "fault " << i;
  }
}

TEST(SimulatedEngineTest, DescribesItsTensors) {
  const Loaded loaded = load(std::make_shared<SimulatedDevice>(), dynamic_plan());
  const ICudaEngine& engine = *loaded.engine;
  EXPECT_STREQ(engine.getName(), "relu");
  ASSERT_EQ(engine.getNbIOTensors(), 2);
  EXPECT_STREQ(engine.getIOTensorName(0), "x");
  EXPECT_STREQ(engine.getIOTensorName(1), "y");
  EXPECT_EQ(engine.getIOTensorName(2), nullptr);
  EXPECT_EQ(engine.getTensorIOMode("x"), nvinfer1::TensorIOMode::kINPUT);
  EXPECT_EQ(engine.getTensorIOMode("y"), nvinfer1::TensorIOMode::kOUTPUT);
  EXPECT_EQ(engine.getTensorIOMode("z"), nvinfer1::TensorIOMode::kNONE);
  EXPECT_EQ(engine.getTensorDataType("y"), nvinfer1::DataType::kFLOAT);
  EXPECT_EQ(extents_of(engine.getTensorShape("x")), (std::vector<int64_t>{-1, 3}));
  EXPECT_EQ(engine.getTensorShape("z").nbDims, -1);
  EXPECT_EQ(engine.getNbOptimizationProfiles(), 1);
  using nvinfer1::OptProfileSelector;
  EXPECT_EQ(extents_of(engine.getProfileShape("x", 0, OptProfileSelector::kMIN)), (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(extents_of(engine.getProfileShape("x", 0, OptProfileSelector::kOPT)), (std::vector<int64_t>{4, 3}));
  EXPECT_EQ(extents_of(engine.getProfileShape("x", 0, OptProfileSelector::kMAX)), (std::vector<int64_t>{8, 3}));
  EXPECT_EQ(engine.getProfileShape("y", 0, OptProfileSelector::kMAX).nbDims, -1);
  EXPECT_EQ(engine.getProfileShape("x", 1, OptProfileSelector::kMAX).nbDims, -1);
}

TEST(SimulatedEngineTest, SerializesToItsPlan) {
  const std::string bytes = make_plan(dynamic_plan());
  const Loaded loaded = load(std::make_shared<SimulatedDevice>(), dynamic_plan());
  const std::unique_ptr<nvinfer1::IHostMemory> memory(loaded.engine->serialize());
  EXPECT_EQ(std::string(static_cast<const char*>(memory->data()), memory->size()), bytes);
}

// The smallest plan that TensorRT-RTX's builder might write.
std::string real_plan() {
  ByteWriter writer;
  for (const uint64_t number : {0x74727476U, 2U, 32U, 0U}) {
    writer.number(number);
  }
  return writer.take();
}

TEST(SimulatedPlanTest, ARealOneHasNoTensorsAndNoKernels) {
  const SimulatedPlan plan = parse_plan(real_plan());
  EXPECT_TRUE(plan.inputs.empty());
  EXPECT_TRUE(plan.outputs.empty());
  EXPECT_TRUE(plan.kernels.empty());
}

TEST(SimulatedPlanTest, RefusesWhatHasNotTheSizeOfARealOne) {
  const std::string bytes = real_plan();
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THROW(parse_plan(bytes.substr(0, size)), Error) << size;
  }
  EXPECT_THROW(parse_plan(bytes + "x"), Error);
}

TEST(SimulatedEngineTest, GarbageIsNoPlan) {
  RecordingLogger logger;
  const std::unique_ptr<IRuntime> runtime(create_infer_runtime(std::make_shared<SimulatedDevice>(), &logger));
  EXPECT_EQ(runtime->deserializeCudaEngine("garbage", 7), nullptr);
  EXPECT_THAT(logger.take(), HasSubstr("IRuntime::deserializeCudaEngine rejects the plan"));
  EXPECT_EQ(runtime->deserializeCudaEngine(nullptr, 0), nullptr);
}

TEST(SimulatedContextTest, ComputesReluOfEveryType) {
  SimulatedPlan plan;
  plan.inputs = {
      {.name = "f", .dims = {2, 2}},
      {.name = "i", .type = nvinfer1::DataType::kINT32, .dims = {}},
      {.name = "l", .type = nvinfer1::DataType::kINT64, .dims = {3}},
      {.name = "none", .dims = {0, 5}}};
  for (const SimulatedTensor& input : plan.inputs) {
    plan.outputs.push_back(input);
    plan.outputs.back().name += "_out";
  }
  const Loaded loaded = load(std::make_shared<SimulatedDevice>(), plan);
  const auto context = loaded.new_context();
  std::vector<float> f = {-1.5F, 2.5F, 0.0F, -0.0F};
  std::vector<float> f_out(4);
  int32_t i = -3;
  int32_t i_out = 7;
  std::vector<int64_t> l = {-1, int64_t{1} << 40, 5};
  std::vector<int64_t> l_out(3);
  float none = -1.0F;
  float none_out = 7.0F;
  ASSERT_TRUE(context->setInputTensorAddress("f", f.data()));
  ASSERT_TRUE(context->setOutputTensorAddress("f_out", f_out.data()));
  ASSERT_TRUE(context->setTensorAddress("i", &i));
  ASSERT_TRUE(context->setTensorAddress("i_out", &i_out));
  ASSERT_TRUE(context->setTensorAddress("l", l.data()));
  ASSERT_TRUE(context->setTensorAddress("l_out", l_out.data()));
  ASSERT_TRUE(context->setTensorAddress("none", &none));
  EXPECT_FALSE(context->enqueueV3(nullptr)) << "an address is missing";
  ASSERT_TRUE(context->setTensorAddress("none_out", &none_out));
  EXPECT_EQ(context->getTensorAddress("l"), l.data());
  EXPECT_EQ(context->getTensorAddress("l_out"), l_out.data());
  EXPECT_FALSE(context->setTensorAddress("unknown", &none));
  EXPECT_FALSE(context->setInputTensorAddress("l_out", l_out.data()));
  ASSERT_TRUE(context->enqueueV3(nullptr));
  EXPECT_EQ(f_out, (std::vector<float>{0.0F, 2.5F, 0.0F, 0.0F}));
  EXPECT_EQ(i_out, 0);
  EXPECT_EQ(l_out, (std::vector<int64_t>{0, int64_t{1} << 40, 5}));
  EXPECT_EQ(none_out, 7.0F);
}

TEST(SimulatedContextTest, ComputesScaleAdd) {
  SimulatedPlan plan;
  plan.operation = SimulatedOperation::kScaleAdd;
  plan.scale = 0.5F;
  plan.inputs = {
      {.name = "a", .dims = {-1}, .min = {0}, .opt = {2}, .max = {4}},
      {.name = "b", .dims = {-1}, .min = {0}, .opt = {2}, .max = {4}}};
  plan.outputs = {{.name = "c", .dims = {-1}}};
  const Loaded loaded = load(std::make_shared<SimulatedDevice>(), plan);
  const auto context = loaded.new_context();
  std::vector<float> a = {1, 2, 3};
  std::vector<float> b = {10, 20, 30};
  std::vector<float> c(3);
  ASSERT_TRUE(context->setTensorAddress("a", a.data()));
  ASSERT_TRUE(context->setTensorAddress("b", b.data()));
  ASSERT_TRUE(context->setTensorAddress("c", c.data()));
  ASSERT_TRUE(context->setInputShape("a", dims_of({3})));
  ASSERT_TRUE(context->setInputShape("b", dims_of({2})));
  EXPECT_FALSE(context->enqueueV3(nullptr)) << "the shapes differ";
  ASSERT_TRUE(context->setInputShape("b", dims_of({3})));
  ASSERT_TRUE(context->enqueueV3(nullptr));
  EXPECT_EQ(c, (std::vector<float>{10.5F, 21.0F, 31.5F}));
}

TEST(SimulatedContextTest, ShapesObeyTheProfile) {
  RecordingLogger logger;
  const Loaded loaded = load(std::make_shared<SimulatedDevice>(), dynamic_plan(), &logger);
  const auto context = loaded.new_context();
  const char* unspecified[1] = {};
  EXPECT_EQ(context->inferShapes(1, unspecified), 1);
  EXPECT_STREQ(unspecified[0], "x");
  EXPECT_EQ(context->inferShapes(1, nullptr), -1);
  EXPECT_FALSE(context->allInputDimensionsSpecified());
  EXPECT_EQ(extents_of(context->getTensorShape("y")), (std::vector<int64_t>{-1, 3}));
  EXPECT_FALSE(context->enqueueV3(nullptr));
  logger.take();

  EXPECT_FALSE(context->setInputShape("x", dims_of({9, 3})));
  EXPECT_THAT(logger.take(), HasSubstr("dimension 0 of x has 1 to 8 elements"));
  EXPECT_FALSE(context->setInputShape("x", dims_of({0, 3})));
  EXPECT_FALSE(context->setInputShape("x", dims_of({2, 4})));
  EXPECT_FALSE(context->setInputShape("x", dims_of({2})));
  EXPECT_FALSE(context->setInputShape("y", dims_of({2, 3})));
  EXPECT_FALSE(context->allInputDimensionsSpecified());

  EXPECT_TRUE(context->setInputShape("x", dims_of({8, 3})));
  EXPECT_EQ(context->inferShapes(0, nullptr), 0);
  EXPECT_TRUE(context->allInputDimensionsSpecified());
  EXPECT_EQ(extents_of(context->getTensorShape("y")), (std::vector<int64_t>{8, 3}));
  EXPECT_EQ(context->getTensorShape("z").nbDims, -1);
  EXPECT_TRUE(context->setOptimizationProfileAsync(0, nullptr));
  EXPECT_FALSE(context->setOptimizationProfileAsync(1, nullptr));
}

TEST(SimulatedContextTest, AProfileOfOneShapeNeedsNoSetInputShape) {
  SimulatedPlan plan = dynamic_plan();
  plan.inputs[0].min = plan.inputs[0].opt = plan.inputs[0].max;
  const Loaded loaded = load(std::make_shared<SimulatedDevice>(), plan);
  const auto context = loaded.new_context();
  EXPECT_EQ(context->inferShapes(0, nullptr), 0);
  EXPECT_EQ(extents_of(context->getTensorShape("y")), (std::vector<int64_t>{8, 3}));
}

TEST(CompilationTest, WithoutACacheEveryContextCompiles) {
  const auto device = std::make_shared<SimulatedDevice>();
  const Loaded loaded = load(device, relu_plan(make_kernels("k", 3, 10)));
  EXPECT_EQ(device->counters().compilations, 0U);
  const auto first = loaded.new_context();
  EXPECT_EQ(device->counters().compilations, 3U);
  const std::unique_ptr<IExecutionContext> second(loaded.engine->createExecutionContext());
  EXPECT_EQ(device->counters().compilations, 6U);
  EXPECT_EQ(device->counters().cache_hits, 0U);
  EXPECT_EQ(second->getRuntimeConfig(), nullptr);
  EXPECT_EQ(first->getRuntimeConfig(), loaded.config.get());
  EXPECT_EQ(&first->getEngine(), loaded.engine.get());
}

TEST(CompilationTest, EnginesOnOneCacheShareKernelsOfOneName) {
  const auto device = std::make_shared<SimulatedDevice>();
  const Loaded a = load(device, relu_plan({{"common", 64}, {"only_a", 64}}));
  const Loaded b = load(device, relu_plan({{"common", 64}, {"only_b", 64}}));
  const auto cache = a.new_cache();
  EXPECT_EQ(a.config->getRuntimeCache(), nullptr);
  ASSERT_TRUE(a.config->setRuntimeCache(*cache));
  ASSERT_TRUE(b.config->setRuntimeCache(*cache));
  EXPECT_EQ(b.config->getRuntimeCache(), cache.get());
  const auto context_a = a.new_context();
  const auto context_b = b.new_context();
  EXPECT_EQ(device->counters().compilations, 3U);
  EXPECT_EQ(device->counters().cache_hits, 1U);
  EXPECT_EQ(serialized(*cache), blob_with(device, {{"only_b", 64}, {"only_a", 64}, {"common", 64}}));
}

TEST(CompilationTest, AKernelOfAnotherSizeIsAnother) {
  const auto device = std::make_shared<SimulatedDevice>();
  const Loaded loaded = load(device, relu_plan({{"k", 64}}));
  const auto cache = loaded.new_cache();
  ASSERT_TRUE(feed(*cache, blob_with(device, {{"k", 63}})));
  ASSERT_TRUE(loaded.config->setRuntimeCache(*cache));
  device->reset_counters();
  const auto context = loaded.new_context();
  EXPECT_EQ(device->counters().compilations, 1U);
  EXPECT_EQ(device->counters().cache_hits, 0U);
}

TEST(CompilationTest, AContextKeepsTheSettingsOfItsCreation) {
  const auto device = std::make_shared<SimulatedDevice>();
  const Loaded loaded = load(device, dynamic_plan());
  loaded.config->setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy::kNONE);
  const auto context = loaded.new_context();
  loaded.config->setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy::kEAGER);
  device->reset_counters();
  infer_rows(*context, 2);
  EXPECT_EQ(device->counters().compilations, 0U);
}

TEST(CompilationTest, EagerSpecializesOnceForEveryShape) {
  const auto device = std::make_shared<SimulatedDevice>();
  const Loaded loaded = load(device, dynamic_plan());
  loaded.config->setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy::kEAGER);
  const auto cache = loaded.new_cache();
  ASSERT_TRUE(loaded.config->setRuntimeCache(*cache));
  const auto context = loaded.new_context();
  EXPECT_EQ(device->counters().compilations, 1U);
  infer_rows(*context, 2);
  EXPECT_EQ(device->counters().compilations, 2U);
  infer_rows(*context, 2);
  EXPECT_EQ(device->counters().compilations, 2U);
  infer_rows(*context, 5);
  EXPECT_EQ(device->counters().compilations, 3U);
  const auto second = loaded.new_context();
  infer_rows(*second, 5);
  EXPECT_EQ(device->counters().compilations, 3U);
  EXPECT_EQ(device->counters().cache_hits, 2U);
}

TEST(CompilationTest, LazySpecializesInTheBackground) {
  const auto device = std::make_shared<SimulatedDevice>();
  const Loaded loaded = load(device, dynamic_plan());
  EXPECT_EQ(
      loaded.config->getDynamicShapesKernelSpecializationStrategy(), DynamicShapesKernelSpecializationStrategy::kLAZY);
  const auto cache = loaded.new_cache();
  ASSERT_TRUE(loaded.config->setRuntimeCache(*cache));
  const auto context = loaded.new_context();
  const std::string before = serialized(*cache);
  infer_rows(*context, 2);
  infer_rows(*context, 3);
  device->wait_for_background_compilation();
  EXPECT_EQ(device->counters().compilations, 3U);
  EXPECT_GT(serialized(*cache).size(), before.size());
}

TEST(CompilationTest, AContextThatGoesDropsWhatItHasNotCompiled) {
  const auto device = std::make_shared<SimulatedDevice>();
  SimulatedPlan plan = dynamic_plan();
  plan.kernels.clear();
  for (SimulatedKernel kernel : make_kernels("k", 1000, 1)) {
    kernel.per_shape = true;
    plan.kernels.push_back(kernel);
  }
  const Loaded loaded = load(device, plan);
  device->set_compile_time(milliseconds(50));
  auto context = loaded.new_context();
  infer_rows(*context, 2);
  context.reset();
  device->wait_for_background_compilation();
  EXPECT_LT(device->counters().compilations, 1000U);
}

TEST(CompilationTest, TakesItsTime) {
  const auto device = std::make_shared<SimulatedDevice>();
  device->set_compile_time(milliseconds(5));
  const Loaded loaded = load(device, relu_plan(make_kernels("k", 10, 10)));
  const auto start = std::chrono::steady_clock::now();
  const auto context = loaded.new_context();
  EXPECT_GE(std::chrono::steady_clock::now() - start, milliseconds(50));
}

TEST(CompilationTest, ThreadsOnOneCacheCompileEachKernelOnce) {
  const auto device = std::make_shared<SimulatedDevice>();
  device->set_compile_time(std::chrono::microseconds(200));
  const Loaded owner = load(device, relu_plan({}));
  const auto cache = owner.new_cache();
  const std::vector<SimulatedKernel> kernels = make_kernels("k", 40, 256);
  std::atomic<bool> done = false;
  std::thread reader([&] {
    const auto copy = owner.new_cache();
    while (!done) {
      EXPECT_TRUE(feed(*copy, serialized(*cache)));
    }
  });
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&] {
      const Loaded loaded = load(device, relu_plan(kernels));
      EXPECT_TRUE(loaded.config->setRuntimeCache(*cache));
      const auto context = loaded.new_context();
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  done = true;
  reader.join();
  EXPECT_EQ(device->counters().compilations, 40U);
  EXPECT_EQ(device->counters().cache_hits, 200U);
  EXPECT_EQ(serialized(*cache), blob_with(device, kernels));
}

class RuntimeCacheTest : public testing::Test {
 protected:
  // Returns true if a cache on a device of that environment accepts `blob_`. Otherwise the cache must keep what it
  // held.
  bool accepted_by(const SimulatedEnvironment& environment) {
    const auto device = std::make_shared<SimulatedDevice>(environment);
    const Loaded loaded = load(device, relu_plan({}), &logger_);
    const auto cache = loaded.new_cache();
    EXPECT_TRUE(feed(*cache, blob_with(device, {{"mine", 3}})));
    const std::string before = serialized(*cache);
    const bool accepted = feed(*cache, blob_);
    EXPECT_EQ(accepted, serialized(*cache) != before);
    return accepted;
  }

  std::shared_ptr<SimulatedDevice> device_ = std::make_shared<SimulatedDevice>();
  RecordingLogger logger_;
  Loaded loaded_ = load(device_, relu_plan({}), &logger_);
  std::unique_ptr<IRuntimeCache> cache_ = loaded_.new_cache();
  std::string blob_ = blob_with(device_, {{"a", 20}, {"b", 0}});
};

TEST_F(RuntimeCacheTest, RoundTrips) {
  EXPECT_TRUE(feed(*cache_, blob_));
  EXPECT_EQ(serialized(*cache_), blob_);
  const std::unique_ptr<nvinfer1::IHostMemory> memory(cache_->serialize());
  EXPECT_EQ(memory->type(), nvinfer1::DataType::kUINT8);
}

TEST_F(RuntimeCacheTest, ResetEmptiesIt) {
  const std::string empty = serialized(*cache_);
  ASSERT_TRUE(feed(*cache_, blob_));
  EXPECT_TRUE(cache_->reset());
  EXPECT_EQ(serialized(*cache_), empty);
}

TEST_F(RuntimeCacheTest, DeserializeAdds) {
  ASSERT_TRUE(feed(*cache_, blob_));
  ASSERT_TRUE(feed(*cache_, blob_with(device_, {{"b", 0}, {"c", 5}})));
  EXPECT_EQ(serialized(*cache_), blob_with(device_, {{"c", 5}, {"a", 20}, {"b", 0}}));
}

TEST_F(RuntimeCacheTest, DeserializeReplaces) {
  device_->set_deserialize_mode(DeserializeMode::kReplaces);
  ASSERT_TRUE(feed(*cache_, blob_));
  const std::string other = blob_with(device_, {{"b", 0}, {"c", 5}});
  ASSERT_TRUE(feed(*cache_, other));
  EXPECT_EQ(serialized(*cache_), other);
}

TEST_F(RuntimeCacheTest, ChecksTheEnvironment) {
  const SimulatedEnvironment here = device_->environment();
  EXPECT_TRUE(accepted_by(here));

  SimulatedEnvironment other = here;
  other.tensorrt_rtx_version = "99.0.0.0";
  EXPECT_FALSE(accepted_by(other));
  EXPECT_THAT(logger_.take(), HasSubstr("TensorRT-RTX " + here.tensorrt_rtx_version));

  other = here;
  other.gpu = "Another GPU";
  EXPECT_FALSE(accepted_by(other));

  other = here;
  other.os_family = "Windows";
  EXPECT_FALSE(accepted_by(other));

  other = here;
  other.cuda_in_graphics = true;
  EXPECT_FALSE(accepted_by(other));

  other = here;
  other.cuda_driver = here.cuda_driver + 20;
  EXPECT_TRUE(accepted_by(other)) << "a newer minor driver";
  other.cuda_driver = here.cuda_driver + 1000;
  EXPECT_FALSE(accepted_by(other)) << "a newer major driver";
  other.cuda_driver = here.cuda_driver - 10;
  EXPECT_FALSE(accepted_by(other)) << "an older driver";
}

TEST_F(RuntimeCacheTest, AnUpgradedDeviceRejectsItsOldBlob) {
  SimulatedEnvironment upgraded = device_->environment();
  upgraded.tensorrt_rtx_version = "99.0.0.0";
  device_->set_environment(upgraded);
  EXPECT_FALSE(feed(*cache_, blob_));
  EXPECT_NE(blob_with(device_, {{"a", 20}, {"b", 0}}), blob_);
}

TEST_F(RuntimeCacheTest, RejectsEveryCorruption) {
  const std::string empty = serialized(*cache_);
  for (size_t i = 0; i < blob_.size(); ++i) {
    std::string corrupt = blob_;
    corrupt[i] = static_cast<char>(corrupt[i] ^ 0x10);
    EXPECT_FALSE(feed(*cache_, corrupt)) << "byte " << i;
    EXPECT_FALSE(feed(*cache_, blob_.substr(0, i))) << "of " << i << " bytes";
  }
  EXPECT_FALSE(feed(*cache_, blob_ + "x"));
  EXPECT_FALSE(cache_->deserialize(nullptr, 0));
  EXPECT_EQ(serialized(*cache_), empty);
}

TEST(FailureTest, FailsOnRequestAsManyTimesAsAsked) {
  const auto device = std::make_shared<SimulatedDevice>();
  const Loaded loaded = load(device, relu_plan({}));
  const auto cache = loaded.new_cache();
  device->fail("IRuntimeCache::serialize", 2);
  EXPECT_EQ(cache->serialize(), nullptr);
  EXPECT_EQ(cache->serialize(), nullptr);
  EXPECT_FALSE(serialized(*cache).empty());
  device->fail("IRuntimeCache::serialize");
  EXPECT_EQ(cache->serialize(), nullptr);
  device->fail("IRuntimeCache::serialize", 0);
  EXPECT_FALSE(serialized(*cache).empty());
  EXPECT_EQ(device->calls("IRuntimeCache::serialize"), 5U);
  device->reset_counters();
  EXPECT_EQ(device->calls("IRuntimeCache::serialize"), 0U);
  EXPECT_THROW(device->fail("IRuntimeCache::serialise"), Error);
  EXPECT_THROW(device->calls("enqueueV3"), Error);
}

TEST(FailureTest, EveryCallAnswersAsDocumented) {
  RecordingLogger logger;
  const auto device = std::make_shared<SimulatedDevice>();
  const Loaded loaded = load(device, relu_plan({}), &logger);
  const auto cache = loaded.new_cache();
  ASSERT_TRUE(loaded.config->setRuntimeCache(*cache));
  const auto context = loaded.new_context();
  const std::string plan = make_plan(relu_plan({}));
  const std::string blob = serialized(*cache);
  float x[4] = {};

  const std::vector<std::pair<const char*, std::function<bool()>>> calls = {
      {"createInferRuntime", [&] { return create_infer_runtime(device, &logger) != nullptr; }},
      {"IRuntime::deserializeCudaEngine",
       [&] { return loaded.runtime->deserializeCudaEngine(plan.data(), plan.size()) != nullptr; }},
      {"ICudaEngine::serialize", [&] { return loaded.engine->serialize() != nullptr; }},
      {"ICudaEngine::createRuntimeConfig", [&] { return loaded.engine->createRuntimeConfig() != nullptr; }},
      {"ICudaEngine::createExecutionContext", [&] { return loaded.new_context() != nullptr; }},
      {"IRuntimeConfig::createRuntimeCache", [&] { return loaded.new_cache() != nullptr; }},
      {"IRuntimeConfig::setRuntimeCache", [&] { return loaded.config->setRuntimeCache(*cache); }},
      {"IRuntimeConfig::getRuntimeCache", [&] { return loaded.config->getRuntimeCache() != nullptr; }},
      {"IRuntimeConfig::setCudaGraphStrategy",
       [&] { return loaded.config->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE); }},
      {"IRuntimeCache::serialize", [&] { return cache->serialize() != nullptr; }},
      {"IRuntimeCache::deserialize", [&] { return feed(*cache, blob); }},
      {"IRuntimeCache::reset", [&] { return cache->reset(); }},
      {"IExecutionContext::setInputShape", [&] { return context->setInputShape("x", dims_of({4})); }},
      {"IExecutionContext::setTensorAddress", [&] { return context->setTensorAddress("x", x); }},
      {"IExecutionContext::inferShapes", [&] { return context->inferShapes(0, nullptr) != -1; }},
      {"IExecutionContext::setOptimizationProfileAsync",
       [&] { return context->setOptimizationProfileAsync(0, nullptr); }},
      {"IExecutionContext::isStreamCapturable", [&] { return context->isStreamCapturable(nullptr); }},
      {"IExecutionContext::enqueueV3", [&] { return context->enqueueV3(nullptr); }},
  };
  for (const auto& [name, succeeds] : calls) {
    device->reset_counters();
    logger.take();
    device->fail(name, 1);
    EXPECT_FALSE(succeeds()) << name;
    EXPECT_EQ(device->calls(name), 1U) << name;
    EXPECT_THAT(logger.take(), HasSubstr(std::string(name) + " fails on request"));
  }
  EXPECT_EQ(loaded.config->getCudaGraphStrategy(), nvinfer1::CudaGraphStrategy::kDISABLED);
  EXPECT_TRUE(loaded.config->setCudaGraphStrategy(nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE));
  EXPECT_EQ(loaded.config->getCudaGraphStrategy(), nvinfer1::CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE);
  EXPECT_FALSE(loaded.config->setCudaGraphStrategy(static_cast<nvinfer1::CudaGraphStrategy>(2)));
}

class MisuseDeathTest : public testing::Test {
 protected:
  MisuseDeathTest() {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }

  Loaded loaded_ = load(std::make_shared<SimulatedDevice>(), relu_plan({{"k", 1}}));
};

TEST_F(MisuseDeathTest, UnsimulatedFunctionsNameThemselves) {
  EXPECT_DEATH(loaded_.runtime->setMaxThreads(1), "IRuntime::setMaxThreads is not simulated");
  EXPECT_DEATH(loaded_.engine->getNbAuxStreams(), "ICudaEngine::getNbAuxStreams is not simulated");
  const auto context = loaded_.new_context();
  EXPECT_DEATH(context->executeV2(nullptr), "IExecutionContext::executeV2 is not simulated");
}

TEST_F(MisuseDeathTest, ObjectsGoInOrder) {
  EXPECT_DEATH(loaded_.runtime.reset(), "an IRuntime was destroyed before its ICudaEngine");
  const auto context = loaded_.new_context();
  EXPECT_DEATH(loaded_.engine.reset(), "an ICudaEngine was destroyed before its IExecutionContext");
}

TEST_F(MisuseDeathTest, ACacheOutlivesItsUse) {
  auto cache = loaded_.new_cache();
  ASSERT_TRUE(loaded_.config->setRuntimeCache(*cache));
  cache.reset();
  EXPECT_DEATH(loaded_.new_context(), "an IRuntimeCache was used after it was destroyed");
  EXPECT_DEATH(loaded_.config->getRuntimeCache(), "an IRuntimeCache was used after it was destroyed");
}

TEST_F(MisuseDeathTest, AForkedChildUsesNothingOfItsParent) {
  GTEST_FLAG_SET(death_test_style, "fast"); // a "fast" death test forks without exec
  const auto cache = loaded_.new_cache();
  const std::string message = "a forked child used or destroyed an object of its parent";
  EXPECT_DEATH(cache->reset(), message);
  EXPECT_DEATH(loaded_.new_context(), message);
  EXPECT_DEATH(loaded_.engine.reset(), message);
}

// The work of the other process in the test below: one engine with 200 kernels of 64 KiB and a cache. The cache starts
// with the blob in the file, if there is one, and is written back.
constexpr uint64_t kKernels = 200;
constexpr uint64_t kKernelSize = 65536;
constexpr milliseconds kCompileTime{5};

SimulatedDevice::Counters start_engine(const std::string& path) {
  const auto device = std::make_shared<SimulatedDevice>();
  device->set_compile_time(kCompileTime);
  const Loaded loaded = load(device, relu_plan(make_kernels("conv", kKernels, kKernelSize)));
  const auto cache = loaded.new_cache();
  if (std::ifstream file(path, std::ios::binary); file) {
    EXPECT_TRUE(feed(*cache, std::string(std::istreambuf_iterator<char>(file), {})));
  }
  EXPECT_TRUE(loaded.config->setRuntimeCache(*cache));
  const auto context = loaded.new_context();
  std::vector<float> x = {-1, 2, -3, 4};
  std::vector<float> y(4);
  EXPECT_TRUE(context->setTensorAddress("x", x.data()) && context->setTensorAddress("y", y.data()));
  EXPECT_TRUE(context->enqueueV3(nullptr));
  EXPECT_EQ(y, (std::vector<float>{0, 2, 0, 4}));
  std::ofstream(path, std::ios::binary) << serialized(*cache);
  return device->counters();
}

TEST(ProcessTest, ABlobOfAnotherProcessWarmsThisOne) {
  const TemporaryDirectory directory;
  const std::string path = directory.file("cache");
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(run_program({"/proc/self/exe", "--start-engine", path}), 0)
      << "the cold process did not compile every kernel";
  EXPECT_GE(std::chrono::steady_clock::now() - start, kKernels * kCompileTime);

  std::ifstream file(path, std::ios::binary);
  const std::string cold((std::istreambuf_iterator<char>(file)), {});
  EXPECT_GT(cold.size(), kKernels * kKernelSize);
  const SimulatedDevice::Counters warm = start_engine(path);
  EXPECT_EQ(warm.compilations, 0U);
  EXPECT_EQ(warm.cache_hits, kKernels);
  std::ifstream again(path, std::ios::binary);
  EXPECT_EQ(std::string((std::istreambuf_iterator<char>(again)), {}), cold);
}

} // namespace
} // namespace torch_tensorrt::tests

// With `--start-engine FILE`, this is the cold process of ProcessTest. It succeeds if it compiled every kernel.
int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc == 3 && std::string(argv[1]) == "--start-engine") {
    using namespace torch_tensorrt::tests;
    const SimulatedDevice::Counters cold = start_engine(argv[2]);
    return cold.compilations == kKernels && cold.cache_hits == 0 ? 0 : 1;
  }
  return RUN_ALL_TESTS();
}
