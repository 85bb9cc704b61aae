#include "tests/util/processes/child_process.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace torch_tensorrt::tests {
namespace {

constexpr std::chrono::seconds kPatience{60};

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::system_category(), what);
}

std::array<int, 2> socket_pair() {
  std::array<int, 2> sockets{};
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, sockets.data()) != 0) {
    fail("socketpair");
  }
  return sockets;
}

[[noreturn]] void run_child(const std::function<void(Channel&)>& body, int socket) {
  int status = 0;
  try {
    Channel parent(socket);
    body(parent);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "child process: %s\n", error.what());
    status = 1;
  }
  ::_exit(status);
}

} // namespace

void require(bool condition, const std::string& what) {
  if (!condition) {
    throw std::runtime_error(what);
  }
}

Channel::~Channel() {
  ::close(socket_);
}

void Channel::say(const std::string& word) {
  const std::string line = word + '\n';
  for (size_t sent = 0; sent < line.size();) {
    const ssize_t count = ::send(socket_, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
    if (count >= 0) {
      sent += static_cast<size_t>(count);
    } else if (errno != EINTR) {
      fail("send");
    }
  }
}

std::string Channel::hear() {
  std::string word;
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    require(left.count() > 0, "the other process is silent");
    pollfd readable{socket_, POLLIN, 0};
    const int ready = ::poll(&readable, 1, static_cast<int>(left.count()));
    if (ready < 0 && errno != EINTR) {
      fail("poll");
    }
    if (ready <= 0) {
      continue;
    }
    char byte = 0;
    const ssize_t count = ::read(socket_, &byte, 1);
    if (count < 0 && errno != EINTR) {
      fail("read");
    }
    require(count != 0, "the other process is gone");
    if (count == 1) {
      if (byte == '\n') {
        return word;
      }
      word += byte;
    }
  }
}

void Channel::expect(const std::string& word) {
  const std::string heard = hear();
  require(heard == word, "expected '" + word + "' from the other process, got '" + heard + "'");
}

ChildProcess::ChildProcess(const std::function<void(Channel&)>& body) : ChildProcess(body, socket_pair()) {}

ChildProcess::ChildProcess(const std::function<void(Channel&)>& body, const std::array<int, 2>& sockets)
    : pid_(::fork()), channel_(sockets[0]) {
  if (pid_ == 0) {
    ::close(sockets[0]);
    run_child(body, sockets[1]);
  }
  ::close(sockets[1]);
  if (pid_ < 0) {
    fail("fork");
  }
}

ChildProcess::~ChildProcess() {
  if (is_running_) {
    kill();
  }
}

void ChildProcess::wait_until_asleep() const {
#ifdef __linux__
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/stat");
    std::string stat;
    std::getline(file, stat);
    // The state follows the program's name, which is in parentheses and may contain anything.
    const size_t end_of_name = stat.rfind(") ");
    if (end_of_name != std::string::npos && stat.compare(end_of_name + 2, 1, "S") == 0) {
      return;
    }
    require(std::chrono::steady_clock::now() < deadline, "the child does not sleep: " + stat);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
#endif
}

int ChildProcess::wait() {
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0) {
    if (errno != EINTR) {
      fail("waitpid");
    }
  }
  is_running_ = false;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

void ChildProcess::kill() {
  ::kill(pid_, SIGKILL);
  wait();
}

} // namespace torch_tensorrt::tests
