"""Axes that are moved again and again in random ONNX graphs, with work in between that follows
them, that does not, or that takes them apart."""

from __future__ import annotations

from collections.abc import Callable

from tests.frontends.onnx.random_base import Tensor
from tests.frontends.onnx.random_bodies import RandomBodies

__all__ = ["RandomVoyages"]

Place = tuple[str, tuple[int, ...]]  # a tensor, and which axis of the start stands where


class RandomVoyages(RandomBodies):
    """Moves that end where they began."""

    def voyage(self) -> None:
        x = self.pick()
        here: Place = x.name, tuple(range(self.ndim))
        seen = [here]
        steps: list[Callable[[Tensor, Place], Place]] = [
            self._turned, self._turned, self._scaled, self._scaled, self._placed, self._activated,
            self._doubled, self._flattened, self._mapped, self._mapped, self._stretched,
            self._asked, self._gathered,
        ]  # fmt: skip
        for _ in range(self.dice.choice((3, 4, 6))):
            here = self.dice.choice(steps)(x, here)
            earlier = [name for name, axes in seen if axes == here[1] and name != here[0]]
            if earlier and self.maybe(0.25):
                op = self.dice.choice(("Add", "Add", "Sub"))
                pair = self.shuffled(here[0], self.dice.choice(earlier))
                here = self.net.node(op, *pair), here[1]
            seen.append(here)
        name, axes = here
        if axes != tuple(range(self.ndim)) or self.maybe(0.2):
            back = sorted(range(self.ndim), key=axes.__getitem__)
            name = self.net.node("Transpose", name, perm=back)
        if name != x.name:
            self.keep(name, x)

    def _turned(self, x: Tensor, here: Place) -> Place:
        name, axes = here
        order = self.dice.sample(range(self.ndim), self.ndim)
        if self.rank and self.maybe(0.7):  # between the two layouts that are in use
            order = [0, *range(2, self.ndim), 1]
            if axes == (0, *range(2, self.ndim), 1):
                order = [0, self.ndim - 1, *range(1, self.ndim - 1)]
        return self.net.node("Transpose", name, perm=order), tuple(axes[i] for i in order)

    def _lengths(self, x: Tensor, axes: tuple[int, ...]) -> list[int]:
        """Of the axes; of use where they are known."""
        full = [self.sizes[0]["N"], *x.sizes[0]]
        full.insert(self.axis, x.channels)
        return [full[axis] for axis in axes]

    def _scaled(self, x: Tensor, here: Place) -> Place:
        """A number per channel, wherever these are."""
        name, axes = here
        shape = [x.channels if axis == self.axis else 1 for axis in axes]
        while shape and shape[0] == 1 and self.maybe(0.8):
            shape.pop(0)
        op = self.dice.choice(("Mul", "Add", "Sub"))
        return self.net.node(op, *self.shuffled(name, self.net.scale(*shape))), axes

    def _placed(self, x: Tensor, here: Place) -> Place:
        """A number per place: an embedding of the position, say."""
        name, axes = here
        if not self.static:
            return here
        lengths = self._lengths(x, axes)
        shape = [n if self.maybe(0.7) else 1 for n in lengths]
        op = self.dice.choice(("Add", "Add", "Mul"))
        return self.net.node(op, *self.shuffled(name, self.net.scale(*shape))), axes

    def _activated(self, x: Tensor, here: Place) -> Place:
        op = self.dice.choice(("Relu", "Identity", "Neg", "Tanh"))
        return self.net.node(op, here[0]), here[1]

    def _doubled(self, x: Tensor, here: Place) -> Place:
        return self.net.node(self.dice.choice(("Add", "Sum", "Mean")), here[0], here[0]), here[1]

    def _flattened(self, x: Tensor, here: Place) -> Place:
        """Some axes become one, and are taken apart again, with work in between."""
        name, axes = here
        net, start = self.net, self.dice.randrange(1, self.ndim)
        given = net.node("Shape", name) if not self.static or self.maybe(0.3) else ""
        shape = given or net.ints(*self._lengths(x, axes))
        y = net.node("Reshape", name, net.ints(*[0] * start, -1))
        if start == self.ndim - 1 and axes[-1] == self.axis and self.maybe():
            y = net.node("MatMul", y, net.weight(x.channels, x.channels))
        elif self.maybe():
            y = net.node("Mul", y, net.scale())
        return net.node("Reshape", y, shape), axes

    def _mapped(self, x: Tensor, here: Place) -> Place:
        """A product along the channels, from either side."""
        name, axes = here
        weight = self.net.weight(x.channels, x.channels)
        if axes[-1] == self.axis:
            return self.net.node("MatMul", name, weight), axes
        if axes[-2] == self.axis:
            return self.net.node("MatMul", weight, name), axes
        if self.rank and axes == tuple(range(self.ndim)):
            return self.net.conv(name, x.channels, x.channels, 1, self.rank), axes
        return here

    def _stretched(self, x: Tensor, here: Place) -> Place:
        """One axis more for a while."""
        net, place = self.net, self.dice.randrange(self.ndim)
        if net.opset < 13:
            y = net.node("Unsqueeze", here[0], axes=[place])
            return net.node("Squeeze", y, axes=[place]), here[1]
        y = net.node("Unsqueeze", here[0], net.ints(place))
        y = net.node("Mul", y, net.scale()) if self.maybe(0.3) else y
        return net.node("Squeeze", y, net.ints(place)), here[1]

    def _asked(self, x: Tensor, here: Place) -> Place:
        """Its shape is read: by a constant that is expanded, by a Reshape, or by nobody."""
        net, (name, axes) = self.net, here
        shape = net.node("Shape", name)
        form = self.dice.choice(("expand", "reshape", "nobody", "output"))
        if form == "expand" and net.opset >= 8:
            return net.node("Add", name, net.node("Expand", net.scale(), shape)), axes
        if form == "reshape":
            return net.node("Reshape", net.node("Neg", name), shape), axes
        if form == "output":
            self.outputs.append(shape)
        return here

    def _gathered(self, x: Tensor, here: Place) -> Place:
        """The channels in another order."""
        order = self.dice.sample(range(x.channels), x.channels)
        axis = here[1].index(self.axis)
        return self.net.node("Gather", here[0], self.net.ints(*order), axis=axis), here[1]
