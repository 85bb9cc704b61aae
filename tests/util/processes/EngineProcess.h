#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>

#include "tests/util/processes/child_process.h"
#include "tests/util/simulation/SimulatedDevice.h"
#include "tests/util/temporary_directory.h"

namespace torch_tensorrt::tests {

// A process that shares a runtime cache file: this program once more, exec'ed, with engines on a simulated device of
// its own. The program's main() begins with engine_process_main(). One object in one thread at a time; Linux only.
//
// It is told what to do, a line at a time, and answers each with a line. KERNELS are names, separated by spaces.
//   start KERNELS    "compiled N, cached M"    makes an engine, with the process's cache for the path, and runs it
//   save             "saved"                   saves the cache of the engines
//   end              "ended"                   destroys all engines, which saves their cache
//   throw KERNELS    "caught"                  does as start does, in a function that an exception then leaves
//   exit                                       leaves main() while static storage still has the engines
// The engines are in static storage, constructed before any other static of theirs, so destroyed last. A failure ends
// the process with exit status 1 and its text on stderr.
class EngineProcess {
 public:
  explicit EngineProcess(
      const std::string& cache_path,
      DeserializeMode mode = DeserializeMode::kAdds,
      const std::string& tensorrt_rtx_version = SimulatedEnvironment().tensorrt_rtx_version);
  // Kills it if it still runs.
  ~EngineProcess();

  EngineProcess(const EngineProcess&) = delete;
  EngineProcess& operator=(const EngineProcess&) = delete;

  void tell(const std::string& line) {
    channel_->say(line);
  }
  // Throws std::runtime_error if it is gone, or silent for a minute.
  std::string hear() {
    return channel_->hear();
  }
  std::string ask(const std::string& line) {
    tell(line);
    return hear();
  }
  // Whether hear() would have to wait.
  bool is_silent() const;

  // Whether it has that file open now.
  bool has_open(const std::filesystem::path& path) const;

  // Tells it to exit and waits for its end: its exit status, or 128 and the number of the signal that ended it.
  int exit();

  // What it wrote to stderr so far.
  std::string errors() const;

 private:
  int wait();

  const TemporaryDirectory directory_;
  int socket_ = -1; // channel_'s
  std::optional<Channel> channel_;
  pid_t pid_ = 0;
  bool is_running_ = false;
};

// Runs the process, if that is what this one was started for, and returns its exit status; none otherwise.
std::optional<int> engine_process_main(int argc, char** argv);

} // namespace torch_tensorrt::tests
