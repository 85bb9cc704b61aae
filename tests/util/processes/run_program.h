#pragma once

#include <string>
#include <vector>

namespace torch_tensorrt::tests {

// Runs the program argv[0] with the arguments argv[1...] and waits for its end. On Windows the arguments must not need
// quoting. Returns the exit status. Throws std::runtime_error if the program can't be started or is ended by a signal.
int run_program(const std::vector<std::string>& argv);

} // namespace torch_tensorrt::tests
