// Measures RuntimeCacheFile's read and replace of 64 MiB, as ratios to the bare system calls, and the memory that they
// need in addition to the bytes themselves. Then runs the benchmarks of bench_shared_starts.h.
//
//   bench_runtime_cache [--dir DIRECTORY] [--json FILE]

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "core/runtime/RuntimeCacheFile.h"
#include "core/util/macros.h"
#include "tools/perf/Report.h"
#include "tools/perf/bench_shared_starts.h"
#include "tools/perf/plain_file.h"

namespace torch_tensorrt::perf {
namespace {

namespace fs = std::filesystem;
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

void bench(const std::string& directory, Report& report) {
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
  std::vector<double> plain_saves;
  std::vector<double> saves;
  for (int i = 0; i <= kSaves; ++i) {
    bytes[0] = static_cast<std::byte>(i);
    const double plain = milliseconds([&] { write_plainly(plain_path, bytes); });
    const double ours = milliseconds(save);
    if (i > 0) { // the first save finds nothing to replace
      plain_saves.push_back(plain);
      saves.push_back(ours);
    }
  }

  std::vector<double> plain_loads;
  std::vector<double> loads;
  for (int i = 0; i <= kLoads; ++i) {
    plain_loads.push_back(milliseconds([&] { read_plainly(path); }));
    loads.push_back(milliseconds(load));
  }

  const auto add_speed = [&report](
                             const char* name, const std::vector<double>& plain, const std::vector<double>& ours) {
    const double baseline = median(plain);
    const double measured = median(ours);
    report.add({name, "ms", baseline, measured, baseline / measured, Report::Target::kAtLeast, 0.85});
  };
  const auto add_memory = [&report](const char* name, double measured, double limit) {
    const double size = static_cast<double>(kSize / kMebibyte);
    report.add({name, "MiB", size, measured, measured / size, Report::Target::kAtMost, limit});
  };
  add_speed("load 64 MiB: speed to open, fstat, read", plain_loads, loads);
  add_memory("load 64 MiB: peak extra memory to file", extra_mebibytes(load), 1.1);
  add_speed("save 64 MiB: speed to write, fsync, rename", plain_saves, saves);
  bytes[0] = std::byte{0xff};
  add_memory("save 64 MiB: peak extra memory to file", extra_mebibytes(save), 0.1);
}

int run(int argc, char** argv) {
  fs::path parent = fs::temp_directory_path();
  std::string json;
  for (int i = 1; i < argc; ++i) {
    const std::string_view option = argv[i];
    if (option == "--dir" && i + 1 < argc) {
      parent = argv[++i];
    } else if (option == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else {
      std::fprintf(stderr, "usage: %s [--dir DIRECTORY] [--json FILE]\n", argv[0]);
      return 2;
    }
  }
  std::string directory = (parent / "bench_runtime_cache.XXXXXX").string();
  check(::mkdtemp(directory.data()) != nullptr, "mkdtemp");
  Report report;
  try {
    bench(directory, report);
    bench_shared_starts(directory, report);
  } catch (...) {
    fs::remove_all(directory);
    throw;
  }
  fs::remove_all(directory);
  report.print();
  if (!json.empty()) {
    report.write_json(json);
  }
  return 0;
}

} // namespace
} // namespace torch_tensorrt::perf

int main(int argc, char** argv) {
  try {
    if (const auto status = torch_tensorrt::perf::shared_starts_main(argc, argv)) {
      return *status;
    }
    return torch_tensorrt::perf::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[0], error.what());
    return 1;
  }
}
