#pragma once

#include <string>
#include <vector>

namespace torch_tensorrt::perf {

// What a benchmark measured, each figure as a ratio to a baseline of the same run. One thread at a time.
class Report {
 public:
  enum class Target { kAtLeast, kAtMost };

  struct Row {
    std::string name;
    std::string unit; // of `baseline` and `measured`
    double baseline;
    double measured;
    double ratio; // the figure that has the target, whichever way round it is taken
    Target target;
    double limit;

    bool is_reached() const {
      return target == Target::kAtLeast ? ratio >= limit : ratio <= limit;
    }
  };

  void add(Row row);

  // To stdout.
  void print() const;

  // A JSON array with an object a row. Throws torch_tensorrt::Error naming the path if it can't be written.
  void write_json(const std::string& path) const;

 private:
  std::vector<Row> rows_;
};

// The middle one of `values`, which must not be empty; of two, the upper one.
double median(std::vector<double> values);

} // namespace torch_tensorrt::perf
