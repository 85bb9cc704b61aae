#pragma once

#include <chrono>
#include <optional>

namespace torch_tensorrt::core::runtime {

// Decides when to save a runtime cache next while its process runs. New kernels can only come from a call that may
// compile. Checkpoints follow such a call at growing intervals until two in a row find nothing new. An engine that
// specializes its kernels lazily compiles in the background, possibly much later. Its cache has checkpoints for as long
// as the process runs, at intervals of up to 10 minutes.
//
// Each interval is shortened at random by up to a quarter, so that processes do not save in step.
//
// Thread safety: none (external synchronization). The class never reads a clock: callers pass the time, which must not
// decrease.
class CheckpointSchedule {
 public:
  using Clock = std::chrono::steady_clock;

  // What a checkpoint found.
  enum class Found {
    kNew,     // kernels that had not been saved
    kNothing, // no new kernels
    kFailed,  // the save failed
    kLater,   // not tried, because it is not possible now
  };

  // Must be called when a call that may compile begins and when it ends. Calls may overlap. The next checkpoint is due
  // within 2 s of the beginning and within 1 s of the end, unless checkpoints fail.
  void begin(Clock::time_point now, bool specializes_lazily);
  void end(Clock::time_point now);

  // Returns when the next checkpoint is due, or nullopt if none is due before the next call begins.
  std::optional<Clock::time_point> due() const {
    return due_;
  }

  // Must be called when a checkpoint begins and when it ends.
  void start();
  void done(Clock::time_point now, Found found);

 private:
  void make_due(Clock::time_point time);

  int calls_ = 0; // running now
  bool has_lazy_engines_ = false;
  bool has_call_ended_ = false; // since start()
  int nothing_in_a_row_ = 0;
  int failures_in_a_row_ = 0;
  Clock::duration pause_{};
  Clock::time_point retry_ = Clock::time_point::min(); // earliest next checkpoint, later after failures
  std::optional<Clock::time_point> due_;
};

} // namespace torch_tensorrt::core::runtime
