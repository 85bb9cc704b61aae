#pragma once

#include <string>
#include <vector>

namespace torch_tensorrt::perf {

// The results of a benchmark. Each figure is a ratio to a baseline of the same run.
//
// Thread safety: one thread at a time.
class Report {
 public:
  enum class Target { kAtLeast, kAtMost };

  struct Row {
    std::string name;
    std::string unit; // of `baseline` and `measured`
    double baseline;
    double measured;
    double ratio; // the figure that has the target: measured / baseline, or the reverse
    Target target;
    double limit;

    bool is_reached() const {
      return target == Target::kAtLeast ? ratio >= limit : ratio <= limit;
    }
  };

  void add(Row row);

  // Prints a table to stdout.
  void print() const;

  // Writes a JSON array with one object per row. Throws torch_tensorrt::Error naming the path if it can't be written.
  void write_json(const std::string& path) const;

 private:
  std::vector<Row> rows_;
};

// Returns the middle one of `values`, or the upper one of two. `values` must not be empty.
double median(std::vector<double> values);

} // namespace torch_tensorrt::perf
