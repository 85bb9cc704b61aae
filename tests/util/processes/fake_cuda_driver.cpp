// The one function of libcuda.so.1 that the product calls by itself. It notes the mode for the calling thread.

namespace {
thread_local int stream_capture_mode = 0; // CU_STREAM_CAPTURE_MODE_GLOBAL
}

extern "C" int cuThreadExchangeStreamCaptureMode(int* mode) {
  const int before = stream_capture_mode;
  stream_capture_mode = *mode;
  *mode = before;
  return 0;
}
