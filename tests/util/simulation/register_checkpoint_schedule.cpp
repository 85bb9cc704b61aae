// The C++ runtime's schedule in Python, as `torch.classes.tensorrt_schedules.CheckpointSchedule`. Times are in seconds.

#include <chrono>
#include <optional>
#include <string>

#include <torch/custom_class.h>
#include <torch/library.h>

#include "core/runtime/CheckpointSchedule.h"
#include "core/util/prelude.h"

namespace torch_tensorrt::tests {
namespace {

using core::runtime::CheckpointSchedule;
using Seconds = std::chrono::duration<double>;

CheckpointSchedule::Clock::time_point to_time(double seconds) {
  return CheckpointSchedule::Clock::time_point(
      std::chrono::duration_cast<CheckpointSchedule::Clock::duration>(Seconds(seconds)));
}

CheckpointSchedule::Found to_found(const std::string& found) {
  if (found == "NEW") {
    return CheckpointSchedule::Found::kNew;
  }
  if (found == "NOTHING") {
    return CheckpointSchedule::Found::kNothing;
  }
  if (found == "LATER") {
    return CheckpointSchedule::Found::kLater;
  }
  TORCHTRT_CHECK(found == "FAILED", "A checkpoint finds NEW, NOTHING, FAILED or LATER, not '" << found << "'");
  return CheckpointSchedule::Found::kFailed;
}

class PythonCheckpointSchedule : public torch::CustomClassHolder {
 public:
  void begin(double now, bool specializes_lazily) {
    schedule_.begin(to_time(now), specializes_lazily);
  }

  void end(double now) {
    schedule_.end(to_time(now));
  }

  std::optional<double> due() const {
    const auto due = schedule_.due();
    return due ? std::optional(Seconds(due->time_since_epoch()).count()) : std::nullopt;
  }

  void start() {
    schedule_.start();
  }

  void done(double now, const std::string& found) {
    schedule_.done(to_time(now), to_found(found));
  }

 private:
  CheckpointSchedule schedule_;
};

TORCH_LIBRARY(tensorrt_schedules, m) {
  m.class_<PythonCheckpointSchedule>("CheckpointSchedule")
      .def(torch::init<>())
      .def("begin", &PythonCheckpointSchedule::begin)
      .def("end", &PythonCheckpointSchedule::end)
      .def("due", &PythonCheckpointSchedule::due)
      .def("start", &PythonCheckpointSchedule::start)
      .def("done", &PythonCheckpointSchedule::done);
}

} // namespace
} // namespace torch_tensorrt::tests
