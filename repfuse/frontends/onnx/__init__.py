"""The ONNX frontend. The verbs are in `fuse` and `verify`; only the latter needs ONNX Runtime."""
