"""ONNX export, its runtime and quantization."""
