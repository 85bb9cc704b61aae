"""What check.py and the programs that it starts have in common; imports nothing.

check.py can't import what needs torch, whose lack it is to report.
"""

CACHE_STEP = "runtime cache"  # of report.Row

ENGINE_SUFFIX = ".engine"  # of torch_tensorrt's engine files
WEIGHTS_SUFFIX = ".weights.pt"

# The two engines and the dynamic one of the questions about caches, of models.CASES.
FIRST, SECOND, DYNAMIC = "mlp_float32", "convolution_float32", "dynamic_float32"

# A folder below that of the engines. Each <width>.engine in it computes y = relu(x) of a float32
# [1, width], for tests.
TEST_PLANS = "relu"

OWN_CACHE = "own.cache"  # of this machine, for `--foreign-cache` on another

# All that TensorRT-RTX 1.6 knows.
COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
