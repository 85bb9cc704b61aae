#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

namespace torch_tensorrt::perf {

// What was measured, in milliseconds or MiB.
using Samples = std::map<std::string, std::vector<double>>;

// Runs processes that share a cache file in `directory`. Their engines run on the simulated device
// (tests/util/simulation) and have kernels of 64 KiB.
//
// First result: the time from before a process is spawned until an engine in it has returned its first output. The
// engine has 200 kernels that take 5 ms each to compile. The baseline of a warm start is the same process with the
// cache's bytes already in a pending handle. Its time does not include bringing them there.
//
// Saving at once: 32 processes, each with 8 kernels of its own, save to one new file when they are told to. The time
// lasts from the beginning of the first save to the end of the last one. One baseline is a process whose 32 handles
// save in turn, which gives the file 32 contents one after another. The other baseline writes the same contents in turn
// by bare system calls.
//
// Saving the same at once: 32 processes that all have the same 128 kernels save in the same way. Throws unless exactly
// one of them writes. The baseline is one write by bare system calls, and 32 times a serialization, a digest and a read
// of the file.
void bench_shared_starts(const std::string& directory, Samples& samples);

// If this process was started to be one of those processes, does its work and returns its exit status. Otherwise
// returns none. Must be called first in main().
std::optional<int> shared_starts_main(int argc, char** argv);

} // namespace torch_tensorrt::perf
