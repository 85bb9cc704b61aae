#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

// The bare system calls that the benchmarks measure the product against. Errors: torch_tensorrt::Error.
namespace torch_tensorrt::perf {

using Buffer = std::unique_ptr<std::byte[]>;

// Throws, with the reason in errno, unless `condition`.
void check(bool condition, const char* call);

// By open, fstat and read into a fresh buffer.
Buffer read_plainly(const std::string& path);

// By write, fsync and rename of a file beside it, and fsync of the directory.
void write_plainly(const std::string& path, std::span<const std::byte> bytes);

} // namespace torch_tensorrt::perf
