#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>

#include "tests/util/processes/child_process.h"
#include "tests/util/simulation/SimulatedDevice.h"
#include "tests/util/temporary_directory.h"

namespace torch_tensorrt::tests {

// A process that shares a runtime cache file: a second instance of this program, started by exec, whose engines run on
// a simulated device of its own. The program's main() must begin with engine_process_main(). One object may be used by
// one thread at a time. Linux only.
//
// The process reads commands, one per line, and replies to each with one line. KERNELS are names, separated by spaces.
//   start KERNELS    "compiled N, cached M"    makes an engine, with the process's cache for the path, and runs it
//   save             "saved"                   saves the cache of the engines
//   end              "ended"                   destroys all engines, which saves their cache
//   throw KERNELS    "caught"                  does what start does, in a function that an exception then leaves
//   exit                                       leaves main() while static storage still holds the engines
// The engines are in static storage. They are constructed before every static object that they use, and so destroyed
// after it. If a command fails, the process exits with status 1 and prints the reason on stderr.
class EngineProcess {
 public:
  explicit EngineProcess(
      const std::string& cache_path,
      DeserializeMode mode = DeserializeMode::kAdds,
      const std::string& tensorrt_rtx_version = SimulatedEnvironment().tensorrt_rtx_version);
  // Kills the process if it is still running.
  ~EngineProcess();

  EngineProcess(const EngineProcess&) = delete;
  EngineProcess& operator=(const EngineProcess&) = delete;

  void tell(const std::string& line) {
    channel_->say(line);
  }
  // Throws std::runtime_error if the process is gone or silent for a minute.
  std::string hear() {
    return channel_->hear();
  }
  std::string ask(const std::string& line) {
    tell(line);
    return hear();
  }
  // Returns true if hear() would have to wait.
  bool is_silent() const;

  // Returns true if the process has that file open now.
  bool has_open(const std::filesystem::path& path) const;

  // Tells the process to exit and waits for its end. Returns its exit status, or 128 plus the number of the signal that
  // ended it.
  int exit();

  // What the process has written to stderr so far.
  std::string errors() const;

 private:
  int wait();

  const TemporaryDirectory directory_;
  int socket_ = -1; // owned by channel_
  std::optional<Channel> channel_;
  pid_t pid_ = 0;
  bool is_running_ = false;
};

// If this process was started by EngineProcess, serves its commands and returns the exit status. Otherwise returns
// nullopt.
std::optional<int> engine_process_main(int argc, char** argv);

} // namespace torch_tensorrt::tests
