#include "tools/perf/bench_shared_starts.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <ATen/ops/from_blob.h>

#include "core/runtime/EngineLoader.h"
#include "core/runtime/RuntimeCacheHandle.h"
#include "core/runtime/TRTEngine.h"
#include "core/util/macros.h"
#include "tests/util/simulation/SimulatedDevice.h"
#include "tests/util/simulation/SimulatedPlan.h"
#include "tests/util/simulation/simulated_engine_loader.h"
#include "tools/perf/plain_file.h"

namespace torch_tensorrt::perf {
namespace {

using core::runtime::RuntimeCacheHandle;
using core::runtime::TRTEngine;
using tests::SimulatedDevice;
using tests::SimulatedKernel;
using Clock = std::chrono::steady_clock; // CLOCK_MONOTONIC, which is the same for all processes
using CachePtr = c10::intrusive_ptr<RuntimeCacheHandle>;

constexpr std::string_view kFirstResult = "--first-result";
constexpr std::string_view kSave = "--save-when-told";

constexpr uint64_t kKernels = 200;
constexpr uint64_t kKernelSize = 65536;
constexpr std::chrono::milliseconds kCompileTime{5};
constexpr int kColdStarts = 3;
constexpr int kWarmStarts = 15;

constexpr size_t kSavers = 32;
constexpr int kSaveRounds = 5;
constexpr uint64_t kDifferentKernels = 8; // per saver
constexpr uint64_t kSameKernels = 128;

double milliseconds(Clock::duration duration) {
  return std::chrono::duration<double, std::milli>(duration).count();
}

template <class Value>
void write_value(int fd, const Value& value) {
  check(::write(fd, &value, sizeof value) == ssize_t{sizeof value}, "write to another process");
}

template <class Value>
Value read_value(int fd) {
  Value value;
  check(::read(fd, &value, sizeof value) == ssize_t{sizeof value}, "read from another process");
  return value;
}

// Another process of this program, with a pipe from its stdout, and a pipe to its stdin unless `stdin_fd` is given.
class Process {
 public:
  explicit Process(std::vector<std::string> arguments, int stdin_fd = -1) {
    std::array<int, 2> in{-1, -1};
    std::array<int, 2> out{};
    check(stdin_fd >= 0 || ::pipe2(in.data(), O_CLOEXEC) == 0, "pipe2");
    check(::pipe2(out.data(), O_CLOEXEC) == 0, "pipe2");
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, stdin_fd >= 0 ? stdin_fd : in[0], STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, out[1], STDOUT_FILENO);
    arguments.insert(arguments.begin(), "/proc/self/exe");
    std::vector<char*> argv;
    for (std::string& argument : arguments) {
      argv.push_back(argument.data());
    }
    argv.push_back(nullptr);
    const int error = ::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    ::close(in[0]);
    ::close(out[1]);
    in_ = in[1];
    out_ = out[0];
    TORCHTRT_CHECK(error == 0, "Can't start a process: error " << error);
  }

  ~Process() {
    ::close(in_);
    ::close(out_);
    if (is_running_) {
      ::waitpid(pid_, nullptr, 0); // it ends when its stdin is closed
    }
  }

  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  int in() const {
    return in_;
  }
  int out() const {
    return out_;
  }

  void wait() {
    int status = 0;
    check(::waitpid(pid_, &status, 0) == pid_, "waitpid");
    is_running_ = false;
    TORCHTRT_CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "A process of the benchmark failed");
  }

 private:
  pid_t pid_ = 0;
  int in_ = -1;
  int out_ = -1;
  bool is_running_ = true;
};

std::unique_ptr<TRTEngine> make_engine(std::vector<SimulatedKernel> kernels, CachePtr cache) {
  return std::make_unique<TRTEngine>(
      core::runtime::load_engine(tests::make_plan(tests::relu_plan(std::move(kernels)))),
      core::runtime::RuntimeSettings{.runtime_cache = std::move(cache)});
}

// --- First result ---

struct FirstResult {
  Clock::duration time;
  uint64_t compilations;
};

// Deserializes the bytes of the memory file on stdin.
void deserialize_stdin(RuntimeCacheHandle& cache) {
  struct stat status{};
  check(::fstat(STDIN_FILENO, &status) == 0, "fstat");
  const auto size = static_cast<size_t>(status.st_size);
  void* const bytes = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE, STDIN_FILENO, 0);
  check(bytes != MAP_FAILED, "mmap");
  cache.deserialize(at::from_blob(bytes, {status.st_size}, at::kByte));
  ::munmap(bytes, size);
}

int give_first_result(const std::string& path, Clock::time_point spawned) {
  const auto device = std::make_shared<SimulatedDevice>();
  device->set_compile_time(kCompileTime);
  const tests::ScopedSimulation simulation(device);
  const auto cache = c10::make_intrusive<RuntimeCacheHandle>(path);
  if (path.empty()) {
    const auto start = Clock::now();
    deserialize_stdin(*cache);
    spawned += Clock::now() - start;
  }
  const auto engine = make_engine(tests::make_kernels("conv", kKernels, kKernelSize), cache);
  engine->execute(engine->example_inputs());
  const auto time = Clock::now() - spawned;
  write_value(STDOUT_FILENO, FirstResult{.time = time, .compilations = device->counters().compilations});
  return 0;
}

// Returns milliseconds. `path` is the cache's path. If it is empty, `blob_fd` has the cache.
double first_result(const std::string& path, int blob_fd, uint64_t expected_compilations) {
  const std::string now = std::to_string(Clock::now().time_since_epoch().count());
  Process process({std::string(kFirstResult), path, now}, blob_fd);
  const auto result = read_value<FirstResult>(process.out());
  process.wait();
  TORCHTRT_CHECK(
      result.compilations == expected_compilations,
      result.compilations << " kernels were compiled instead of " << expected_compilations);
  return milliseconds(result.time);
}

int memory_file_of(const std::string& path) {
  const int blob = ::memfd_create("cache", MFD_CLOEXEC);
  check(blob >= 0, "memfd_create");
  const Buffer bytes = read_plainly(path);
  const auto size = static_cast<size_t>(std::filesystem::file_size(path));
  for (size_t done = 0; done < size;) {
    const ssize_t n = ::write(blob, bytes.get() + done, size - done);
    check(n > 0, "write");
    done += static_cast<size_t>(n);
  }
  return blob;
}

void bench_first_result(const std::string& directory, Samples& samples) {
  const std::string path = directory + "/shared.bin";
  for (int i = 0; i < kColdStarts; ++i) {
    std::filesystem::remove(path);
    samples["cold_start"].push_back(first_result(path, STDIN_FILENO, kKernels));
  }
  const int blob = memory_file_of(path);
  for (int i = 0; i < kWarmStarts; ++i) {
    samples["start_from_memory"].push_back(first_result("", blob, 0));
    samples["warm_start"].push_back(first_result(path, STDIN_FILENO, 0));
  }
  ::close(blob);
}

// --- Saving at once ---

struct Save {
  Clock::time_point begin;
  Clock::time_point end;
  int64_t written;
};

// The kernels in the caches of the 32 processes.
struct Kernels {
  std::vector<std::string> prefixes; // of their names: one for all processes, or one per process
  uint64_t number;                   // per prefix
};

Kernels different_kernels() {
  Kernels kernels{.prefixes = {}, .number = kDifferentKernels};
  for (size_t i = 0; i < kSavers; ++i) {
    kernels.prefixes.push_back("saver" + std::to_string(i) + "_");
  }
  return kernels;
}

std::string file_of_round(const std::string& directory, int round) {
  return directory + "/saved" + std::to_string(round) + ".bin";
}

// Returns a cache without a path that has those kernels.
CachePtr make_cache(const std::string& prefix, uint64_t kernels) {
  auto cache = c10::make_intrusive<RuntimeCacheHandle>("");
  const auto engine = make_engine(tests::make_kernels(prefix, kernels, kKernelSize), cache);
  engine->execute(engine->example_inputs());
  return cache;
}

int save_when_told(const std::string& directory, const std::string& prefix, uint64_t kernels) {
  const tests::ScopedSimulation simulation(std::make_shared<SimulatedDevice>());
  const CachePtr cache = make_cache(prefix, kernels);
  write_value(STDOUT_FILENO, 'r');
  for (int round = 0; round < kSaveRounds; ++round) {
    const auto path = file_of_round(directory, read_value<int>(STDIN_FILENO));
    Save save{.begin = Clock::now(), .end = {}, .written = 0};
    save.written = cache->save(path);
    save.end = Clock::now();
    write_value(STDOUT_FILENO, save);
  }
  return 0;
}

// Throws unless the file has all those kernels.
void check_nothing_is_lost(const std::string& path, const Kernels& kernels) {
  const auto device = std::make_shared<SimulatedDevice>();
  const tests::ScopedSimulation simulation(device);
  const auto cache = c10::make_intrusive<RuntimeCacheHandle>(path);
  cache->set_autosave(false);
  for (const std::string& prefix : kernels.prefixes) {
    const auto engine = make_engine(tests::make_kernels(prefix, kernels.number, kKernelSize), cache);
    engine->execute(engine->example_inputs());
  }
  const uint64_t lost = device->counters().compilations;
  TORCHTRT_CHECK(lost == 0, lost << " kernels were lost from '" << path << "'");
}

// Returns milliseconds per round, from the beginning of the first save to the end of the last one. Throws if several
// processes write the same kernels.
std::vector<double> save_at_once(const std::string& directory, const Kernels& kernels) {
  std::vector<std::unique_ptr<Process>> processes;
  for (size_t i = 0; i < kSavers; ++i) {
    const std::string& prefix = kernels.prefixes[i % kernels.prefixes.size()];
    processes.push_back(
        std::make_unique<Process>(
            std::vector<std::string>{std::string(kSave), directory, prefix, std::to_string(kernels.number)}));
  }
  for (const auto& process : processes) {
    read_value<char>(process->out());
  }
  std::vector<double> times;
  for (int round = 0; round < kSaveRounds; ++round) {
    for (const auto& process : processes) {
      write_value(process->in(), round);
    }
    Save all{.begin = Clock::time_point::max(), .end = Clock::time_point::min(), .written = 0};
    size_t writers = 0;
    for (const auto& process : processes) {
      const auto save = read_value<Save>(process->out());
      all.begin = std::min(all.begin, save.begin);
      all.end = std::max(all.end, save.end);
      writers += save.written > 0 ? 1 : 0;
    }
    times.push_back(milliseconds(all.end - all.begin));
    TORCHTRT_CHECK(kernels.prefixes.size() > 1 || writers == 1, writers << " processes wrote the same kernels");
    const std::string path = file_of_round(directory, round);
    check_nothing_is_lost(path, kernels);
    std::filesystem::remove(path);
  }
  for (const auto& process : processes) {
    process->wait();
  }
  return times;
}

void save_in_turn(const std::string& directory, Samples& samples) {
  const tests::ScopedSimulation simulation(std::make_shared<SimulatedDevice>());
  const Kernels kernels = different_kernels();
  std::vector<CachePtr> caches;
  for (const std::string& prefix : kernels.prefixes) {
    caches.push_back(make_cache(prefix, kernels.number));
  }
  for (int round = 0; round < kSaveRounds; ++round) {
    const std::string path = file_of_round(directory, round);
    Clock::duration handles{};
    Clock::duration plain_writes{};
    for (const CachePtr& cache : caches) {
      const auto start = Clock::now();
      cache->save(path);
      handles += Clock::now() - start;
      const Buffer content = read_plainly(path);
      const auto size = static_cast<size_t>(std::filesystem::file_size(path));
      const auto start_of_plain = Clock::now();
      write_plainly(directory + "/plain_in_turn.bin", std::span(content.get(), size));
      plain_writes += Clock::now() - start_of_plain;
    }
    samples["saves_in_turn"].push_back(milliseconds(handles));
    samples["writes_in_turn"].push_back(milliseconds(plain_writes));
    std::filesystem::remove(path);
  }
}

// Does in one process, step by step, the work that 32 savers of the same kernels can't avoid. Each one serializes its
// cache, digests the bytes with std::hash as the handle does, and reads the file to compare it. One of them writes.
std::vector<double> write_once_and_read(const std::string& directory, const Kernels& kernels) {
  const tests::ScopedSimulation simulation(std::make_shared<SimulatedDevice>());
  const CachePtr cache = make_cache(kernels.prefixes.front(), kernels.number);
  const std::string path = directory + "/plain_once.bin";
  std::vector<double> times;
  for (int round = 0; round < kSaveRounds; ++round) {
    const auto start = Clock::now();
    for (size_t i = 0; i < kSavers; ++i) {
      const at::Tensor bytes = cache->serialize();
      const std::string_view view(static_cast<const char*>(bytes.const_data_ptr()), bytes.nbytes());
      static_cast<void>(std::hash<std::string_view>()(view));
      if (i == 0) {
        write_plainly(path, std::as_bytes(std::span(view)));
      }
      read_plainly(path);
    }
    times.push_back(milliseconds(Clock::now() - start));
  }
  return times;
}

} // namespace

void bench_shared_starts(const std::string& directory, Samples& samples) {
  bench_first_result(directory, samples);
  save_in_turn(directory, samples);
  samples["saves_at_once"] = save_at_once(directory, different_kernels());
  const Kernels same{.prefixes = {"same"}, .number = kSameKernels};
  samples["write_and_reads"] = write_once_and_read(directory, same);
  samples["same_saves_at_once"] = save_at_once(directory, same);
}

std::optional<int> shared_starts_main(int argc, char** argv) {
  if (argc == 4 && argv[1] == kFirstResult) {
    return give_first_result(argv[2], Clock::time_point(Clock::duration(std::stoll(argv[3]))));
  }
  if (argc == 5 && argv[1] == kSave) {
    return save_when_told(argv[2], argv[3], std::stoull(argv[4]));
  }
  return std::nullopt;
}

} // namespace torch_tensorrt::perf
