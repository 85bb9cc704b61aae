#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

// The bare system calls with which the benchmarks compare the product. Errors are thrown as torch_tensorrt::Error.
namespace torch_tensorrt::perf {

using Buffer = std::unique_ptr<std::byte[]>;

// Throws with the reason in errno if `condition` is false.
void check(bool condition, const char* call);

// Reads a file with open, fstat and read into a new buffer.
Buffer read_plainly(const std::string& path);

// Writes a file with write, fsync and rename of a file beside it, and fsync of the directory.
void write_plainly(const std::string& path, std::span<const std::byte> bytes);

} // namespace torch_tensorrt::perf
