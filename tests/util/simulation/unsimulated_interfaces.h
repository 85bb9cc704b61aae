#pragma once

#include <string>

#include <NvInferRuntime.h>

#include "tests/util/simulation/SimulatedDevice.h"

// TensorRT-RTX's implementation interfaces. Every function ends the process with its name, so that a product that
// starts to need a function that is not simulated shows at once which one. Written against TensorRT-RTX 1.6 and 1.7
// (NvInferImpl.h). The functions of other versions show as compile errors.

#define TORCHTRT_UNSIMULATED(...)                                                      \
  __VA_ARGS__ noexcept override {                                                      \
    abort_simulation(std::string(kInterface) + "::" + __func__ + " is not simulated"); \
  }

namespace torch_tensorrt::tests {

class UnsimulatedRuntime : public nvinfer1::apiv::VRuntime {
 public:
  static constexpr const char* kInterface = "IRuntime";
  TORCHTRT_UNSIMULATED(nvinfer1::ICudaEngine* deserializeCudaEngine(const void*, std::size_t))
  TORCHTRT_UNSIMULATED(void setDLACore(int32_t))
  TORCHTRT_UNSIMULATED(int32_t getDLACore() const)
  TORCHTRT_UNSIMULATED(int32_t getNbDLACores() const)
  TORCHTRT_UNSIMULATED(void setGpuAllocator(nvinfer1::IGpuAllocator*))
  TORCHTRT_UNSIMULATED(void setErrorRecorder(nvinfer1::IErrorRecorder*))
  TORCHTRT_UNSIMULATED(nvinfer1::IErrorRecorder* getErrorRecorder() const)
  TORCHTRT_UNSIMULATED(nvinfer1::ILogger* getLogger() const)
  TORCHTRT_UNSIMULATED(bool setMaxThreads(int32_t))
  TORCHTRT_UNSIMULATED(int32_t getMaxThreads() const)
  TORCHTRT_UNSIMULATED(void setTemporaryDirectory(const char*))
  TORCHTRT_UNSIMULATED(const char* getTemporaryDirectory() const)
  TORCHTRT_UNSIMULATED(void setTempfileControlFlags(nvinfer1::TempfileControlFlags))
  TORCHTRT_UNSIMULATED(nvinfer1::TempfileControlFlags getTempfileControlFlags() const)
  TORCHTRT_UNSIMULATED(nvinfer1::IPluginRegistry& getPluginRegistry())
  TORCHTRT_UNSIMULATED(void setPluginRegistryParent(nvinfer1::IPluginRegistry*))
  TORCHTRT_UNSIMULATED(nvinfer1::IRuntime* loadRuntime(const char*))
  TORCHTRT_UNSIMULATED(void setEngineHostCodeAllowed(bool))
  TORCHTRT_UNSIMULATED(bool getEngineHostCodeAllowed() const)
  TORCHTRT_UNSIMULATED(nvinfer1::ICudaEngine* deserializeCudaEngineV2(nvinfer1::IStreamReaderV2&))
  TORCHTRT_UNSIMULATED(int64_t getEngineHeaderSize() const)
  TORCHTRT_UNSIMULATED(nvinfer1::EngineValidity getEngineValidity(const void*, int64_t, uint64_t*) const)
  TORCHTRT_UNSIMULATED(void setDeferredWeightsLoading(bool))
  TORCHTRT_UNSIMULATED(bool getDeferredWeightsLoading() const)
#if TRT_MINOR_RTX >= 7
  TORCHTRT_UNSIMULATED(bool setDLAWorkspaceAllocationStrategy(nvinfer1::DLAWorkspaceAllocationStrategy))
  TORCHTRT_UNSIMULATED(nvinfer1::DLAWorkspaceAllocationStrategy getDLAWorkspaceAllocationStrategy() const)
#endif
};

class UnsimulatedCudaEngine : public nvinfer1::apiv::VCudaEngine {
 public:
  static constexpr const char* kInterface = "ICudaEngine";
  TORCHTRT_UNSIMULATED(int32_t getNbLayers() const)
  TORCHTRT_UNSIMULATED(nvinfer1::IHostMemory* serialize() const)
  TORCHTRT_UNSIMULATED(
      nvinfer1::IExecutionContext* createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy))
  TORCHTRT_UNSIMULATED(bool isRefittable() const)
  TORCHTRT_UNSIMULATED(const char* getName() const)
  TORCHTRT_UNSIMULATED(int32_t getNbOptimizationProfiles() const)
  TORCHTRT_UNSIMULATED(nvinfer1::EngineCapability getEngineCapability() const)
  TORCHTRT_UNSIMULATED(void setErrorRecorder(nvinfer1::IErrorRecorder*))
  TORCHTRT_UNSIMULATED(nvinfer1::IErrorRecorder* getErrorRecorder() const)
  TORCHTRT_UNSIMULATED(nvinfer1::TacticSources getTacticSources() const)
  TORCHTRT_UNSIMULATED(nvinfer1::ProfilingVerbosity getProfilingVerbosity() const)
  TORCHTRT_UNSIMULATED(nvinfer1::IEngineInspector* createEngineInspector() const)
  TORCHTRT_UNSIMULATED(nvinfer1::Dims getTensorShape(const char*) const)
  TORCHTRT_UNSIMULATED(nvinfer1::DataType getTensorDataType(const char*) const)
  TORCHTRT_UNSIMULATED(nvinfer1::TensorLocation getTensorLocation(const char*) const)
  TORCHTRT_UNSIMULATED(bool isShapeInferenceIO(const char*) const)
  TORCHTRT_UNSIMULATED(nvinfer1::TensorIOMode getTensorIOMode(const char*) const)
  TORCHTRT_UNSIMULATED(int32_t getTensorBytesPerComponent(const char*) const)
  TORCHTRT_UNSIMULATED(int32_t getTensorComponentsPerElement(const char*) const)
  TORCHTRT_UNSIMULATED(nvinfer1::TensorFormat getTensorFormat(const char*) const)
  TORCHTRT_UNSIMULATED(const char* getTensorFormatDesc(const char*) const)
  TORCHTRT_UNSIMULATED(int32_t getTensorVectorizedDim(const char*) const)
  TORCHTRT_UNSIMULATED(nvinfer1::Dims getProfileShape(const char*, int32_t, nvinfer1::OptProfileSelector) const)
  TORCHTRT_UNSIMULATED(int32_t getNbIOTensors() const)
  TORCHTRT_UNSIMULATED(const char* getIOTensorName(int32_t) const)
  TORCHTRT_UNSIMULATED(nvinfer1::HardwareCompatibilityLevel getHardwareCompatibilityLevel() const)
  TORCHTRT_UNSIMULATED(int32_t getNbAuxStreams() const)
  TORCHTRT_UNSIMULATED(int32_t getTensorBytesPerComponentV2(const char*, int32_t) const)
  TORCHTRT_UNSIMULATED(int32_t getTensorComponentsPerElementV2(const char*, int32_t) const)
  TORCHTRT_UNSIMULATED(nvinfer1::TensorFormat getTensorFormatV2(const char*, int32_t) const)
  TORCHTRT_UNSIMULATED(const char* getTensorFormatDescV2(const char*, int32_t) const)
  TORCHTRT_UNSIMULATED(int32_t getTensorVectorizedDimV2(const char*, int32_t) const)
  TORCHTRT_UNSIMULATED(nvinfer1::ISerializationConfig* createSerializationConfig())
  TORCHTRT_UNSIMULATED(nvinfer1::IHostMemory* serializeWithConfig(nvinfer1::ISerializationConfig&) const)
  TORCHTRT_UNSIMULATED(nvinfer1::IRefitter* createRefitter(nvinfer1::ILogger&))
  TORCHTRT_UNSIMULATED(int64_t getStreamableWeightsSize() const)
  TORCHTRT_UNSIMULATED(bool isDebugTensor(const char*) const)
  TORCHTRT_UNSIMULATED(bool setWeightStreamingBudgetV2(int64_t))
  TORCHTRT_UNSIMULATED(int64_t getWeightStreamingBudgetV2() const)
  TORCHTRT_UNSIMULATED(int64_t getWeightStreamingAutomaticBudget() const)
  TORCHTRT_UNSIMULATED(int64_t getWeightStreamingScratchMemorySize() const)
  TORCHTRT_UNSIMULATED(int64_t getDeviceMemorySizeV2() const)
  TORCHTRT_UNSIMULATED(int64_t getDeviceMemorySizeForProfileV2(int32_t) const)
  TORCHTRT_UNSIMULATED(
      const int64_t* getProfileTensorValuesV2(const char*, int32_t, nvinfer1::OptProfileSelector) const)
  TORCHTRT_UNSIMULATED(nvinfer1::IExecutionContext* createExecutionContextWithRuntimeConfig(nvinfer1::IRuntimeConfig*))
  TORCHTRT_UNSIMULATED(nvinfer1::IRuntimeConfig* createRuntimeConfig())
  TORCHTRT_UNSIMULATED(int64_t getEngineStat(nvinfer1::EngineStat) const)
  TORCHTRT_UNSIMULATED(const char* getAliasedInputTensor(const char*) const)
  TORCHTRT_UNSIMULATED(bool areWeightsLoaded() const)
  TORCHTRT_UNSIMULATED(bool loadWeights(const void*, int64_t))
  TORCHTRT_UNSIMULATED(bool loadWeightsAsync(nvinfer1::IStreamReaderV2&, cudaStream_t))
#if TRT_MINOR_RTX >= 7
  TORCHTRT_UNSIMULATED(bool unloadWeights())
  TORCHTRT_UNSIMULATED(nvinfer1::IWeightsManager* createWeightsManager())
#endif
};

class UnsimulatedExecutionContext : public nvinfer1::apiv::VExecutionContext {
 public:
  static constexpr const char* kInterface = "IExecutionContext";
  TORCHTRT_UNSIMULATED(void setDebugSync(bool))
  TORCHTRT_UNSIMULATED(bool getDebugSync() const)
  TORCHTRT_UNSIMULATED(void setProfiler(nvinfer1::IProfiler*))
  TORCHTRT_UNSIMULATED(nvinfer1::IProfiler* getProfiler() const)
  TORCHTRT_UNSIMULATED(const nvinfer1::ICudaEngine& getEngine() const)
  TORCHTRT_UNSIMULATED(void setName(const char*))
  TORCHTRT_UNSIMULATED(const char* getName() const)
  TORCHTRT_UNSIMULATED(void setDeviceMemory(void*))
  TORCHTRT_UNSIMULATED(int32_t getOptimizationProfile() const)
  TORCHTRT_UNSIMULATED(bool allInputDimensionsSpecified() const)
  TORCHTRT_UNSIMULATED(void setErrorRecorder(nvinfer1::IErrorRecorder*))
  TORCHTRT_UNSIMULATED(nvinfer1::IErrorRecorder* getErrorRecorder() const)
  TORCHTRT_UNSIMULATED(bool executeV2(void* const*))
  TORCHTRT_UNSIMULATED(bool setOptimizationProfileAsync(int32_t, cudaStream_t))
  TORCHTRT_UNSIMULATED(void setEnqueueEmitsProfile(bool))
  TORCHTRT_UNSIMULATED(bool getEnqueueEmitsProfile() const)
  TORCHTRT_UNSIMULATED(bool reportToProfiler() const)
  TORCHTRT_UNSIMULATED(bool setInputShape(const char*, const nvinfer1::Dims&))
  TORCHTRT_UNSIMULATED(nvinfer1::Dims getTensorShape(const char*) const)
  TORCHTRT_UNSIMULATED(nvinfer1::Dims getTensorStrides(const char*) const)
  TORCHTRT_UNSIMULATED(bool setTensorAddress(const char*, void*))
  TORCHTRT_UNSIMULATED(const void* getTensorAddress(const char*) const)
  TORCHTRT_UNSIMULATED(bool setInputTensorAddress(const char*, const void*))
  TORCHTRT_UNSIMULATED(bool setOutputTensorAddress(const char*, void*))
  TORCHTRT_UNSIMULATED(int32_t inferShapes(int32_t, const char**))
  TORCHTRT_UNSIMULATED(bool setInputConsumedEvent(cudaEvent_t))
  TORCHTRT_UNSIMULATED(cudaEvent_t getInputConsumedEvent() const)
  TORCHTRT_UNSIMULATED(void* getOutputTensorAddress(const char*) const)
  TORCHTRT_UNSIMULATED(bool setOutputAllocator(const char*, nvinfer1::IOutputAllocator*))
  TORCHTRT_UNSIMULATED(nvinfer1::IOutputAllocator* getOutputAllocator(const char*))
  TORCHTRT_UNSIMULATED(int64_t getMaxOutputSize(const char*) const)
  TORCHTRT_UNSIMULATED(bool setTemporaryStorageAllocator(nvinfer1::IGpuAllocator*))
  TORCHTRT_UNSIMULATED(nvinfer1::IGpuAllocator* getTemporaryStorageAllocator() const)
  TORCHTRT_UNSIMULATED(bool enqueueV3(cudaStream_t))
  TORCHTRT_UNSIMULATED(void setPersistentCacheLimit(size_t))
  TORCHTRT_UNSIMULATED(size_t getPersistentCacheLimit() const)
  TORCHTRT_UNSIMULATED(bool setNvtxVerbosity(nvinfer1::ProfilingVerbosity))
  TORCHTRT_UNSIMULATED(nvinfer1::ProfilingVerbosity getNvtxVerbosity() const)
  TORCHTRT_UNSIMULATED(void setAuxStreams(cudaStream_t*, int32_t))
  TORCHTRT_UNSIMULATED(bool setDebugListener(nvinfer1::IDebugListener*))
  TORCHTRT_UNSIMULATED(nvinfer1::IDebugListener* getDebugListener())
  TORCHTRT_UNSIMULATED(bool setTensorDebugState(const char*, bool))
  TORCHTRT_UNSIMULATED(bool getDebugState(const char*) const)
  TORCHTRT_UNSIMULATED(bool setAllTensorsDebugState(bool))
  TORCHTRT_UNSIMULATED(size_t updateDeviceMemorySizeForShapes())
  TORCHTRT_UNSIMULATED(void setDeviceMemoryV2(void*, int64_t))
  TORCHTRT_UNSIMULATED(nvinfer1::IRuntimeConfig* getRuntimeConfig() const)
  TORCHTRT_UNSIMULATED(bool setUnfusedTensorsDebugState(bool))
  TORCHTRT_UNSIMULATED(bool getUnfusedTensorsDebugState() const)
  TORCHTRT_UNSIMULATED(bool isStreamCapturable(cudaStream_t) const)
  TORCHTRT_UNSIMULATED(bool setCommunicator(void*))
};

} // namespace torch_tensorrt::tests

#undef TORCHTRT_UNSIMULATED
