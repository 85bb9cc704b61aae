#pragma once

#include <sys/types.h>

#include <array>
#include <functional>
#include <string>

namespace torch_tensorrt::tests {

// One end of a two-way line of words (no newline in them) between a ChildProcess and its parent. All of it throws
// std::runtime_error when the other end is gone, or silent for a minute.
class Channel {
 public:
  explicit Channel(int socket) : socket_(socket) {}
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  void say(const std::string& word);
  std::string hear();
  // Hears a word and throws if it is another one.
  void expect(const std::string& word);

 private:
  int socket_;
};

// A forked child that runs `body`, with nothing of the parent's destroyed at its end: it leaves by _exit. POSIX only.
// One object in one thread at a time; fork while no other thread runs.
class ChildProcess {
 public:
  // The child's exit status is 0 when `body` returns, and 1, with the text on stderr, when it throws.
  explicit ChildProcess(const std::function<void(Channel& parent)>& body);
  // Kills the child if it still runs.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  pid_t pid() const {
    return pid_;
  }
  Channel& channel() {
    return channel_;
  }

  // Returns when the child sleeps in a system call, such as a blocking flock; on Linux only, elsewhere at once.
  void wait_until_asleep() const;

  // Waits for its end: its exit status, or 128 and the number of the signal that ended it.
  int wait();

  // SIGKILL, and waits for its end.
  void kill();

 private:
  ChildProcess(const std::function<void(Channel& parent)>& body, const std::array<int, 2>& sockets);

  pid_t pid_;
  Channel channel_;
  bool is_running_ = true;
};

// Throws std::runtime_error with `what` unless `condition`: how the body of a child fails.
void require(bool condition, const std::string& what);

} // namespace torch_tensorrt::tests
