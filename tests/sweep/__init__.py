"""Every constructor of a model zoo, fused and compared, each in a process of its own."""

from tests import torchvision_cpu  # noqa: F401  (before anything that imports timm or torchvision)
