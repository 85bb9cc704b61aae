#pragma once

#include <sys/types.h>

#include <array>
#include <functional>
#include <string>

namespace torch_tensorrt::tests {

// One end of a two-way channel between a ChildProcess and its parent. They exchange words that contain no newline.
// Every member throws std::runtime_error if the other end is gone or silent for a minute.
class Channel {
 public:
  explicit Channel(int socket) : socket_(socket) {}
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  void say(const std::string& word);
  std::string hear();
  // Hears a word. Throws if it is not the expected one.
  void expect(const std::string& word);

 private:
  int socket_;
};

// A forked child that runs `body` and ends by _exit, so that it destroys none of the parent's objects. POSIX only. One
// object may be used by one thread at a time. No other thread may run during the fork.
class ChildProcess {
 public:
  // The child exits with status 0 when `body` returns. If `body` throws, it prints the error on stderr and exits with
  // status 1.
  explicit ChildProcess(const std::function<void(Channel& parent)>& body);
  // Kills the child if it is still running.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const {
    return pid_;
  }
  Channel& channel() {
    return channel_;
  }

  // On Linux, returns when the child sleeps in a system call such as a blocking flock. Elsewhere returns at once.
  void wait_until_asleep() const;

  // Waits for the child's end. Returns its exit status, or 128 plus the number of the signal that ended it.
  int wait();

  // Sends SIGKILL and waits for the child's end.
  void kill();

 private:
  ChildProcess(const std::function<void(Channel& parent)>& body, const std::array<int, 2>& sockets);

  pid_t pid_;
  Channel channel_;
  bool is_running_ = true;
};

// Throws std::runtime_error with the message `what` unless `condition` is true. The body of a child fails this way.
void require(bool condition, const std::string& what);

} // namespace torch_tensorrt::tests
