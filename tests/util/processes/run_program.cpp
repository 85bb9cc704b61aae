#include "tests/util/processes/run_program.h"

#include <stdexcept>

#ifdef _WIN32
#include <process.h>
#else
#include <spawn.h>
#include <sys/wait.h>

#include <cerrno>

extern char** environ;
#endif

namespace torch_tensorrt::tests {

int run_program(const std::vector<std::string>& argv) {
  std::vector<char*> arguments;
  for (const std::string& argument : argv) {
    arguments.push_back(const_cast<char*>(argument.c_str())); // neither system changes the arguments
  }
  arguments.push_back(nullptr);
#ifdef _WIN32
  const std::intptr_t status = ::_spawnv(_P_WAIT, arguments[0], arguments.data());
  const bool is_started = status != -1;
#else
  pid_t pid = 0;
  int status = 0;
  const bool is_started = ::posix_spawn(&pid, arguments[0], nullptr, nullptr, arguments.data(), environ) == 0;
  while (is_started && ::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) {
      throw std::runtime_error("waitpid failed for " + argv[0]);
    }
  }
  if (is_started && !WIFEXITED(status)) {
    throw std::runtime_error(argv[0] + " was ended by a signal");
  }
  status = WEXITSTATUS(status);
#endif
  if (!is_started) {
    throw std::runtime_error("can't start " + argv[0]);
  }
  return static_cast<int>(status);
}

} // namespace torch_tensorrt::tests
