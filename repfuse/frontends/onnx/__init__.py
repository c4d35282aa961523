"""The ONNX frontend: fuse, plan, verify and assert_equivalent for a ModelProto or a file."""

from repfuse.frontends.onnx.fuse import fuse, plan
from repfuse.frontends.onnx.plan import Plan
from repfuse.frontends.onnx.verify import assert_equivalent, verify

__all__ = ["Plan", "assert_equivalent", "fuse", "plan", "verify"]
