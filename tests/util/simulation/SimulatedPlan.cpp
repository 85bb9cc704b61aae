#include "tests/util/simulation/SimulatedPlan.h"

#include <set>
#include <utility>

#include "core/util/prelude.h"
#include "tests/util/simulation/byte_stream.h"

namespace torch_tensorrt::tests {
namespace {

constexpr std::string_view kMagic = "SIMTRTPL";
constexpr std::string_view kRealMagic("vtrt\0\0\0\0", 8);

bool is_dynamic(const SimulatedTensor& tensor) {
  for (const int64_t extent : tensor.dims) {
    if (extent == -1) {
      return true;
    }
  }
  return false;
}

// Returns true if TensorRT-RTX's builder may have made the plan. Its plans begin with the magic, a number and their own
// size.
bool is_real_plan(std::string_view bytes) {
  constexpr size_t kHeaderSize = 24;
  return bytes.starts_with(kRealMagic) && bytes.size() >= kHeaderSize &&
      ByteReader(bytes.substr(16)).number<uint64_t>() == bytes.size();
}

void check_tensor(const SimulatedTensor& tensor) {
  using nvinfer1::DataType;
  TORCHTRT_CHECK(
      tensor.type == DataType::kFLOAT || tensor.type == DataType::kINT32 || tensor.type == DataType::kINT64,
      tensor.name << " has type " << static_cast<int32_t>(tensor.type) << ", which is not simulated");
  TORCHTRT_CHECK(
      tensor.dims.size() <= nvinfer1::Dims::MAX_DIMS, tensor.name << " has " << tensor.dims.size() << " dimensions");
  for (const int64_t extent : tensor.dims) {
    TORCHTRT_CHECK(extent >= -1, tensor.name << " has extent " << extent);
  }
}

void check_profile(const SimulatedTensor& input) {
  if (!is_dynamic(input)) {
    TORCHTRT_CHECK(
        input.min.empty() && input.opt.empty() && input.max.empty(), input.name << " is static but has a profile");
    return;
  }
  const size_t rank = input.dims.size();
  TORCHTRT_CHECK(
      input.min.size() == rank && input.opt.size() == rank && input.max.size() == rank,
      input.name << "'s profile does not have the input's rank " << rank);
  for (size_t i = 0; i < rank; ++i) {
    const bool ordered = 0 <= input.min[i] && input.min[i] <= input.opt[i] && input.opt[i] <= input.max[i];
    const bool agrees = input.dims[i] == -1 || (input.min[i] == input.dims[i] && input.max[i] == input.dims[i]);
    TORCHTRT_CHECK(ordered && agrees, input.name << "'s profile is inconsistent in dimension " << i);
  }
}

void check_plan(const SimulatedPlan& plan) {
  std::set<std::string_view> names;
  for (const auto* tensors : {&plan.inputs, &plan.outputs}) {
    for (const SimulatedTensor& tensor : *tensors) {
      TORCHTRT_CHECK(
          !tensor.name.empty() && names.insert(tensor.name).second, "A tensor's name is empty or not unique");
      check_tensor(tensor);
    }
  }
  for (const SimulatedTensor& input : plan.inputs) {
    check_profile(input);
  }
  if (plan.operation == SimulatedOperation::kScaleAdd) {
    TORCHTRT_CHECK(plan.inputs.size() == 2 && plan.outputs.size() == 1, "kScaleAdd needs two inputs and one output");
    TORCHTRT_CHECK(
        plan.inputs[0].type == plan.inputs[1].type && plan.inputs[0].dims == plan.inputs[1].dims,
        "kScaleAdd's inputs must have the same type and shape");
  } else {
    TORCHTRT_CHECK(plan.operation == SimulatedOperation::kRelu, "The operation is unknown");
    TORCHTRT_CHECK(plan.inputs.size() == plan.outputs.size(), "kRelu needs as many outputs as inputs");
  }
  for (size_t i = 0; i < plan.outputs.size(); ++i) {
    const SimulatedTensor& output = plan.outputs[i];
    TORCHTRT_CHECK(
        output.type == plan.inputs[i].type && output.dims == plan.inputs[i].dims,
        output.name << " must have the type and the shape of " << plan.inputs[i].name);
    TORCHTRT_CHECK(output.min.empty() && output.opt.empty() && output.max.empty(), output.name << " has a profile");
  }
  std::set<std::string_view> kernels;
  for (const SimulatedKernel& kernel : plan.kernels) {
    TORCHTRT_CHECK(kernels.insert(kernel.name).second, "Kernel " << kernel.name << " is listed twice");
  }
}

void write_extents(ByteWriter& writer, const std::vector<int64_t>& extents) {
  writer.number(static_cast<uint64_t>(extents.size()));
  for (const int64_t extent : extents) {
    writer.number(extent);
  }
}

std::vector<int64_t> read_extents(ByteReader& reader) {
  std::vector<int64_t> extents;
  for (auto count = reader.number<uint64_t>(); count > 0; --count) {
    extents.push_back(reader.number<int64_t>());
  }
  return extents;
}

void write_tensors(ByteWriter& writer, const std::vector<SimulatedTensor>& tensors) {
  writer.number(static_cast<uint64_t>(tensors.size()));
  for (const SimulatedTensor& tensor : tensors) {
    writer.text(tensor.name);
    writer.number(static_cast<int32_t>(tensor.type));
    for (const auto* extents : {&tensor.dims, &tensor.min, &tensor.opt, &tensor.max}) {
      write_extents(writer, *extents);
    }
  }
}

std::vector<SimulatedTensor> read_tensors(ByteReader& reader) {
  std::vector<SimulatedTensor> tensors;
  for (auto count = reader.number<uint64_t>(); count > 0; --count) {
    SimulatedTensor& tensor = tensors.emplace_back();
    tensor.name = reader.text();
    tensor.type = static_cast<nvinfer1::DataType>(reader.number<int32_t>());
    for (auto* extents : {&tensor.dims, &tensor.min, &tensor.opt, &tensor.max}) {
      *extents = read_extents(reader);
    }
  }
  return tensors;
}

} // namespace

std::string make_plan(const SimulatedPlan& plan) {
  check_plan(plan);
  ByteWriter writer;
  writer.text(kMagic);
  writer.text(plan.name);
  writer.number(static_cast<uint32_t>(plan.operation));
  writer.number(plan.scale);
  write_tensors(writer, plan.inputs);
  write_tensors(writer, plan.outputs);
  writer.number(static_cast<uint64_t>(plan.kernels.size()));
  for (const SimulatedKernel& kernel : plan.kernels) {
    writer.text(kernel.name);
    writer.number(kernel.size);
    writer.number(static_cast<uint8_t>(kernel.per_shape));
  }
  return writer.take();
}

SimulatedPlan parse_plan(std::string_view bytes) {
  SimulatedPlan plan;
  if (is_real_plan(bytes)) {
    return plan;
  }
  ByteReader reader(bytes);
  TORCHTRT_CHECK(reader.text() == kMagic, "It is not a plan of the simulated device");
  plan.name = reader.text();
  plan.operation = static_cast<SimulatedOperation>(reader.number<uint32_t>());
  plan.scale = reader.number<float>();
  plan.inputs = read_tensors(reader);
  plan.outputs = read_tensors(reader);
  for (auto count = reader.number<uint64_t>(); count > 0; --count) {
    SimulatedKernel& kernel = plan.kernels.emplace_back();
    kernel.name = reader.text();
    kernel.size = reader.number<uint64_t>();
    kernel.per_shape = reader.number<uint8_t>() != 0;
  }
  TORCHTRT_CHECK(reader.at_end(), "Bytes follow the last kernel");
  check_plan(plan);
  return plan;
}

std::vector<SimulatedKernel> make_kernels(const std::string& prefix, uint64_t count, uint64_t size) {
  std::vector<SimulatedKernel> kernels;
  for (uint64_t i = 0; i < count; ++i) {
    kernels.push_back({prefix + std::to_string(i), size});
  }
  return kernels;
}

SimulatedPlan relu_plan(std::vector<SimulatedKernel> kernels, std::vector<int64_t> dims) {
  SimulatedPlan plan;
  plan.name = "relu";
  plan.inputs = {{.name = "x", .dims = dims}};
  plan.outputs = {{.name = "y", .dims = std::move(dims)}};
  plan.kernels = std::move(kernels);
  return plan;
}

} // namespace torch_tensorrt::tests
