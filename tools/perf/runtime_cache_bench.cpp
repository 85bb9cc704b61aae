// The native half of bench_runtime_cache.py: measures RuntimeCacheFile in a given directory, runs the benchmarks of
// bench_shared_starts.h, and prints one JSON object with the samples.

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "core/runtime/RuntimeCacheFile.h"
#include "core/util/macros.h"
#include "tools/perf/bench_shared_starts.h"
#include "tools/perf/plain_file.h"

namespace torch_tensorrt::perf {
namespace {

using core::runtime::FileGeneration;
using core::runtime::RuntimeCacheFile;

constexpr size_t kMebibyte = 1024 * 1024;
constexpr size_t kSize = 64 * kMebibyte;
constexpr int kLoads = 31;
constexpr int kSaves = 21;

template <class Call>
double milliseconds(const Call& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

long peak_kibibytes() {
  rusage usage{};
  check(::getrusage(RUSAGE_SELF, &usage) == 0, "getrusage");
  return usage.ru_maxrss;
}

// Returns how far `call` raises the peak memory of a new process above what that process was forked with.
double extra_mebibytes(const std::function<void()>& call) {
  int pipe[2];
  check(::pipe(pipe) == 0, "pipe");
  const pid_t child = ::fork();
  check(child >= 0, "fork");
  if (child == 0) {
    const long before = peak_kibibytes();
    call();
    const long extra = peak_kibibytes() - before;
    ::_exit(::write(pipe[1], &extra, sizeof extra) == sizeof extra ? 0 : 1);
  }
  ::close(pipe[1]);
  long extra = 0;
  check(::read(pipe[0], &extra, sizeof extra) == sizeof extra, "read from the child");
  ::close(pipe[0]);
  check(::waitpid(child, nullptr, 0) == child, "waitpid");
  return static_cast<double>(extra) / 1024;
}

void bench(const std::string& directory, Samples& samples) {
  const std::string path = directory + "/cache.bin";
  const std::string plain_path = directory + "/plain.bin";
  std::vector<std::byte> bytes(kSize);
  std::mt19937_64 random; // incompressible, as kernels nearly are
  for (size_t i = 0; i < kSize; i += sizeof(uint64_t)) {
    const uint64_t value = random();
    std::memcpy(bytes.data() + i, &value, sizeof value);
  }

  core::runtime::LockWaits waits;
  const RuntimeCacheFile file(path, waits);
  const auto load = [&file] { TORCHTRT_CHECK(file.read(), "Another process removed the benchmark's file"); };
  std::optional<FileGeneration> generation;
  const auto save = [&] {
    const auto replaced = file.replace(bytes, generation);
    TORCHTRT_CHECK(replaced && replaced->is_written, "Another process saved to the benchmark's file");
    generation = replaced->generation;
  };
  for (int i = 0; i <= kSaves; ++i) {
    bytes[0] = static_cast<std::byte>(i);
    const double plain = milliseconds([&] { write_plainly(plain_path, bytes); });
    const double ours = milliseconds(save);
    if (i > 0) { // the first save finds nothing to replace
      samples["plain_save"].push_back(plain);
      samples["save"].push_back(ours);
    }
  }
  for (int i = 0; i <= kLoads; ++i) {
    samples["plain_load"].push_back(milliseconds([&] { read_plainly(path); }));
    samples["load"].push_back(milliseconds(load));
  }
  samples["memory_of_load"].push_back(extra_mebibytes(load));
  bytes[0] = std::byte{0xff};
  samples["memory_of_save"].push_back(extra_mebibytes(save));
}

void print(const Samples& samples) {
  const char* separator = "{";
  for (const auto& [name, values] : samples) {
    std::printf("%s\"%s\": [%.6f", separator, name.c_str(), values.front());
    for (size_t i = 1; i < values.size(); ++i) {
      std::printf(", %.6f", values[i]);
    }
    std::printf("]");
    separator = ",\n ";
  }
  std::printf("}\n");
}

int run(int argc, char** argv) {
  if (const auto status = shared_starts_main(argc, argv)) {
    return *status;
  }
  if (argc != 2) {
    std::fprintf(stderr, "usage: runtime_cache_bench DIRECTORY\n");
    return 2;
  }
  Samples samples;
  bench(argv[1], samples);
  bench_shared_starts(argv[1], samples);
  print(samples);
  return 0;
}

} // namespace
} // namespace torch_tensorrt::perf

int main(int argc, char** argv) {
  try {
    return torch_tensorrt::perf::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
