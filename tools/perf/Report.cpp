#include "tools/perf/Report.h"

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <fstream>
#include <utility>

#include "core/util/macros.h"

namespace torch_tensorrt::perf {
namespace {

const char* sign(Report::Target target) {
  return target == Report::Target::kAtLeast ? ">=" : "<=";
}

} // namespace

void Report::add(Row row) {
  rows_.push_back(std::move(row));
}

void Report::print() const {
  std::printf("%-44s %12s %12s %-5s %8s   %s\n", "", "baseline", "measured", "unit", "ratio", "target");
  for (const Row& row : rows_) {
    std::printf(
        "%-44s %12.3f %12.3f %-5s %8.3f   %s %g %s\n",
        row.name.c_str(),
        row.baseline,
        row.measured,
        row.unit.c_str(),
        row.ratio,
        sign(row.target),
        row.limit,
        row.is_reached() ? "reached" : "MISSED");
  }
}

void Report::write_json(const std::string& path) const {
  std::ofstream file(path);
  file << "[\n";
  for (size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i]; // names and units are the program's own and need no escaping
    file << "  {\"name\": \"" << row.name << "\", \"unit\": \"" << row.unit << "\", \"baseline\": " << row.baseline
         << ", \"measured\": " << row.measured << ", \"ratio\": " << row.ratio << ", \"target\": \"" << sign(row.target)
         << " " << row.limit << "\", \"reached\": " << (row.is_reached() ? "true" : "false") << "}"
         << (i + 1 < rows_.size() ? ",\n" : "\n");
  }
  file << "]\n";
  file.close();
  TORCHTRT_CHECK(file, "Can't write the results to '" << path << "'");
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

} // namespace torch_tensorrt::perf
