"""Other ways to compute a fitted detector: ONNX files, onnxruntime, and Ray for large archives."""
