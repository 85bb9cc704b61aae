#include "core/runtime/CheckpointSchedule.h"

#include <algorithm>
#include <random>

namespace torch_tensorrt::core::runtime {
namespace {

using Clock = CheckpointSchedule::Clock;

constexpr std::chrono::seconds kPauseInCall{2};
constexpr std::chrono::seconds kFirstPause{1};
constexpr std::chrono::seconds kLongestPause{600};
constexpr int kEnoughOfNothing = 2;

Clock::duration varied(Clock::duration pause) {
  thread_local std::minstd_rand random{std::random_device{}()};
  return std::chrono::duration_cast<Clock::duration>(pause * std::uniform_real_distribution<>(0.75, 1.0)(random));
}

} // namespace

void CheckpointSchedule::begin(Clock::time_point now, bool specializes_lazily) {
  ++calls_;
  has_lazy_engines_ |= specializes_lazily;
  make_due(now + varied(kPauseInCall));
}

void CheckpointSchedule::end(Clock::time_point now) {
  calls_ = std::max(calls_ - 1, 0);
  has_call_ended_ = true;
  nothing_in_a_row_ = 0;
  pause_ = kFirstPause;
  make_due(now + varied(kFirstPause));
}

void CheckpointSchedule::make_due(Clock::time_point time) {
  time = std::max(time, retry_);
  due_ = due_ ? std::min(*due_, time) : time;
}

void CheckpointSchedule::start() {
  due_.reset();
  has_call_ended_ = false;
}

void CheckpointSchedule::done(Clock::time_point now, Found found) {
  if (found == Found::kFailed) {
    const auto backoff =
        std::min<Clock::duration>(kLongestPause, kFirstPause * (1 << std::min(++failures_in_a_row_, 10)));
    retry_ = now + varied(backoff);
    due_ = retry_;
    return;
  }
  if (found == Found::kLater) {
    make_due(now + varied(kFirstPause));
    return;
  }
  failures_in_a_row_ = 0;
  retry_ = Clock::time_point::min();
  nothing_in_a_row_ = found == Found::kNew ? 0 : nothing_in_a_row_ + 1;
  if (calls_ > 0) {
    make_due(now + varied(kPauseInCall));
  } else if (!has_call_ended_ && (has_lazy_engines_ || nothing_in_a_row_ < kEnoughOfNothing)) {
    pause_ = std::min<Clock::duration>(2 * pause_, kLongestPause);
    make_due(now + varied(pause_));
  }
}

} // namespace torch_tensorrt::core::runtime
