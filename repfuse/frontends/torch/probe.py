"""Prove one rewrite: the original nodes against the new layers, in float64, borders included."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from repfuse.frontends.torch.edits import Region
from repfuse.frontends.torch.lowered import Lowered
from repfuse.frontends.torch.products import FastConvs
from repfuse.frontends.torch.replay import Misread, Replay, largest
from repfuse.graph import Value
from repfuse.layouts import told_apart
from repfuse.mixing import gates_of
from repfuse.operators import Conv, Mixed, Operator
from repfuse.probing import BOUND, CANCELS, SMALL, chances, probe_sizes, source_sizes, unproved
from repfuse.select import is_skip

__all__ = ["probe"]


def probe(lowered: Lowered, region: Region, layers: list[nn.Module | None]) -> str | None:
    """Compare on random inputs of batch 2; a text that says where they disagree, or None.

    layers: the new float64 layer of each term, None for a skip. Sizes: low and high borders
    apart, one for every residue of the size modulo the stride, and the smallest legal one.
    """
    replay, convs = Replay(lowered, region), [conv for _, conv in _terms(region)]
    proved: set[bool] = set()  # of which sizes it was: large ones, and the smallest
    failed: dict[bool, str] = {}
    axes = _axes(lowered, region)
    generator = torch.Generator().manual_seed(len(region.removed))
    for size in probe_sizes(convs, proved):
        size = size if axes is None else told_apart(convs, size)
        large = max(size, default=SMALL) >= SMALL
        for tried in chances(convs, size):
            runs = False
            try:
                with torch.no_grad():
                    inputs, parts = _new_parts(
                        lowered, region, layers, tried, generator, replay, axes
                    )
                    old = replay.run(inputs)
                    runs = True
                    new = sum(parts[1:], start=parts[0])
                break
            except Misread as error:
                return f"{error}, at input size {tried}"
            except (RuntimeError, ValueError) as error:  # ValueError: a norm of one element
                text = f"it does not run on an input of size {tried}: {error}"
                if runs and large:  # where the original gives nothing, the new may not run
                    return text
        else:
            failed.setdefault(large, text)
            continue  # smaller than the original accepts, or of another residue
        proved.add(large)
        if old.shape != new.shape:
            return f"shapes {tuple(old.shape)} and {tuple(new.shape)} at input size {tried}"
        gap, scale = largest(old - new), largest(old)
        if gap > BOUND * scale:  # terms may cancel
            scale = max(scale, replay.largest_term(), CANCELS * replay.largest())
        if not gap <= BOUND * max(scale, 1e-300):
            return f"difference {gap:.3g} of {scale:.3g} at input size {tried}"
        if not large:
            break  # the smallest legal size
    return unproved(proved, failed)


def _terms(region: Region) -> list[tuple[Value, Conv]]:
    """The convs by their sources; a mixed kernel stands for a conv of its geometry."""
    found = []
    for term in region.choice.terms:
        operator = term.operator
        operator = operator.together if isinstance(operator, Mixed) else operator
        if isinstance(operator, Conv):
            found.append((term.source, operator))
    return found


def _new_parts(
    lowered: Lowered,
    region: Region,
    layers: list[nn.Module | None],
    size: tuple[int, ...],
    generator: torch.Generator,
    replay: Replay,
    axes: int | None,
) -> tuple[dict[Value, torch.Tensor], list[torch.Tensor]]:
    """Random values of the sources, and what the new layers make of them, to be added.

    A source that is computed from others is computed from them here, too.
    """
    inputs: dict[Value, torch.Tensor] = {}

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    terms = _terms(region)
    sizes, _ = source_sizes(terms, size)
    for source, conv in sorted(terms, key=lambda term: term[0]):
        if source not in inputs and not replay.derive(source, inputs):
            spatial = bool(conv.rank) or _of_matrices(lowered, region)
            batch: tuple[int, ...] = (2,) if spatial else (2, 3)
            if axes is not None:
                batch = tuple(range(2, 1 + axes - conv.rank))
            inputs[source] = random(*batch, conv.in_channels, *sizes[source])
    bare: dict[Value, torch.Tensor] = {}
    for norm in region.bare:
        inputs[norm], bare[norm] = replay.norm(norm, inputs[norm])
    parts: list[torch.Tensor] = []
    for term, layer in zip(region.choice.terms, layers, strict=True):
        if layer is not None:
            x = bare.get(term.source, inputs[term.source])
            factors = _factors(term.operator, random, replay, inputs)
            parts.append(_run(layer, x, term.operator.rank, factors))
    for term in region.choice.terms:
        if is_skip(term):
            if term.source not in inputs and not replay.derive(term.source, inputs):
                inputs[term.source] = random(*parts[0].shape)
            parts.append(inputs[term.source])
    return inputs, parts


def _factors(
    operator: Operator, random: Any, replay: Replay, inputs: dict[Value, torch.Tensor]
) -> list[torch.Tensor]:
    """Random factors, other ones for each sample of the batch; their pieces follow from them."""
    if not isinstance(operator, Mixed):
        return []
    (gates, base), ones = gates_of(operator), (1,) * operator.rank
    for gate in gates:
        if gate.value not in inputs:
            inputs[gate.value] = random(2, gate.channels, *ones)
    if base is None:
        return [inputs[gate.value] for gate in gates]
    return [torch.cat([inputs[gate.value] for gate in gates], 1)]


def _run(layer: Any, x: torch.Tensor, rank: int, factors: list[torch.Tensor]) -> torch.Tensor:
    """The layer on data of a rank; if it is one of another rank, on each position by itself."""
    own = max(layer.weight.dim() - 2, 0)
    if own == rank or factors:
        with FastConvs():
            result: torch.Tensor = layer(x, *factors)
        return result
    last = x.movedim(-(rank + 1), -1)
    flat: torch.Tensor = layer(last.reshape(-1, last.shape[-1], *[1] * own))
    return flat.reshape(*last.shape[:-1], -1).movedim(-1, -(rank + 1))


def _axes(lowered: Lowered, region: Region) -> int | None:
    """How many axes the values of a region have, where nodes that move them tell it."""
    values = {lowered.value_of[node] for node in region.path} | region.choice.reads
    values |= {lowered.root_of[node] for node in region.path if node in lowered.root_of}
    layouts = [lowered.rooted[value] for value in values if value in lowered.rooted]
    turned = sorted(values & lowered.turned)
    layouts += [lowered.layouts[node][1] for value in turned for node in lowered.moves_of(value)]
    return len(layouts[0].order() or ()) if layouts else None


def _of_matrices(lowered: Lowered, region: Region) -> bool:
    """A batch norm over the last axis and `mm` take a matrix, others on tokens three axes too."""
    return any(
        isinstance(lowered.modules[str(node.target)], nn.modules.batchnorm._BatchNorm)
        if node.op == "call_module"
        else node.target in (torch.nn.functional.batch_norm, torch.mm, "mm")
        for node in region.path
    )
