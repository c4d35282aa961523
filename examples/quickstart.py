"""Quickstart: fuse a RepVGG network with repfuse, and measure what that changes.

RepVGG trains with three parallel branches per block (3x3 conv + BN, 1x1 conv + BN, BN alone) and
is meant to be deployed as one 3x3 conv per block. This script contains the training-time network
only, written in plain PyTorch, and no line of conversion code: repfuse finds the branches itself.

  Part 1  accuracy   trains a narrow RepVGG on scikit-learn's handwritten digits, fuses it, and
                     compares accuracy, predictions and logits; saves the fused weights and loads
                     them back.
  Part 2  cost       fuses a RepVGG of deployment size, and compares latency, parameters, MACs and
                     activation memory.

The whole of repfuse that you need is in `show_accuracy`:

    plan = repfuse.plan(model)                           # what would be merged, what not, and why
    fused = plan.apply()                                 # or at once: repfuse.fuse(model)
    comparison = repfuse.verify(model, fused, images)    # the error, against a float64 reference
    repfuse.assert_equivalent(model, fused, images)      # the same as a check that raises

Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import repfuse

# ------------------------------------------------------------------ the network, in plain PyTorch


def conv_bn(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int
) -> nn.Sequential:
    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        groups=groups,
        bias=False,
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


class RepVGGBlock(nn.Module):
    """Two or three parallel branches on one input, their sum, and a ReLU.

    The BN branch exists where input and output have the same shape. With `weighted=True` each
    branch has a learnable weight: alpha (3x3), beta (1x1), gamma (BN).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        groups: int = 1,
        weighted: bool = False,
    ) -> None:
        super().__init__()
        self.conv3x3 = conv_bn(in_channels, out_channels, 3, stride, groups)
        self.conv1x1 = conv_bn(in_channels, out_channels, 1, stride, groups)
        has_skip = stride == 1 and in_channels == out_channels
        self.skip = nn.BatchNorm2d(in_channels) if has_skip else None
        self.activation = nn.ReLU(inplace=True)

        self.weighted = weighted
        if weighted:
            self.alpha = nn.Parameter(torch.ones(()))
            self.beta = nn.Parameter(torch.ones(()))
        if weighted and has_skip:
            self.gamma = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.weighted:
            out = self.alpha * self.conv3x3(x) + self.beta * self.conv1x1(x)
        else:
            out = self.conv3x3(x) + self.conv1x1(x)

        if self.skip is not None and self.weighted:
            out = out + self.gamma * self.skip(x)
        elif self.skip is not None:
            out = out + self.skip(x)

        activated: Tensor = self.activation(out)
        return activated


class RepVGG(nn.Module):
    """A stem and four stages of `RepVGGBlock`; the stem and each stage halve the image."""

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 1000,
        widths: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 4, 14, 1),
        groups: Sequence[int] = (1, 1, 1, 1),
        weighted: bool = False,
    ) -> None:
        super().__init__()
        self.stem = RepVGGBlock(in_channels, widths[0], stride=2, weighted=weighted)
        stages = []
        channels = widths[0]
        for width, depth, stage_groups in zip(widths, depths, groups, strict=True):
            blocks = []
            for index in range(depth):
                stride = 2 if index == 0 else 1
                blocks.append(RepVGGBlock(channels, width, stride, stage_groups, weighted))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def build_digits_network() -> RepVGG:
    """A narrow RepVGG for 32x32 grey images, with grouped later stages and branch weights."""
    return RepVGG(
        in_channels=1,
        classes=10,
        widths=(16, 32, 64, 64),
        depths=(1, 2, 2, 1),
        groups=(1, 1, 2, 4),
        weighted=True,
    )


def randomize_batch_norm(model: nn.Module) -> None:
    """Give every BN statistics and affine parameters like a trained network's.

    A fresh BN is nearly the identity (mean 0, variance 1, weight 1, bias 0), and would hide an
    error in folding it.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)


# ------------------------------------------------------------------------------ data and training


@dataclass(frozen=True)
class Digits:
    """Images of shape (N, 1, 32, 32) in [-1, 1], labels of shape (N,) in 0..9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digit_images(seed: int) -> Digits:
    """Split scikit-learn's 1797 digits 3 : 1, and scale them up from 8x8 to 32x32."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 8 - 1
    images = nn.functional.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(digits.target).long()

    train, test = train_test_split(
        torch.arange(len(labels)).numpy(), test_size=0.25, stratify=digits.target, random_state=seed
    )
    return Digits(images[train], labels[train], images[test], labels[test])


def train(model: nn.Module, data: Digits, epochs: int, seed: int, console: Console) -> None:
    """Train with SGD and a one-cycle learning rate; leave the model in eval mode."""
    batch_size, learning_rate = 32, 0.05
    shuffle = torch.Generator().manual_seed(seed)
    steps = [
        batch
        for _ in range(epochs)
        for batch in torch.randperm(len(data.train_labels), generator=shuffle).split(batch_size)
    ]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-3
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=len(steps)
    )
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)

    model.train()
    for batch in track(steps, description="Training", console=console):
        loss = loss_of(model(data.train_images[batch]), data.train_labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """The predicted class of each image."""
    logits: Tensor = model(images)
    return logits.argmax(dim=1)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    return (predictions == labels).double().mean().item()


# ------------------------------------------------------------------------------------ measurement


class ActivationMeter(TorchDispatchMode):
    """The most bytes that the tensors created by a forward occupy at one moment.

    Weights and the input (`fixed`), and what a kernel allocates for itself while it runs, are not
    counted. What is freed stops counting at once, and a view counts once with its base.
    """

    def __init__(self, fixed: Iterable[Tensor]) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._fixed = {tensor.untyped_storage().data_ptr() for tensor in fixed}
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self._fixed:
                storage = value.untyped_storage()
                self._alive[StorageWeakRef(storage)] = storage.nbytes()
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        self.peak_bytes = max(self.peak_bytes, sum(self._alive.values()))
        return result


@dataclass(frozen=True)
class Cost:
    """What one forward of a model costs."""

    latency_ms: float
    parameters: int
    macs: int
    activation_bytes: int


@torch.no_grad()
def interleaved_latency(
    models: Sequence[nn.Module], x: Tensor, rounds: int, console: Console
) -> list[float]:
    """The median time of a forward in milliseconds, for each model.

    The models take turns, so that a busy moment of the machine slows all of them alike. A first
    forward of each is not counted.
    """
    for model in models:
        model(x)
    times: list[list[float]] = [[] for _ in models]
    for _ in track(range(rounds), description="Timing", console=console):
        for model, own_times in zip(models, times, strict=True):
            start = time.perf_counter()
            model(x)
            own_times.append((time.perf_counter() - start) * 1e3)
    return [statistics.median(own_times) for own_times in times]


@torch.no_grad()
def measure_cost(model: nn.Module, x: Tensor, latency_ms: float) -> Cost:
    with FlopCounterMode(display=False) as flops:
        model(x)
    with ActivationMeter(fixed=(x, *model.parameters(), *model.buffers())) as activations:
        model(x)
    return Cost(
        latency_ms=latency_ms,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        macs=flops.get_total_flops() // 2,  # a multiply-accumulate is two operations
        activation_bytes=activations.peak_bytes,
    )


# ---------------------------------------------------------------------------------- presentation


def layers(model: nn.Module) -> str:
    """How many convs and batch norms a model has, in words."""
    convs = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    return f"{convs} convs and {norms} batch norms"


def shortened(text: str, lines: int) -> str:
    """The first lines of a text, and how many were left out."""
    kept = text.splitlines()
    left_out = len(kept) - lines
    if left_out <= 0:
        return text
    return "\n".join([*kept[:lines], f"... ({left_out} more lines)"])


def cost_table(before: Cost, after: Cost) -> Table:
    table = Table("", title="One forward")
    for heading in ("before", "after", "before / after"):
        table.add_column(heading, justify="right")
    for name, unit, scale, old, new in (
        ("latency (median)", "ms", 1.0, before.latency_ms, after.latency_ms),
        ("parameters", "M", 1e6, before.parameters, after.parameters),
        ("MACs (convs and Linears)", "M", 1e6, before.macs, after.macs),
        ("activation memory (peak)", "MB", 1e6, before.activation_bytes, after.activation_bytes),
    ):
        table.add_row(
            name, f"{old / scale:.2f} {unit}", f"{new / scale:.2f} {unit}", f"{old / new:.2f}x"
        )
    return table


def accuracy_table(before: Tensor, after: Tensor, labels: Tensor) -> Table:
    table = Table("", title="Test images")
    for heading in ("before", "after"):
        table.add_column(heading, justify="right")
    table.add_row("accuracy", f"{accuracy(before, labels):.2%}", f"{accuracy(after, labels):.2%}")
    same = int((before == after).sum())
    table.add_row("identical predictions", "", f"{same} of {len(labels)}")
    return table


# ---------------------------------------------------------------------------------- the two parts


@dataclass(frozen=True)
class Size:
    """How much work the script does."""

    epochs: int
    depths: tuple[int, int, int, int]
    image_size: int
    rounds: int


FULL = Size(epochs=12, depths=(2, 4, 14, 1), image_size=224, rounds=30)
FAST = Size(epochs=4, depths=(1, 1, 2, 1), image_size=64, rounds=5)


def show_accuracy(size: Size, seed: int, out: Path, console: Console) -> bool:
    """Train, fuse, compare, save and load; return whether both networks agree."""
    console.rule("1. Accuracy: a RepVGG trained on handwritten digits")
    data = load_digit_images(seed)
    model = build_digits_network()
    train(model, data, size.epochs, seed, console)

    plan = repfuse.plan(model)
    print(plan)
    fused = plan.apply()
    print(f"Fused: {layers(model)} became {layers(fused)}.")

    before = predict(model, data.test_images)
    after = predict(fused, data.test_images)
    console.print(accuracy_table(before, after, data.test_labels))
    comparison = repfuse.verify(model, fused, data.test_images)
    print(comparison)

    torch.save(fused.state_dict(), out)
    deployed = repfuse.fuse(build_digits_network())  # untrained: only its structure counts
    deployed.load_state_dict(torch.load(out, weights_only=True))
    deployed.eval()
    repfuse.assert_equivalent(model, deployed, data.test_images)
    print(f"Saved the fused weights to {out} ({out.stat().st_size / 1e3:.0f} kB), and loaded them")
    print("into a freshly built and fused network: equivalent to the trained one.")
    return comparison.passed and torch.equal(before, after)


def show_cost(size: Size, console: Console) -> bool:
    """Fuse a network of deployment size and compare costs; return whether both networks agree."""
    console.rule("2. Cost: a RepVGG of deployment size")
    model = RepVGG(depths=size.depths).eval()
    randomize_batch_norm(model)
    x = torch.randn(1, 3, size.image_size, size.image_size)

    plan = repfuse.plan(model)
    print(shortened(str(plan), lines=14))
    fused = plan.apply()
    print(f"Fused: {layers(model)} became {layers(fused)}.")

    comparison = repfuse.verify(model, fused, x)
    print(comparison)

    latency_before, latency_after = interleaved_latency((model, fused), x, size.rounds, console)
    before = measure_cost(model, x, latency_before)
    after = measure_cost(fused, x, latency_after)
    console.print(cost_table(before, after))
    console.print(
        f"{size.rounds} interleaved runs, batch 1, {size.image_size}x{size.image_size}, float32, "
        f"{torch.get_num_threads()} CPU thread(s)."
    )
    return comparison.passed


# ---------------------------------------------------------------------------------- command line


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("fused_repvgg.pt"),
        metavar="FILE",
        help="where the fused state dict of part 1 goes (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="for weights, data split and order (default: 0)"
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="CPU threads (default: 1, which is steady where other work shares the cores)",
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help="a shorter training and a smaller network in part 2",
    )
    options = parser.parse_args(arguments)
    if not options.out.parent.is_dir():
        parser.error(f"--out: there is no folder {options.out.parent}")
    if options.threads < 1:
        parser.error(f"--threads: needs at least 1, not {options.threads}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    size = FAST if options.fast else FULL
    console = Console()
    start = time.perf_counter()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)

    same_accuracy = show_accuracy(size, options.seed, options.out, console)
    same_outputs = show_cost(size, console)

    equal = same_accuracy and same_outputs
    verdict = "Fused and equal" if equal else "NOT EQUAL: see the tables above"
    console.rule(f"{verdict}, {time.perf_counter() - start:.0f} s")
    return 0 if equal else 1


if __name__ == "__main__":
    raise SystemExit(main())
