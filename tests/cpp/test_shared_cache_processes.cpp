// End-to-end tests on the simulated device: processes whose engines share one runtime cache file.

#include <stdlib.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "core/util/file_lock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cpp/runtime_testing.h"
#include "tests/util/processes/EngineProcess.h"

namespace torch_tensorrt::tests {
namespace {

using core::util::FileLock;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsSupersetOf;

class SharedCacheTest : public ::testing::Test {
 protected:
  // Runs a whole process, which starts an engine with these kernels and exits. It must succeed. Returns its reply to
  // the start.
  std::string run_process(const std::string& kernels) const {
    EngineProcess process(path_);
    const std::string answer = process.ask("start " + kernels);
    EXPECT_EQ(process.exit(), 0);
    EXPECT_EQ(process.errors(), "");
    return answer;
  }

  KernelNames kernels_on_disk() const {
    return kernels_in(read_file(path_));
  }

  // Waits until a running process has saved them. Returns false if that takes more than ten minutes: after a checkpoint
  // that takes 3 s on a loaded machine, the next one may come five minutes later.
  bool wait_for_kernels(const KernelNames& names) const {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(10);
    while (!std::filesystem::exists(path_) || kernels_on_disk() != names) {
      if (std::chrono::steady_clock::now() > deadline) {
        return false;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return true;
  }

  const TemporaryDirectory directory_;
  const std::string path_ = directory_.file("cache.bin");
};

class SharedCacheStepsTest : public SharedCacheTest {
  const WithoutCheckpoints without_checkpoints_;
};

std::string joined(const KernelNames& names) {
  std::string text;
  for (const std::string& name : names) {
    text += (text.empty() ? "" : " ") + name;
  }
  return text;
}

TEST_F(SharedCacheTest, SavesWhileTheStackUnwinds) {
  EngineProcess process(path_);
  EXPECT_EQ(process.ask("throw a b"), "caught");
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b"));
  EXPECT_EQ(process.exit(), 0);
  EXPECT_EQ(process.errors(), "");
}

TEST_F(SharedCacheTest, EnginesInStaticStorageSaveAtExit) {
  EngineProcess process(path_);
  EXPECT_EQ(process.ask("start a b"), "compiled 2, cached 0");
  EXPECT_EQ(process.ask("start b c"), "compiled 1, cached 1") << "a path has one cache per process";
  EXPECT_EQ(process.exit(), 0);
  EXPECT_EQ(process.errors(), "");
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a", "b", "c"));
}

TEST_F(SharedCacheTest, AKilledProcessHasSaved) {
  {
    EngineProcess process(path_);
    process.ask("start a");
    EXPECT_TRUE(wait_for_kernels({"a"}));
    process.ask("start b c");
    EXPECT_TRUE(wait_for_kernels({"a", "b", "c"}));
    EXPECT_EQ(process.errors(), "");
  }
  EXPECT_EQ(run_process("a b c"), "compiled 0, cached 3");
}

TEST_F(SharedCacheStepsTest, AnExitEndsAlthoughSomebodyHasTheLock) {
  const auto start = std::chrono::steady_clock::now();
  FileLock lock(FileLock::lock_path(path_));
  EngineProcess process(path_);
  process.ask("start a");
  lock.lock();
  EXPECT_EQ(process.exit(), 0);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::minutes(10));
  EXPECT_THAT(warnings_in(process.errors()), ElementsAre(HasSubstr("Can't save the runtime cache '" + path_ + "'")));
}

TEST_F(SharedCacheStepsTest, AnExitWaitsForALock) {
  FileLock lock(FileLock::lock_path(path_));
  EngineProcess process(path_);
  process.ask("start a");
  lock.lock();
  std::thread holder([&] {
    while (!process.has_open(lock.path())) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    lock.unlock();
  });
  EXPECT_EQ(process.exit(), 0);
  holder.join();
  EXPECT_EQ(process.errors(), "");
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
}

TEST_F(SharedCacheStepsTest, EnginesInStaticStorageThatCannotSaveWarnAtExit) {
  const std::string path = directory_.file("gone/cache.bin");
  std::filesystem::create_directory(directory_.file("gone"));
  EngineProcess process(path);
  process.ask("start a");
  std::filesystem::remove_all(directory_.file("gone"));
  EXPECT_EQ(process.exit(), 0);
  EXPECT_THAT(warnings_in(process.errors()), ElementsAre(HasSubstr(path)));
}

TEST_F(SharedCacheTest, AHeldLockDelaysAStart) {
  EXPECT_EQ(run_process("a b"), "compiled 2, cached 0");
  const std::string with_two = read_file(path_);
  EXPECT_EQ(run_process("a b c"), "compiled 1, cached 2");
  const std::string with_three = read_file(path_);
  write_file(path_, with_two);

  FileLock lock(FileLock::lock_path(path_));
  lock.lock();
  EngineProcess process(path_);
  process.tell("start a b c");
  while (!process.has_open(lock.path())) {
    ASSERT_TRUE(process.is_silent()) << process.hear();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  write_file(path_, with_three); // seen by everyone who waited for the lock
  EXPECT_TRUE(process.is_silent());
  lock.unlock();
  EXPECT_EQ(process.hear(), "compiled 0, cached 3");
  EXPECT_EQ(process.exit(), 0);
  EXPECT_EQ(process.errors(), "");
}

TEST_F(SharedCacheStepsTest, AHeldLockDelaysASave) {
  FileLock lock(FileLock::lock_path(path_));
  EngineProcess process(path_);
  process.ask("start a");
  lock.lock();
  process.tell("end");
  while (!process.has_open(lock.path())) {
    ASSERT_TRUE(process.is_silent()) << process.hear();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_FALSE(std::filesystem::exists(path_));
  lock.unlock();
  EXPECT_EQ(process.hear(), "ended");
  EXPECT_THAT(kernels_on_disk(), ElementsAre("a"));
  EXPECT_EQ(process.exit(), 0);
  EXPECT_EQ(process.errors(), "");
}

TEST_F(SharedCacheStepsTest, OfTwoVersionsTheLastToSaveHasTheFile) {
  EngineProcess old(path_);
  EngineProcess upgraded(path_, DeserializeMode::kAdds, "99.0.0.0");
  EXPECT_EQ(old.ask("start a"), "compiled 1, cached 0");
  EXPECT_EQ(upgraded.ask("start b"), "compiled 1, cached 0");
  EXPECT_EQ(upgraded.exit(), 0);
  EXPECT_EQ(upgraded.errors(), "");
  EXPECT_EQ(old.exit(), 0);
  EXPECT_THAT(warnings_in(old.errors()), ElementsAre(AllOf(HasSubstr(path_), HasSubstr("rejected"))));
  EXPECT_EQ(run_process("a"), "compiled 0, cached 1");
}

TEST_F(SharedCacheTest, EightProcessesInFiftyRoundsLoseNoKernel) {
  constexpr int kProcesses = 8;
  constexpr int kRounds = 50;
  std::vector<std::unique_ptr<EngineProcess>> processes;
  for (int i = 0; i < kProcesses; ++i) {
    processes.push_back(std::make_unique<EngineProcess>(path_));
  }
  KernelNames saved;
  for (int round = 0; round < kRounds; ++round) {
    for (int i = 0; i < kProcesses; ++i) {
      // This gives the process something to load, too.
      const std::string old = saved.empty() ? "" : *saved.begin() + " " + *saved.rbegin();
      processes.at(static_cast<size_t>(i))->tell("start " + old + " k" + std::to_string(round * kProcesses + i));
    }
    for (const auto& process : processes) {
      ASSERT_EQ(process->hear(), saved.empty() ? "compiled 1, cached 0" : "compiled 1, cached 2");
    }
    for (const auto& process : processes) {
      process->tell("end");
    }
    for (int i = 0; i < kProcesses; ++i) {
      ASSERT_EQ(processes.at(static_cast<size_t>(i))->hear(), "ended");
      saved.insert("k" + std::to_string(round * kProcesses + i));
    }
    ASSERT_EQ(kernels_on_disk(), saved) << "in round " << round;
  }
  for (const auto& process : processes) {
    EXPECT_EQ(process->exit(), 0);
    EXPECT_EQ(process->errors(), "");
  }
  EXPECT_EQ(run_process(joined(saved)), "compiled 0, cached 400");
  EXPECT_THAT(names_in(directory_.path()), ElementsAre("cache.bin", "cache.bin.lock", "cache.bin.merge.lock"));
}

TEST_F(SharedCacheTest, KilledSaversTakeNobodysKernelsWithThem) {
  constexpr int kProcesses = 4;
  constexpr int kRounds = 12;
  std::minstd_rand random;
  std::array<std::unique_ptr<EngineProcess>, kProcesses> processes;
  KernelNames saved;
  for (int round = 0; round < kRounds; ++round) {
    std::array<std::string, kProcesses> names;
    for (size_t i = 0; i < kProcesses; ++i) {
      if (processes.at(i) == nullptr) {
        processes.at(i) = std::make_unique<EngineProcess>(path_);
      }
      names.at(i) = "k" + std::to_string(round * kProcesses + static_cast<int>(i));
      processes.at(i)->tell("start " + names.at(i));
    }
    for (const auto& process : processes) {
      process->hear();
    }
    // Each process has a kernel that no other process has, so all but the first one merge, one after another.
    for (const auto& process : processes) {
      process->tell("save");
    }
    const size_t victim = random() % kProcesses;
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20'000)); // about the time that these saves take
    processes.at(victim).reset();
    for (size_t i = 0; i < kProcesses; ++i) {
      if (i != victim) {
        ASSERT_EQ(processes.at(i)->hear(), "saved");
        saved.insert(names.at(i));
      }
    }
    ASSERT_THAT(kernels_on_disk(), IsSupersetOf(saved)) << "in round " << round;
  }
  for (const auto& process : processes) {
    if (process != nullptr) {
      EXPECT_EQ(process->exit(), 0);
      EXPECT_EQ(process->errors(), "");
    }
  }
  EXPECT_EQ(run_process(joined(saved)), "compiled 0, cached 36");
}

// Each of two processes with different kernels starts an engine, saves, compiles one more kernel, and ends its engines,
// which saves that kernel.
class SharedCacheOrderTest : public SharedCacheStepsTest {
 protected:
  enum Step { kStart, kSave, kEnd, kSteps };

  struct Actor {
    void take(Step step) {
      if (step == kStart) {
        process.ask("start " + name + "0");
      } else if (step == kSave) {
        EXPECT_EQ(process.ask("save"), "saved");
      } else {
        EXPECT_EQ(process.ask("start " + name + "1"), "compiled 1, cached 0");
        EXPECT_EQ(process.ask("end"), "ended");
      }
    }

    const std::string name;
    EngineProcess process;
  };

  // Runs the steps of both processes in every possible order, each time with a new file. Calls check(actor, step) after
  // each step and check_end() after the last one. Returns what both wrote to stderr.
  template <class Check, class CheckEnd>
  std::string for_each_order(DeserializeMode mode, const Check& check, const CheckEnd& check_end) {
    Actor a{.name = "a", .process = EngineProcess(path_, mode)};
    Actor b{.name = "b", .process = EngineProcess(path_, mode)};
    std::vector<bool> is_turn_of_b(2 * size_t{kSteps}, false);
    std::fill(is_turn_of_b.begin() + kSteps, is_turn_of_b.end(), true);
    int orders = 0;
    do {
      SCOPED_TRACE("in the order " + ::testing::PrintToString(is_turn_of_b));
      std::filesystem::remove(path_);
      std::array<int, 2> steps{};
      for (const bool is_b : is_turn_of_b) {
        Actor& actor = is_b ? b : a;
        const auto step = static_cast<Step>(steps.at(is_b ? 1 : 0)++);
        actor.take(step);
        check(actor.name, step);
      }
      check_end();
      ++orders;
    } while (std::next_permutation(is_turn_of_b.begin(), is_turn_of_b.end()));
    EXPECT_EQ(orders, 20);
    EXPECT_EQ(a.process.exit(), 0);
    EXPECT_EQ(b.process.exit(), 0);
    return a.process.errors() + b.process.errors();
  }
};

TEST_F(SharedCacheOrderTest, NothingIsLostInAnyOrder) {
  KernelNames saved;
  const std::string errors = for_each_order(
      DeserializeMode::kAdds,
      [&](const std::string& name, Step step) {
        if (step != kStart) {
          saved.insert(name + (step == kSave ? "0" : "1"));
          EXPECT_EQ(kernels_on_disk(), saved);
        }
      },
      [&] {
        EXPECT_THAT(saved, ElementsAre("a0", "a1", "b0", "b1"));
        saved.clear();
      });
  EXPECT_EQ(errors, "");
}

TEST_F(SharedCacheOrderTest, WhereDeserializeReplacesTheSaversOwnWinAndEachLossIsAWarning) {
  KernelNames on_disk;
  std::map<std::string, KernelNames> own; // what each process loaded and compiled
  size_t losses = 0;
  const std::string errors = for_each_order(
      DeserializeMode::kReplaces,
      [&](const std::string& name, Step step) {
        KernelNames& mine = own[name];
        if (step == kStart) {
          mine = on_disk;
        } else {
          mine.insert(name + (step == kSave ? "0" : "1"));
          losses += std::includes(mine.begin(), mine.end(), on_disk.begin(), on_disk.end()) ? 0U : 1U;
          on_disk = mine;
          EXPECT_EQ(kernels_on_disk(), on_disk);
        }
      },
      [&] { on_disk.clear(); });
  const std::vector<std::string> warnings = warnings_in(errors);
  EXPECT_GT(losses, 0U);
  EXPECT_EQ(warnings.size(), losses);
  EXPECT_THAT(warnings, Each(AllOf(HasSubstr(path_), HasSubstr("could not be merged"))));
}

} // namespace
} // namespace torch_tensorrt::tests

int main(int argc, char** argv) {
  if (const auto status = torch_tensorrt::tests::engine_process_main(argc, argv)) {
    return *status;
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
