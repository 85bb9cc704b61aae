// Runs a TensorRT-RTX engine without Python, with a runtime cache that other processes share:
//
//   run_engine PLAN [--runtime-cache PATH]
//
// Loads the serialized engine in the file PLAN, runs it twice on generated inputs of the sizes that its optimization
// profile was tuned for, and prints how long that took. With a cache that an earlier run saved, the first inference
// compiles nothing.

#include <chrono>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/runtime/EngineLoader.h"
#include "core/runtime/TRTEngine.h"
#include "core/util/Exception.h"

namespace {

namespace runtime = torch_tensorrt::core::runtime;
using Clock = std::chrono::steady_clock;

struct Arguments {
  std::string plan;
  std::string runtime_cache; // empty: none
};

std::optional<Arguments> parse(const std::vector<std::string>& words) {
  Arguments arguments;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--runtime-cache" && i + 1 < words.size()) {
      arguments.runtime_cache = words[++i];
    } else if (arguments.plan.empty() && !words[i].starts_with("--")) {
      arguments.plan = words[i];
    } else {
      return std::nullopt;
    }
  }
  return arguments.plan.empty() ? std::nullopt : std::optional(arguments);
}

std::string read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file || bytes.empty()) {
    throw std::runtime_error("can't read the plan '" + path + "', or it is empty");
  }
  return bytes;
}

void print(const char* what, const std::vector<std::string>& names, const std::vector<at::Tensor>& tensors) {
  for (size_t i = 0; i < names.size(); ++i) {
    std::cout << what << " " << names[i] << " " << tensors[i].scalar_type() << " " << tensors[i].sizes() << "\n";
  }
}

void run(const Arguments& arguments) {
  const std::string plan = read(arguments.plan);
  const auto start = Clock::now();
  const auto passed = [&start] { return std::chrono::duration<double, std::milli>(Clock::now() - start).count(); };

  runtime::RuntimeSettings settings;
  if (!arguments.runtime_cache.empty()) {
    settings.runtime_cache = runtime::RuntimeCacheHandle::for_path(arguments.runtime_cache);
  }
  runtime::TRTEngine engine(runtime::load_engine(plan), settings);
  const std::vector<at::Tensor> inputs = engine.example_inputs();
  print("input", engine.input_names(), inputs);

  // Copied to the host, because an inference only enqueues its work.
  const std::vector<at::Tensor> outputs = engine.execute(inputs);
  for (const at::Tensor& output : outputs) {
    output.cpu();
  }
  std::cout << "first result after " << passed() << " ms\n";
  const double first = passed();
  for (const at::Tensor& output : engine.execute(inputs)) {
    output.cpu();
  }
  std::cout << "second inference in " << passed() - first << " ms\n";
  print("output", engine.output_names(), outputs);
}

} // namespace

int main(int argc, char** argv) {
  const std::optional<Arguments> arguments = parse({argv + 1, argv + argc});
  if (!arguments) {
    std::cerr << "usage: run_engine PLAN [--runtime-cache PATH]\n";
    return 2;
  }
  try {
    run(*arguments); // the engine saves the cache when it is destroyed
  } catch (const torch_tensorrt::Error& error) {
    std::cerr << "run_engine: " << error.msg() << "\n";
    return 1;
  } catch (const std::exception& error) {
    std::cerr << "run_engine: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
