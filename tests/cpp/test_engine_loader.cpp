#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <c10/core/impl/VirtualGuardImpl.h>

#include "core/runtime/EngineLoader.h"
#include "core/util/prelude.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/util/simulation/SimulatedDevice.h"
#include "tests/util/simulation/SimulatedPlan.h"
#include "tests/util/simulation/simulated_engine_loader.h"

namespace torch_tensorrt::core::runtime {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;
using tests::make_plan;
using tests::relu_plan;
using tests::ScopedSimulation;
using tests::SimulatedDevice;

const std::string& plan() {
  static const std::string bytes = make_plan(relu_plan({}));
  return bytes;
}

TEST(EngineLoaderTest, TheDefaultSaysWhatItLacks) {
  const bool has_gpu = c10::impl::hasDeviceGuardImpl(c10::DeviceType::CUDA) &&
      c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA).deviceCount() > 0;
  EXPECT_THAT(
      [] { load_engine(plan()); }, ThrowsMessage<Error>(HasSubstr(has_gpu ? "could not load a plan" : "NVIDIA GPU")));
}

TEST(EngineLoaderTest, AnInstalledLoaderLoadsAndIsPutBack) {
  {
    const ScopedSimulation simulation(std::make_shared<SimulatedDevice>());
    const LoadedEngine loaded = load_engine(plan());
    EXPECT_STREQ(loaded.engine->getName(), "relu");
    EXPECT_TRUE(loaded.device.is_cpu());
  }
  EXPECT_THROW(load_engine(plan()), Error);
}

TEST(EngineLoaderTest, AnEngineKeepsWhatItNeeds) {
  const auto device = std::make_shared<SimulatedDevice>();
  LoadedEngine loaded = [&] {
    const ScopedSimulation simulation(device);
    return load_engine(plan());
  }();
  const std::unique_ptr<nvinfer1::IExecutionContext> context(loaded.engine->createExecutionContext());
  EXPECT_NE(context, nullptr);
}

TEST(EngineLoaderTest, LoadersFailWithTheirReason) {
  const auto device = std::make_shared<SimulatedDevice>();
  const ScopedSimulation simulation(device);
  EXPECT_THAT([] { load_engine("garbage"); }, ThrowsMessage<Error>(HasSubstr("could not load a plan of 7 bytes")));
  device->fail("createInferRuntime");
  EXPECT_THAT([] { load_engine(plan()); }, ThrowsMessage<Error>(HasSubstr("could not be started")));
}

TEST(EngineLoaderTest, ThreadsLoadAtOnce) {
  const auto device = std::make_shared<SimulatedDevice>();
  const ScopedSimulation simulation(device);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] { EXPECT_NE(load_engine(plan()).engine, nullptr); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(device->calls("IRuntime::deserializeCudaEngine"), 4U);
}

} // namespace
} // namespace torch_tensorrt::core::runtime
