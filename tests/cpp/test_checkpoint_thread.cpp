#include "core/runtime/CheckpointThread.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <thread>

#include "gtest/gtest.h"

// From fake_cuda_driver.cpp, which only builds with Bazel link.
extern "C" int cuThreadExchangeStreamCaptureMode(int* mode) __attribute__((weak));

namespace torch_tensorrt::tests {
namespace {

using core::runtime::CheckpointSchedule;
using core::runtime::CheckpointThread;
using std::chrono::milliseconds;
using Clock = CheckpointThread::Clock;

constexpr std::chrono::seconds kLong{60}; // only a guard against hanging

bool run(std::function<void()> work, Clock::duration timeout = kLong) {
  return CheckpointThread::get().run(std::move(work), Clock::now() + timeout);
}

// A cache whose checkpoints run the function given by the test.
class TestClient {
 public:
  using Checkpoint = std::function<CheckpointThread::Result(const std::stop_token&)>;

  explicit TestClient(Checkpoint checkpoint) {
    CheckpointThread::get().add(
        this, {.checkpoint = std::move(checkpoint), .is_saved_at_exit = [] { return false; }, .save_at_exit = [] {}});
  }
  ~TestClient() {
    CheckpointThread::get().remove(this);
    run([] {}); // waits for a checkpoint that has begun
  }
  TestClient(const TestClient&) = delete;
  TestClient& operator=(const TestClient&) = delete;

  void compile() {
    CheckpointThread::get().begin(this, false);
    CheckpointThread::get().end(this);
  }
};

TEST(CheckpointThreadTest, RunsWorkOnOneThreadOfItsOwn) {
  std::thread::id first;
  std::thread::id second;
  EXPECT_TRUE(run([&first] { first = std::this_thread::get_id(); }));
  EXPECT_TRUE(run([&second] { second = std::this_thread::get_id(); }));
  EXPECT_EQ(first, second);
  EXPECT_NE(first, std::this_thread::get_id());
}

TEST(CheckpointThreadTest, TakesNoSignals) {
  sigset_t blocked;
  EXPECT_TRUE(run([&blocked] { ::pthread_sigmask(SIG_SETMASK, nullptr, &blocked); }));
  EXPECT_TRUE(::sigismember(&blocked, SIGTERM));
  ::pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
  EXPECT_FALSE(::sigismember(&blocked, SIGTERM)) << "the test's own thread";
}

TEST(CheckpointThreadTest, InvalidatesNoCaptureOfAnotherThread) {
  if (cuThreadExchangeStreamCaptureMode == nullptr) {
    GTEST_SKIP() << "this process has no libcuda.so.1";
  }
  constexpr int kGlobal = 0;
  constexpr int kRelaxed = 2;
  int mode = kRelaxed;
  EXPECT_TRUE(run([&mode] { cuThreadExchangeStreamCaptureMode(&mode); }));
  EXPECT_EQ(mode, kRelaxed);
  cuThreadExchangeStreamCaptureMode(&mode);
  EXPECT_EQ(mode, kGlobal) << "the test's own thread";
}

TEST(CheckpointThreadTest, WaitsForWorkNoLongerThanToldTo) {
  const auto may_end = std::make_shared<std::promise<void>>();
  EXPECT_FALSE(run([may_end] { may_end->get_future().wait(); }, milliseconds(1)));
  may_end->set_value();
  EXPECT_TRUE(run([] {}));
}

TEST(CheckpointThreadTest, WorkInterruptsACheckpoint) {
  std::promise<void> begun;
  TestClient client([&begun](const std::stop_token& stop) {
    begun.set_value();
    while (!stop.stop_requested()) {
      std::this_thread::sleep_for(milliseconds(1));
    }
    return CheckpointThread::Result{CheckpointSchedule::Found::kNothing, kLong};
  });
  client.compile();
  begun.get_future().wait();
  EXPECT_TRUE(run([] {}));
}

TEST(CheckpointThreadTest, ARemovedClientIsNotCheckpointed) {
  std::atomic<int> checkpoints = 0;
  {
    TestClient client([&checkpoints](const std::stop_token&) {
      ++checkpoints;
      return CheckpointThread::Result{CheckpointSchedule::Found::kNothing, kLong};
    });
    client.compile();
  }
  const int before = checkpoints; // usually 0
  std::this_thread::sleep_for(milliseconds(1100));
  EXPECT_EQ(checkpoints, before);
}

TEST(CheckpointThreadTest, RestsAHundredTimesAsLongAsItWorked) {
  constexpr milliseconds kWork{30};
  std::atomic<int> checkpoints = 0;
  std::promise<Clock::time_point> first_end;
  std::promise<Clock::time_point> second_start;
  TestClient client([&](const std::stop_token&) {
    if (++checkpoints == 2) {
      second_start.set_value(Clock::now());
    }
    const Clock::time_point begin = Clock::now();
    std::this_thread::sleep_for(kWork);
    const Clock::time_point end = Clock::now();
    if (checkpoints == 1) {
      first_end.set_value(end);
    }
    // Whatever the sleep took too long does not count as work.
    return CheckpointThread::Result{CheckpointSchedule::Found::kNothing, end - begin - kWork};
  });
  client.compile();
  const Clock::time_point end = first_end.get_future().get();
  client.compile(); // due within 1 s
  EXPECT_GE(second_start.get_future().get() - end, 100 * kWork);
}

TEST(CheckpointThreadTest, AForkedChildHasAThreadOfItsOwn) {
  const auto begun = std::make_shared<std::promise<void>>();
  const auto may_end = std::make_shared<std::promise<void>>();
  const auto work = [begun, may_end] {
    begun->set_value();
    may_end->get_future().wait();
  };
  ASSERT_FALSE(run(work, milliseconds(1)));
  begun->get_future().wait();
  const pid_t child = ::fork();
  if (child == 0) {
    bool is_run = false;
    ::_exit(run([&is_run] { is_run = true; }) && is_run ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  may_end->set_value();
  EXPECT_TRUE(run([] {}));
}

} // namespace
} // namespace torch_tensorrt::tests
