"""The PyTorch frontend."""

from repfuse.frontends.torch.plan import Plan, fuse, plan
from repfuse.frontends.torch.verify import assert_equivalent, verify

__all__ = ["Plan", "assert_equivalent", "fuse", "plan", "verify"]
