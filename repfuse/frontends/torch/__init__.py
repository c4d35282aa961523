"""The PyTorch frontend."""

from repfuse.frontends.torch.plan import Plan, fuse, plan

__all__ = ["Plan", "fuse", "plan"]
