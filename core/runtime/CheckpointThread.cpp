#include "core/runtime/CheckpointThread.h"

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/util/macros.h"

namespace torch_tensorrt::core::runtime {
namespace {

using Clock = CheckpointThread::Clock;

constexpr int kPausePerWork = 100;

std::atomic<CheckpointThread*> instance = nullptr;
std::atomic<bool> is_exit_registered = false;
std::atomic<Clock::time_point> deadline_of_exit = Clock::time_point::max(); // max until the end begins

// Applies to the calling thread only. The thread calls it before all work, because CUDA may start later than the
// thread. It calls the driver, because nothing else here needs the headers and the library of the CUDA runtime.
void relax_stream_capture() {
  void* const driver = ::dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  if (driver == nullptr) { // without CUDA there is nothing to capture
    // The second call frees the error text that libc keeps for this thread, where leak checkers may not find it.
    ::dlerror();
    ::dlerror();
    return;
  }
  using Exchange = int (*)(int* mode);
  if (const auto exchange = reinterpret_cast<Exchange>(::dlsym(driver, "cuThreadExchangeStreamCaptureMode"))) {
    int mode = 2; // CU_STREAM_CAPTURE_MODE_RELAXED
    exchange(&mode);
  }
}

// Initialized at load time. If another thread were initializing it during a fork, the child would wait for it forever.
[[maybe_unused]] const CheckpointThread& first_instance = CheckpointThread::get();

} // namespace

CheckpointThread& CheckpointThread::get() {
  static const int error = [] {
    instance = new CheckpointThread;
    return ::pthread_atfork(
        [] { instance.load()->mutex_.lock(); },
        [] { instance.load()->mutex_.unlock(); },
        [] {
          instance.load()->mutex_.unlock(); // for the thread sanitizer
          // The child has neither the thread nor the waiters that its condition variables may still count.
          instance = new CheckpointThread;
          deadline_of_exit = Clock::time_point::max();
        });
  }();
  if (error != 0) {
    TORCHTRT_THROW_ERROR("Can't save runtime caches in the background: " << std::generic_category().message(error));
  }
  return *instance;
}

void CheckpointThread::add(const void* id, Client client) {
  if (!is_exit_registered.exchange(true) && std::atexit([] { get().exit_now(); }) != 0) {
    LOG_WARNING("Runtime caches of engines that live to the end of the process are not saved: atexit failed");
  }
  const std::lock_guard lock(mutex_);
  entries_.try_emplace(id, std::make_shared<Entry>(Entry{std::move(client)}));
}

void CheckpointThread::remove(const void* id) {
  std::shared_ptr<Entry> removed; // destroyed without the mutex
  const std::lock_guard lock(mutex_);
  if (const auto found = entries_.find(id); found != entries_.end()) {
    removed = std::move(found->second);
    entries_.erase(found);
  }
}

void CheckpointThread::begin(const void* id, bool specializes_lazily) {
  const std::lock_guard lock(mutex_);
  if (const auto found = entries_.find(id); found != entries_.end()) {
    found->second->schedule.begin(Clock::now(), specializes_lazily);
    start_locked();
    wake_.notify_one();
  }
}

void CheckpointThread::end(const void* id) {
  const std::lock_guard lock(mutex_);
  if (const auto found = entries_.find(id); found != entries_.end()) {
    found->second->schedule.end(Clock::now());
    wake_.notify_one();
  }
}

bool CheckpointThread::run(std::function<void()> function, Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  if (!start_locked()) {
    lock.unlock();
    function();
    return true;
  }
  const auto work = std::make_shared<Work>(Work{std::move(function)});
  works_.push_back(work);
  interrupt_.request_stop();
  wake_.notify_one();
  return done_.wait_until(lock, deadline, [&work] { return work->is_done; });
}

CheckpointThread::Clock::time_point CheckpointThread::begin_exit() {
  Clock::time_point deadline = Clock::time_point::max();
  const Clock::time_point ours = Clock::now() + kExitTimeout;
  return deadline_of_exit.compare_exchange_strong(deadline, ours) ? ours : deadline;
}

std::optional<CheckpointThread::Clock::time_point> CheckpointThread::exit_deadline() {
  const Clock::time_point deadline = deadline_of_exit;
  return deadline == Clock::time_point::max() ? std::nullopt : std::optional(deadline);
}

// Saves the caches of engines that live to the end of the process, and ends the thread.
void CheckpointThread::exit_now() {
  const Clock::time_point deadline = begin_exit();
  std::vector<std::shared_ptr<Entry>> entries;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, entry] : entries_) {
      entries.push_back(entry);
    }
  }
  std::erase_if(entries, [](const auto& entry) { return !entry->client.is_saved_at_exit(); });
  if (!entries.empty()) {
    const bool are_saved = run(
        [entries = std::move(entries)] {
          for (const auto& entry : entries) {
            entry->client.save_at_exit();
          }
        },
        deadline);
    if (!are_saved) {
      LOG_WARNING(
          "Runtime caches could not be saved within " << kExitTimeout.count() << " s at the end of the process");
    }
  }
  std::unique_lock lock(mutex_);
  is_stopping_ = true;
  interrupt_.request_stop();
  wake_.notify_one();
  done_.wait_until(lock, deadline, [this] { return !is_running_; });
}

// Starts the thread if it is not running. Returns true if it runs. Requires mutex_.
bool CheckpointThread::start_locked() {
  if (is_running_ || is_stopping_) {
    return is_running_;
  }
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before); // the thread inherits the mask
  try {
    std::thread([this] { loop(); }).detach();
    is_running_ = true;
  } catch (const std::system_error& error) {
    if (!std::exchange(has_warned_, true)) {
      LOG_WARNING(
          "Runtime caches are not saved while the process runs, because no thread can be started: " << error.what());
    }
  }
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return is_running_;
}

void CheckpointThread::loop() {
  ::pthread_setname_np(::pthread_self(), "trt-checkpoint");
  std::unique_lock lock(mutex_);
  while (!is_stopping_ || !works_.empty()) {
    if (!works_.empty()) {
      const auto work = std::move(works_.front());
      works_.pop_front();
      lock.unlock();
      relax_stream_capture();
      std::exchange(work->function, {})(); // destroyed without the mutex
      lock.lock();
      work->is_done = true;
      done_.notify_all();
    } else if (const auto due = next_due(); !due) {
      wake_.wait(lock);
    } else if (Clock::now() < *due) {
      wake_.wait_until(lock, *due);
    } else {
      checkpoint_all(lock);
    }
  }
  is_running_ = false;
  done_.notify_all();
}

// Requires mutex_.
std::optional<CheckpointThread::Clock::time_point> CheckpointThread::next_due() const {
  if (exit_deadline()) {
    return std::nullopt;
  }
  std::optional<Clock::time_point> first;
  for (const auto& [id, entry] : entries_) {
    if (const auto due = entry->schedule.due()) {
      first = std::min(first.value_or(*due), *due);
    }
  }
  return first ? std::optional(std::max(*first, not_before_)) : std::nullopt;
}

// Saves every cache that is due. `lock` owns mutex_, before and after.
void CheckpointThread::checkpoint_all(std::unique_lock<std::mutex>& lock) {
  const Clock::time_point now = Clock::now();
  std::vector<std::shared_ptr<Entry>> entries;
  for (const auto& [id, entry] : entries_) {
    if (const auto due = entry->schedule.due(); due && *due <= now) {
      entries.push_back(entry);
    }
  }
  Clock::duration work{};
  for (const auto& entry : entries) {
    if (is_stopping_ || exit_deadline() || !works_.empty()) {
      break;
    }
    entry->schedule.start();
    interrupt_ = std::stop_source();
    const std::stop_token token = interrupt_.get_token();
    lock.unlock();
    relax_stream_capture();
    const Clock::time_point start = Clock::now();
    const Result result = entry->client.checkpoint(token);
    const Clock::time_point end = Clock::now();
    lock.lock();
    entry->schedule.done(end, result.found);
    work += end - start - result.lock_wait;
  }
  // Destroyed without the mutex, because an entry may be the last owner of a cache.
  lock.unlock();
  entries.clear();
  lock.lock();
  not_before_ = Clock::now() + kPausePerWork * work;
}

} // namespace torch_tensorrt::core::runtime
