"""Export a network and its fused form to ONNX, and check that the two files compute the same.

    python examples/export_and_check.py [FOLDER]

writes reference.onnx and fused.onnx. The same check from the command line, as a CI would run it:

    repfuse-check FOLDER/reference.onnx FOLDER/fused.onnx
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

import repfuse


class Block(nn.Module):
    """Three parallel branches, as RepVGG trains them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch3x3 = conv_bn(inputs, outputs, 3, stride)
        self.branch1x1 = conv_bn(inputs, outputs, 1, stride)
        self.skip = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch3x3(x) + self.branch1x1(x)
        if self.skip is not None:
            y = y + self.skip(x)
        return torch.relu(y)


def conv_bn(inputs: int, outputs: int, kernel_size: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def network() -> nn.Sequential:
    blocks = (Block(3, 16, 2), Block(16, 16, 1), Block(16, 32, 2), Block(32, 32, 1))
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


@torch.no_grad()
def pretend_to_train(model: nn.Module) -> None:
    """Give the batch norms statistics, scales and shifts other than those they start with."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    model.train()
    for _ in range(10):
        model(torch.randn(8, 3, 32, 32))
    model.eval()


def export(model: nn.Module, path: Path) -> None:
    axes = {"image": {0: "batch", 2: "height", 3: "width"}, "scores": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this exporter is the older one
        torch.onnx.export(
            model,
            (torch.randn(1, 3, 32, 32),),
            path,
            input_names=["image"],
            output_names=["scores"],
            dynamic_axes=axes,
            dynamo=False,
        )


def main() -> None:
    torch.manual_seed(0)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    folder.mkdir(parents=True, exist_ok=True)
    reference, fused = folder / "reference.onnx", folder / "fused.onnx"

    model = network()
    pretend_to_train(model)
    export(model, reference)
    export(repfuse.fuse(model), fused)

    print(repfuse.verify(reference, fused))
    repfuse.assert_equivalent(reference, fused)


if __name__ == "__main__":
    main()
