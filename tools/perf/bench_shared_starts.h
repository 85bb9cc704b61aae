#pragma once

#include <optional>
#include <string>

#include "tools/perf/Report.h"

namespace torch_tensorrt::perf {

// Processes with engines on the simulated device (tests/util/simulation), 200 kernels of 64 KiB at 5 ms each, that
// share a cache file in `directory`.
//
// First result: the time from before a process is spawned until an engine in it has returned its first output. The
// baseline of a warm start is the same process with the cache's bytes in a pending handle from the outset: what it
// takes to bring them there is not in its time.
//
// Saving at once: 32 processes, each with 8 kernels of its own, save to one new file when they are told to; the time
// goes from the beginning of the first save to the end of the last one. The baselines are one process that writes, in
// turn and by bare system calls, the same 32 contents that the file so has one after another, and one process whose 32
// handles save in turn.
//
// Saving the same at once: 32 processes that all have the same 128 kernels do so. Throws unless just one of them
// writes. The baseline is one write by bare system calls, and 32 times a serialization, a digest and a read of the
// file.
void bench_shared_starts(const std::string& directory, Report& report);

// Does the work of one such process, if that is what this one was started for, and returns its exit status; none
// otherwise. To be called first in main().
std::optional<int> shared_starts_main(int argc, char** argv);

} // namespace torch_tensorrt::perf
