"""Structural reparameterization as a compiler.

    fused = repfuse.fuse(model)

merges the parallel conv, batch norm, identity and pooling branches of any PyTorch model into
single convolutions, exactly, and leaves alone what cannot be merged, with a reason.
"""

from repfuse.api import assert_equivalent, fuse, plan, verify
from repfuse.errors import NotEquivalentError, RepfuseError

__all__ = [
    "NotEquivalentError",
    "RepfuseError",
    "__version__",
    "assert_equivalent",
    "fuse",
    "plan",
    "verify",
]

__version__ = "0.1.0.dev0"
