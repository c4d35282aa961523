"""A block as calls of functions on its parameters, the other way in which people write it.

The block's own forward runs; but each layer that it calls is not called as a module: the function
of that layer is, on the layer's parameters. So all of it happens in one method, and no layer is
ever entered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Functional"]

CONVS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
ACTIVATIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.ReLU: F.relu,
    nn.Hardswish: F.hardswish,
    nn.Identity: lambda x: x,
}


def _convolved(layer: Any, x: Tensor) -> Tensor:
    settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return CONVS[type(layer)](x, layer.weight, layer.bias, *settings)


def _function_of(layer: Any) -> Callable[[Tensor], Tensor] | None:
    """What a layer is without its module."""
    if type(layer) in CONVS:
        return lambda x: _convolved(layer, x)
    if type(layer) in ACTIVATIONS:
        return ACTIVATIONS[type(layer)]
    if isinstance(layer, _BatchNorm):
        return lambda x: F.batch_norm(
            x,
            layer.running_mean,
            layer.running_var,
            layer.weight,
            layer.bias,
            False,
            0.0,
            layer.eps,
        )
    if isinstance(layer, nn.ConvTranspose2d):
        settings: Any = (layer.stride, layer.padding, layer.output_padding, layer.groups)
        return lambda x: F.conv_transpose2d(x, layer.weight, layer.bias, *settings)
    if isinstance(layer, nn.Linear):
        return lambda x: F.linear(x, layer.weight, layer.bias)
    if isinstance(layer, nn.AvgPool2d):
        return lambda x: F.avg_pool2d(x, layer.kernel_size, layer.stride, layer.padding)
    if isinstance(layer, nn.Dropout):
        return lambda x: F.dropout(x, layer.p, training=layer.training)
    if isinstance(layer, nn.LeakyReLU):
        return lambda x: F.leaky_relu(x, layer.negative_slope)
    return None


class _Called:
    """What a method of a module sees as `self`: its layers are functions, the rest is as it is."""

    def __init__(self, module: nn.Module | None) -> None:
        self._module: Any = module

    def __getattr__(self, name: str) -> Any:
        layers = self._module._modules
        if layers.get(name) is not None:
            return _Called(layers[name])
        own = getattr(type(self._module), name, None)
        return own.__get__(self) if callable(own) else getattr(self._module, name)

    def __iter__(self) -> Iterator[_Called]:
        return (_Called(layer) for layer in self._module)

    def __call__(self, x: Tensor) -> Tensor:
        function = _function_of(self._module)
        if function is not None:
            return function(x)
        if isinstance(self._module, nn.Sequential):
            for layer in self:
                x = layer(x)
            return x
        result: Tensor = type(self._module).forward(self, x)
        return result


class Functional(nn.Module):
    """The block, its layers as functions."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return _Called(self.block)(x)
