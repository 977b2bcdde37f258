"""Models in other programs' formats: ONNX, a MONAI bundle, a plain safetensors file. One file and one line a format."""
