#pragma once

#include <chrono>
#include <optional>

namespace torch_tensorrt::core::runtime {

// When to save a runtime cache next while its process runs. New kernels can only come from a call that may compile, so
// checkpoints follow such calls at growing pauses, until two in a row find nothing new. An engine that specializes its
// kernels lazily compiles in the background, maybe late. Its cache is checked on for ever, at pauses of up to 10 min.
//
// Each pause is shortened by up to a quarter, at random, so that processes do not march in step.
//
// Thread safety: none (external synchronization). Nobody reads a clock here; times given must not decrease.
class CheckpointSchedule {
 public:
  using Clock = std::chrono::steady_clock;

  // What a checkpoint found.
  enum class Found {
    kNew,     // kernels that had not been saved
    kNothing, // none
    kFailed,  // the save failed
    kLater,   // nothing: it could not be tried now
  };

  // A call that may compile begins and ends. Calls may overlap. The first checkpoint comes within 2 s of the beginning
  // and within 1 s of the end, unless checkpoints fail.
  void begin(Clock::time_point now, bool specializes_lazily);
  void end(Clock::time_point now);

  // Returns when the next checkpoint is due; nullopt as long as nothing happens.
  std::optional<Clock::time_point> due() const {
    return due_;
  }

  // A checkpoint begins and ends.
  void start();
  void done(Clock::time_point now, Found found);

 private:
  void make_due(Clock::time_point time);

  int calls_ = 0; // that run now
  bool has_lazy_engines_ = false;
  bool has_call_ended_ = false; // since start()
  int nothing_in_a_row_ = 0;
  int failures_in_a_row_ = 0;
  Clock::duration pause_{};
  Clock::time_point retry_ = Clock::time_point::min(); // not before, since checkpoints fail
  std::optional<Clock::time_point> due_;
};

} // namespace torch_tensorrt::core::runtime
