#include "core/runtime/EngineStream.h"

#include <string>
#include <vector>

#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace torch_tensorrt::core::runtime {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

const c10::Device kDevice(c10::DeviceType::PrivateUse1, 0);
constexpr c10::StreamId kDefault = 0;
constexpr c10::StreamId kSide = 1;
constexpr c10::StreamId kOtherSide = 2;
constexpr c10::StreamId kPool = 3;

// The calls that a device with streams received. Events are numbered in order of their first use.
struct Told {
  c10::StreamId current = kDefault;
  bool is_capturing = false;
  size_t events = 0;
  std::vector<std::string> words;

  void say(const std::string& word) {
    words.push_back(word);
  }
};

Told& told() {
  static Told told;
  return told;
}

std::string number_of(void* event) {
  return std::to_string(reinterpret_cast<size_t>(event));
}

// torch's interface for other makers' devices stands in for CUDA.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override {
    return kDevice.type();
  }
  c10::Device exchangeDevice(c10::Device) const override {
    return kDevice;
  }
  c10::Device getDevice() const override {
    return kDevice;
  }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::DeviceIndex deviceCount() const noexcept override {
    return 1;
  }
  c10::Stream getStream(c10::Device) const override {
    return stream(told().current);
  }
  c10::Stream getDefaultStream(c10::Device) const override {
    return stream(kDefault);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override {
    told().say("takes a stream");
    return stream(kPool);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    return stream;
  }
  void* getStreamNativeHandle(c10::Stream stream) const override {
    return reinterpret_cast<void*>(100 + stream.id());
  }
  bool isStreamCapturing(const c10::Stream& stream) const { // overrides; torch 2.11 does not have it
    return told().is_capturing && stream.id() == told().current;
  }
  void record(void** event, const c10::Stream& stream, c10::DeviceIndex, c10::EventFlag) const override {
    if (*event == nullptr) {
      *event = reinterpret_cast<void*>(++told().events);
    }
    told().say("event " + number_of(*event) + " on " + std::to_string(stream.id()));
  }
  void block(void* event, const c10::Stream& stream) const override {
    told().say(std::to_string(stream.id()) + " waits for " + number_of(event));
  }
  void synchronizeEvent(void* event) const override {
    told().say("host waits for " + number_of(event));
  }
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}

 private:
  static c10::Stream stream(c10::StreamId id) {
    return c10::Stream(c10::Stream::UNSAFE, kDevice, id);
  }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

class EngineStreamTest : public testing::Test {
 protected:
  EngineStreamTest() {
    told() = Told{};
  }

  // Returns the calls that the device receives during one inference on that stream.
  std::vector<std::string> run_on(c10::StreamId current) {
    told().current = current;
    told().words.clear();
    const cudaStream_t handle = stream_.begin();
    told().say("runs on " + std::to_string(reinterpret_cast<size_t>(handle) - 100));
    stream_.end();
    return told().words;
  }

  EngineStream stream_{kDevice};
};

TEST_F(EngineStreamTest, RunsOnTheCurrentStream) {
  EXPECT_THAT(run_on(kSide), ElementsAre("runs on 1", "event 1 on 1"));
  EXPECT_THAT(run_on(kSide), ElementsAre("runs on 1", "event 1 on 1"));
}

TEST_F(EngineStreamTest, WaitsForAnInferenceOnAnotherStream) {
  run_on(kSide);
  EXPECT_THAT(run_on(kOtherSide), ElementsAre("2 waits for 1", "runs on 2", "event 1 on 2"));
  EXPECT_THAT(run_on(kOtherSide), ElementsAre("runs on 2", "event 1 on 2"));
}

TEST_F(EngineStreamTest, HasAStreamOfItsOwnForTheDefaultOne) {
  EXPECT_THAT(
      run_on(kDefault),
      ElementsAre("takes a stream", "event 1 on 0", "3 waits for 1", "runs on 3", "event 2 on 3", "0 waits for 2"));
  EXPECT_THAT(
      run_on(kDefault), ElementsAre("event 1 on 0", "3 waits for 1", "runs on 3", "event 2 on 3", "0 waits for 2"));
}

TEST_F(EngineStreamTest, ChangesBetweenTheDefaultStreamAndOthers) {
  run_on(kDefault);
  EXPECT_THAT(run_on(kSide), ElementsAre("1 waits for 2", "runs on 1", "event 2 on 1"));
  EXPECT_THAT(
      run_on(kDefault),
      ElementsAre("event 1 on 0", "3 waits for 1", "3 waits for 2", "runs on 3", "event 2 on 3", "0 waits for 2"));
}

TEST_F(EngineStreamTest, WaitsOnTheHostForTheLastInference) {
  stream_.synchronize();
  EXPECT_THAT(told().words, IsEmpty());
  run_on(kSide);
  told().words.clear();
  stream_.synchronize();
  EXPECT_THAT(told().words, ElementsAre("host waits for 1"));
}

TEST_F(EngineStreamTest, WhileCapturingNothingIsWaitedFor) {
  run_on(kSide);
  told().current = kOtherSide;
  told().is_capturing = true;
  if (!stream_.is_capturing()) {
    GTEST_SKIP() << "this torch can't tell whether a stream is being captured";
  }
  EXPECT_THAT(run_on(kOtherSide), ElementsAre("runs on 2"));
  told().is_capturing = false;
  EXPECT_FALSE(stream_.is_capturing());
  EXPECT_THAT(run_on(kSide), ElementsAre("runs on 1", "event 1 on 1"));
}

TEST(EngineStreamOnCpuTest, HasNone) {
  EngineStream stream(c10::Device(c10::DeviceType::CPU));
  EXPECT_FALSE(stream.is_capturing());
  EXPECT_EQ(stream.begin(), nullptr);
  stream.end();
  stream.synchronize();
}

} // namespace
} // namespace torch_tensorrt::core::runtime
