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

// The background thread that saves this process's runtime caches while it runs, one thread for all of them. It starts
// when the first engine marks its cache, and never needs the Python interpreter.
//
// Checkpoints cost at most 1 % of a core: the pause before the next ones is at least 100 times the work of the last
// ones. It blocks all signals, and is in CUDA's relaxed stream-capture mode, so that its calls never invalidate a graph
// that another thread captures.
//
// At the end of the process it saves all caches once more. These saves and all waits share one deadline, because
// `docker stop` kills after 10 s. If the thread is stuck by then, on a disk that hangs, it is left behind.
//
// Thread safety: any method from any thread but this one.
class CheckpointThread {
 public:
  using Clock = CheckpointSchedule::Clock;

  static constexpr std::chrono::seconds kExitTimeout{8};

  struct Result {
    CheckpointSchedule::Found found;
    Clock::duration lock_wait; // within the checkpoint
  };

  // A cache that is saved. The functions throw nothing.
  struct Client {
    // Called on the thread. Once the token is stopped it should wait for no lock any longer.
    std::function<Result(const std::stop_token&)> checkpoint;
    // Whether the end of the process is to save the cache, and does so on the thread.
    std::function<bool()> is_saved_at_exit;
    std::function<void()> save_at_exit;
  };

  // This process's. Never destroyed, because caches in static storage may outlive any other static. A child of fork()
  // has another one, without clients.
  static CheckpointThread& get();

  // Clients are told apart by `id`. The first one has exit_now() called at the end of the process.
  void add(const void* id, Client client);
  void remove(const void* id);

  // A client's CheckpointSchedule::begin() and end(). Does nothing for an unknown client.
  void begin(const void* id, bool specializes_lazily);
  void end(const void* id);

  // Runs `work`, which must not throw, on the thread, and returns true, or false if it has not ended by the deadline.
  // A checkpoint that runs meanwhile stops waiting for locks. Calls `work` here if no thread can be started.
  bool run(std::function<void()> work, Clock::time_point deadline);

  // From the first call on, the deadline of this process's end; before that there is none. After it, no checkpoint
  // starts.
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

  std::mutex mutex_; // guards the rest; held for no work
  std::condition_variable wake_;
  std::condition_variable done_;
  bool is_running_ = false;
  bool is_stopping_ = false;
  bool has_warned_ = false; // that it can't run
  std::map<const void*, std::shared_ptr<Entry>> entries_;
  std::deque<std::shared_ptr<Work>> works_;
  std::stop_source interrupt_; // of the checkpoint that runs
  Clock::time_point not_before_ = Clock::time_point::min();
};

} // namespace torch_tensorrt::core::runtime
