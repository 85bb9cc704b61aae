// The native half of bench_file_lock.py: measures FileLock in a given directory and prints one JSON object. Times are
// in seconds.

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/util/file_lock.h"
#include "core/util/macros.h"
#include "tests/util/processes/child_process.h"

namespace {

using namespace std::chrono_literals;
using torch_tensorrt::core::util::FileLock;
using torch_tensorrt::tests::Channel;
using torch_tensorrt::tests::ChildProcess;
using Clock = std::chrono::steady_clock; // CLOCK_MONOTONIC, which is the same for all processes

double seconds(Clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

double quantile(std::vector<double> values, double fraction) {
  std::sort(values.begin(), values.end());
  return values.at(static_cast<size_t>(fraction * static_cast<double>(values.size() - 1)));
}

// --- Uncontended ---

void bare_system_calls(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC, 0644);
  TORCHTRT_CHECK(file >= 0 && ::flock(file, LOCK_EX | LOCK_NB) == 0, "can't lock " << path);
  ::flock(file, LOCK_UN);
  ::close(file);
}

struct Uncontended {
  double bare = 0;
  double reused_object = 0;
};

// Returns the lower quartiles of many short turns, which other processes disturb less than the medians. The turns
// alternate, so that a change of the machine's speed affects both.
Uncontended measure_uncontended(const std::string& path) {
  constexpr int kTurns = 501;
  constexpr int kCallsPerTurn = 100;
  const auto turn = [](const auto& call) {
    const auto start = Clock::now();
    for (int i = 0; i < kCallsPerTurn; ++i) {
      call();
    }
    return seconds(Clock::now() - start) / kCallsPerTurn;
  };
  FileLock lock(path);
  std::vector<double> bare;
  std::vector<double> reused_object;
  for (int i = 0; i < kTurns; ++i) {
    bare.push_back(turn([&] { bare_system_calls(path); }));
    reused_object.push_back(turn([&] {
      TORCHTRT_CHECK(lock.try_lock(), "somebody else holds " << path);
      lock.unlock();
    }));
  }
  return {quantile(bare, 0.25), quantile(reused_object, 0.25)};
}

// --- Hand-over ---

// Returns the time from when the holder begins to release the lock until the waiter has it, for each round in which the
// waiter waited.
std::vector<double> measure_hand_over(const std::string& path) {
  constexpr int kShortRounds = 600; // held for up to 50 ms
  constexpr int kLongRounds = 6;    // held for 1 s
  ChildProcess holder([&](Channel& waiter) {
    std::mt19937 random(1);
    std::uniform_int_distribution<int> hold_us(0, 50'000);
    FileLock lock(path);
    for (int round = 0; round < kShortRounds + kLongRounds; ++round) {
      const bool is_long = round % (kShortRounds / kLongRounds + 1) == 0;
      waiter.expect("next");
      lock.lock();
      waiter.say("held");
      std::this_thread::sleep_for(is_long ? 1s : std::chrono::microseconds(hold_us(random)));
      const Clock::time_point release = Clock::now();
      lock.unlock();
      waiter.say(std::to_string(release.time_since_epoch().count()));
    }
  });
  std::vector<double> latencies;
  FileLock lock(path);
  for (int round = 0; round < kShortRounds + kLongRounds; ++round) {
    holder.channel().say("next");
    holder.channel().expect("held");
    const auto start = Clock::now();
    TORCHTRT_CHECK(lock.try_lock_for(), "no hand-over");
    const auto acquisition = Clock::now();
    lock.unlock();
    const Clock::time_point release{Clock::duration(std::stoll(holder.channel().hear()))};
    if (start < release) {
      latencies.push_back(seconds(acquisition - release));
    }
  }
  TORCHTRT_CHECK(holder.wait() == 0, "the holder failed");
  return latencies;
}

// --- CPU time of a waiter ---

double cpu_seconds() {
  rusage usage{};
  TORCHTRT_CHECK(::getrusage(RUSAGE_SELF, &usage) == 0, "getrusage failed");
  const auto to_seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return to_seconds(usage.ru_utime) + to_seconds(usage.ru_stime);
}

// Returns the share of one core that a waiter uses during a wait of 5 s without success.
double measure_waiter_cpu(const std::string& path) {
  ChildProcess holder([&](Channel& waiter) {
    FileLock lock(path);
    lock.lock();
    waiter.say("held");
    waiter.hear();
  });
  holder.channel().expect("held");
  FileLock lock(path);
  const double cpu = cpu_seconds();
  const auto start = Clock::now();
  TORCHTRT_CHECK(!lock.try_lock_for(5s), "two holders");
  const double elapsed = seconds(Clock::now() - start);
  return (cpu_seconds() - cpu) / elapsed;
}

} // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: file_lock_bench DIRECTORY\n");
    return 2;
  }
  const std::string path = std::string(argv[1]) + "/bench.lock";
  const Uncontended uncontended = measure_uncontended(path);
  const std::vector<double> hand_over = measure_hand_over(path);
  std::printf(
      "{\"bare\": %.9f, \"reused_object\": %.9f, "
      "\"hand_over_median\": %.6f, \"hand_over_p99\": %.6f, \"waiter_cpu_share\": %.6f}\n",
      uncontended.bare,
      uncontended.reused_object,
      quantile(hand_over, 0.5),
      quantile(hand_over, 0.99),
      measure_waiter_cpu(path));
  return 0;
}
