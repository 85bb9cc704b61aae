"""What runtime cache files need besides torch and TensorRT-RTX, neither of which it imports."""
