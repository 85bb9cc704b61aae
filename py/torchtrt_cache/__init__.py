"""Runtime cache files and their objects. Works without torch and TensorRT-RTX."""
