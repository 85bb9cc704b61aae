#pragma once

#include <string>
#include <vector>

namespace torch_tensorrt::tests {

// Runs the program argv[0] with the arguments argv[1...], which on Windows must not need quoting, and waits for its
// end. Returns its exit status; throws std::runtime_error if it can't be started or is ended by a signal.
int run_program(const std::vector<std::string>& argv);

} // namespace torch_tensorrt::tests
