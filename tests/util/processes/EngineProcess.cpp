#include "tests/util/processes/EngineProcess.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <ATen/ops/equal.h>

#include "core/runtime/TRTEngine.h"
#include "tests/util/simulation/SimulatedPlan.h"
#include "tests/util/simulation/simulated_engine_loader.h"

namespace torch_tensorrt::tests {
namespace {

using core::runtime::RuntimeCacheHandle;
using core::runtime::TRTEngine;
using EnginePtr = std::shared_ptr<TRTEngine>;

constexpr std::string_view kOption = "--engine-process";
constexpr int kSocket = 3;

std::vector<EnginePtr> engines;

class Server {
 public:
  Server(std::string cache_path, DeserializeMode mode, const std::string& version)
      : cache_path_(std::move(cache_path)),
        device_(std::make_shared<SimulatedDevice>(SimulatedEnvironment{.tensorrt_rtx_version = version})) {
    device_->set_deserialize_mode(mode);
    core::runtime::set_engine_loader(simulated_engine_loader(device_));
  }

  void serve(Channel& parent) {
    for (;;) {
      std::istringstream line(parent.hear());
      std::string command;
      line >> command;
      if (command == "exit") {
        return;
      }
      const std::vector<std::string> kernels{std::istream_iterator<std::string>(line), {}};
      parent.say(obey(command, kernels));
    }
  }

 private:
  std::string obey(const std::string& command, const std::vector<std::string>& kernels) {
    if (command == "start") {
      device_->reset_counters();
      engines.push_back(run_engine(kernels));
      const SimulatedDevice::Counters counters = device_->counters();
      return "compiled " + std::to_string(counters.compilations) + ", cached " + std::to_string(counters.cache_hits);
    }
    if (command == "save") {
      RuntimeCacheHandle::for_path(cache_path_)->save();
      return "saved";
    }
    if (command == "end") {
      engines.clear();
      return "ended";
    }
    if (command == "throw") {
      try {
        start_and_throw(kernels);
      } catch (const std::logic_error&) {
        return "caught";
      }
    }
    throw std::runtime_error("unknown command '" + command + "'");
  }

  void start_and_throw(const std::vector<std::string>& kernels) const {
    const EnginePtr engine = run_engine(kernels);
    throw std::logic_error("the caller's exception");
  }

  EnginePtr run_engine(const std::vector<std::string>& kernels) const {
    std::vector<SimulatedKernel> code;
    for (const std::string& name : kernels) {
      code.push_back({.name = name, .size = 1000 + 10 * name.size()});
    }
    auto engine = std::make_shared<TRTEngine>(
        core::runtime::load_engine(make_plan(relu_plan(std::move(code)))),
        core::runtime::RuntimeSettings{.runtime_cache = RuntimeCacheHandle::for_path(cache_path_)});
    const std::vector<at::Tensor> ones = engine->example_inputs();
    require(at::equal(engine->execute(ones).at(0), ones.at(0)), "the engine's result is wrong");
    return engine;
  }

  const std::string cache_path_;
  const std::shared_ptr<SimulatedDevice> device_;
};

[[noreturn]] void fail(const char* what, int code = errno) {
  throw std::system_error(code, std::system_category(), what);
}

} // namespace

EngineProcess::EngineProcess(
    const std::string& cache_path,
    DeserializeMode mode,
    const std::string& tensorrt_rtx_version) {
  std::array<int, 2> sockets{};
  // The exec of every other process closes these, so that the end of this process is noticed.
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets.data()) != 0) {
    fail("socketpair");
  }
  socket_ = sockets[0];
  channel_.emplace(socket_);
  const std::string stderr_path = directory_.file("stderr");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, stderr_path.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
  posix_spawn_file_actions_adddup2(&actions, sockets[1], kSocket);
  std::array<std::string, 5> arguments{
      "/proc/self/exe",
      std::string(kOption),
      cache_path,
      mode == DeserializeMode::kAdds ? "adds" : "replaces",
      tensorrt_rtx_version};
  std::vector<char*> argv;
  for (std::string& argument : arguments) {
    argv.push_back(argument.data());
  }
  argv.push_back(nullptr);
  const int error = ::posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(sockets[1]);
  if (error != 0) {
    fail("posix_spawn", error);
  }
  is_running_ = true;
}

EngineProcess::~EngineProcess() {
  if (is_running_) {
    ::kill(pid_, SIGKILL);
    wait();
  }
}

bool EngineProcess::is_silent() const {
  pollfd readable{.fd = socket_, .events = POLLIN, .revents = 0};
  return ::poll(&readable, 1, 0) == 0;
}

bool EngineProcess::has_open(const std::filesystem::path& path) const {
  const std::filesystem::path wanted = std::filesystem::canonical(path);
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid_) + "/fd")) {
    std::error_code closed_meanwhile;
    if (std::filesystem::read_symlink(entry.path(), closed_meanwhile) == wanted) {
      return true;
    }
  }
  return false;
}

int EngineProcess::exit() {
  tell("exit");
  return wait();
}

std::string EngineProcess::errors() const {
  std::ifstream file(directory_.file("stderr"), std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

int EngineProcess::wait() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0) {
    if (errno != EINTR) {
      return -1;
    }
  }
  is_running_ = false;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

std::optional<int> engine_process_main(int argc, char** argv) {
  if (argc != 5 || argv[1] != kOption) {
    return std::nullopt;
  }
  try {
    const std::string_view mode = argv[3];
    Channel parent(kSocket);
    Server(argv[2], mode == "adds" ? DeserializeMode::kAdds : DeserializeMode::kReplaces, argv[4]).serve(parent);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

} // namespace torch_tensorrt::tests
