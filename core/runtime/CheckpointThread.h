#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stop_token>

#include "core/runtime/CheckpointSchedule.h"

namespace torch_tensorrt::core::runtime {

// The background thread that saves all runtime caches of this process while the process runs. It starts with the first
// begin() or run(), and never needs the Python interpreter.
//
// Checkpoints take at most 1 % of a core: after each round of checkpoints, the thread pauses for at least 100 times as
// long as the round took. The thread blocks all signals. It is in CUDA's relaxed stream-capture mode, so that its calls
// never invalidate a graph that another thread captures.
//
// At the end of the process, the thread saves all caches once more. These saves and all waits share one deadline,
// because `docker stop` kills the process after 10 s. If the thread is still stuck then, such as on a disk that hangs,
// the process ends without it.
//
// Thread safety: any method may be called from any thread, but run() not from this one.
class CheckpointThread {
 public:
  using Clock = CheckpointSchedule::Clock;

  static constexpr std::chrono::seconds kExitTimeout{8};

  struct Result {
    CheckpointSchedule::Found found;
    Clock::duration lock_wait; // time that the checkpoint waited for locks
  };

  // A cache that the thread saves. The functions must not throw.
  struct Client {
    // Called on the thread. Once a stop is requested, it should no longer wait for locks.
    std::function<Result(const std::stop_token&)> checkpoint;
    // Returns true if the cache is to be saved at the end of the process.
    std::function<bool()> is_saved_at_exit;
    // Called on the thread at the end of the process, if is_saved_at_exit() returned true.
    std::function<void()> save_at_exit;
  };

  // Returns the thread of this process. It is never destroyed, because caches in static storage may outlive any other
  // static. A child of fork() has another one, without clients.
  static CheckpointThread& get();

  // `id` identifies a client. The first call of add() registers exit_now() for the end of the process.
  void add(const void* id, Client client);
  void remove(const void* id);

  // Calls a client's CheckpointSchedule::begin() or end(). Does nothing for an unknown client.
  void begin(const void* id, bool specializes_lazily);
  void end(const void* id);

  // Runs `work`, which must not throw, on the thread. Returns true if it ends by the deadline. A running checkpoint
  // stops waiting for locks. If the thread can't be started, `work` runs on the calling thread.
  bool run(std::function<void()> work, Clock::time_point deadline);

  // The first call of begin_exit() sets the deadline for the end of this process. After that, no checkpoint starts.
  // Both functions return the deadline; exit_deadline() returns nullopt before that first call.
  static Clock::time_point begin_exit();
  static std::optional<Clock::time_point> exit_deadline();

 private:
  struct Entry {
    Client client;
    CheckpointSchedule schedule = {};
  };

  struct Work {
    std::function<void()> function;
    bool is_done = false;
  };

  CheckpointThread() = default;
  void exit_now();
  bool start_locked();
  void loop();
  void checkpoint_all(std::unique_lock<std::mutex>& lock);
  std::optional<Clock::time_point> next_due() const;

  std::mutex mutex_; // guards the rest; not held during work
  std::condition_variable wake_;
  std::condition_variable done_;
  bool is_running_ = false;
  bool is_stopping_ = false;
  bool has_warned_ = false; // that it can't be started
  std::map<const void*, std::shared_ptr<Entry>> entries_;
  std::deque<std::shared_ptr<Work>> works_;
  std::stop_source interrupt_; // stops the running checkpoint
  Clock::time_point not_before_ = Clock::time_point::min();
};

} // namespace torch_tensorrt::core::runtime
