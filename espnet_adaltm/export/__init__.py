"""What leaves the pipeline: folders for `transformers`, ONNX, model cards."""
