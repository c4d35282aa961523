"""The names of the sentences in which a plan says why something stays as it is.

`{}` stands for whatever differs from model to model. A sentence that ends with another one, as
"... is not written again: {}" does, has the name of that one. What each name means, and what to
change, is in docs/refusals.md; a test finds every sentence of the source and compares.
"""

from __future__ import annotations

from functools import cache, lru_cache

__all__ = ["REASONS", "id_of", "template_of"]

REASONS: dict[str, tuple[str, ...]] = {
    # Borders.
    "conv-pads-after-conv": (
        "the second conv pads by {} where the first would give its bias or taps",
    ),
    "conv-pads-after-shift": ("the conv pads with zeros where the shift before it would stand",),
    "average-without-border": (
        "the average does not count the border, so that its divisor changes there",
    ),
    "ceil-mode": ("the pooling window may hang over the end (ceil_mode)",),
    "dilated-average": ("a dilated average pooling",),
    "borders-differ": ("the borders differ: {} against {}",),
    "uneven-mirrored-padding": ("unequal padding {} with a {} border needs a larger border",),
    "border-of-numbers": ("a border of {}", "a border of numbers per channel"),
    "border-of-other-numbers": (
        "the border holds other numbers than the operator before it makes of zeros",
        "the conv before the border would reach its input there: it pads by {}",
        "a {} border is made of what it surrounds",
        "a transposed conv stands before the border",
    ),
    "border-not-spatial": ("a border along the channels or the batch",),
    "border-unknown": (
        "a border whose width is not known here",
        "a border whose {} is not known here",
    ),
    "padding-mode": ("a conv with padding_mode {}",),
    "auto-pad": (
        "the padding of auto_pad depends on the size of the input",
        "the crop of a ConvTranspose with auto_pad or output_shape depends on the input",
    ),
    # Branches that do not fit each other.
    "output-sizes-differ": (
        "the output sizes differ: padding {} with kernel_size {} against {} with {}",
    ),
    "strides-differ": ("stride differs: {} against {}",),
    "settings-differ": ("{} differs: {} against {}",),
    "channels-differ": (
        "{} channels meet a conv that reads {}",
        "{} channels meet a scale for {}",
        "{} channels meet a border for {}",
        "{} channels are added to {}",
        "the skip keeps {} channels, the conv beside it maps {} to {}",
    ),
    "axes-differ": (
        "a {}-D conv reads {}-D data",
        "a {}-D conv is scaled along the channel axis of {}-D data",
        "a {}-D conv is added to {}-D data",
        "a {}-D conv is added to a {}-D one",
        "the channel axes of {}-D and {}-D data differ",
        "{}-D data is padded in {} axes",
    ),
    "transposed-conv": (
        "the conv before a transposed conv has a bias or is no pointwise conv",
        "the conv after a transposed conv is no pointwise conv",
        "a transposed conv is added to one that is not",
        "the shift reaches the outputs of the transposed conv through different taps",
    ),
    "groups-in-concat": (
        "rows of {} and {} groups do not stay contiguous per group",
        "the groups map {} channels to {} and {} to {}",
    ),
    "slices-in-concat": (
        "the ranges are of {} and of {} channels",
        "a range that ends at channel {} is followed by one from {}",
        "the {} channels are no range of the {}",
    ),
    # Not linear.
    "factor-from-input": (
        "a branch is multiplied by a factor that depends on the input",
        "its factors depend on the input: dynamic=True (--dynamic) makes it one {} where that is "
        "cheaper",
    ),
    "factor-not-per-sample": (
        "the factor differs from position to position",
        "the factor is the same for all samples of a batch",
        "the factor is computed from another input, whose batch may be another one",
    ),
    "factor-from-its-branch": (
        "the factor is computed from the output of its own branch, which has to exist",
    ),
    "factors-not-mixed": (
        "a branch with a factor of its own has another one",
        "the factors differ from channel to channel, which a conv mixes",
        "the factor is computed from more values than are looked through",
        "{} is not run with another kernel for each sample",
        "no branch is a conv",
        "a kernel for each sample takes a Scan, which opset {} lacks",
    ),
    "step-in-branch": ("a branch passes through {}, across which nothing is merged",),
    "changed-between-branches": ("{} changes the input of the branches in place between them",),
    "active-dropout": ("a dropout that may be active",),
    "batch-statistics": ("a batch norm on the statistics of the batch",),
    "no-running-statistics": ("a batch norm without running statistics",),
    "batch-norm-axis": (
        "a batch norm over axis 1 of an input whose number of axes is not known here",
        "a batch norm over axis 1, where the channels are axis {}",
        "a batch norm over each position by itself",
    ),
    "between-nonlinear": ("it follows {}",),
    "not-per-channel": (
        "a constant of shape {} is no number per channel",
        "its third operand adds another number to each row",
    ),
    "divided-by-a-value": ("a constant divided by a value is not linear",),
    "matrix-form": ("its first matrix is transposed", "its second matrix has {} axes"),
    # Values that must exist.
    "is-output": ("it is an output of the model", "it is an output of the graph"),
    "kept-by-forward": (
        "forward keeps it in the attribute {}",
        "forward keeps it {}",
        "forward keeps a value outside of the model",
    ),
    "public-method": ("it passes through {}, which can be called by itself",),
    "used-by-untraced": (
        "a module that cannot be traced uses a part of this by itself",
        "a layer is also called by a module that cannot be traced",
    ),
    "shape-is-read": ("its shape or type is read and nothing else has the same",),
    "norm-has-other-readers": (
        "one of its readers cannot absorb it: {}",
        "{} ({}) reads it too: {}",
        "the weight of {}, which reads it, is used elsewhere as well",
        "{} is also read by something that needs its weight and bias",
    ),
    "written-out-norm": (
        "a norm that is written out: runtimes run it as one kernel with its scale and bias",
    ),
    "own-memory": ("{}, in memory of its own",),
    # Weights.
    "weight-from-input": ("its weight is no constant",),
    "overridable-weight": ("{} is also a graph input, so that a caller may set it",),
    "weight-in-steps": ("{} is computed in steps ({}), where a last bit decides",),
    "weight-type-unknown": (
        "{} takes its type from {}, whose type is not known here",
        "the element type of the result is not known here",
    ),
    "quantized": (
        "a quantized operator: its numbers are integers, which a fold would have to round",
        "{} is dequantized from integers: folding into it would change what they stand for",
        "{} with weights of {}",
    ),
    "weights-used-elsewhere": (
        "{} are read by {} as well",
        "{} are kept in a list as well",
        "{} looks up {} of {}",
        "{} lists the layers of {}",
    ),
    "weights-used-by-untraced": ("{} may be used by {}, which cannot be traced",),
    "weights-change": ("{} change in place",),
    "not-finite": ("the weights hold NaN, infinity or a negative variance",),
    "overflow": ("the folded weights overflow {}",),
    "dtypes-differ": ("the branches have different dtypes: {}",),
    "on-meta": ("some of the weights are on the meta device, and have no values",),
    "uninitialised": ("{}, which is not initialised yet",),
    "computed-weight": ("the {} is computed by code that changes a buffer",),
    # Layers and memory with other users.
    "hooks": ("{} with hooks", "{} has hooks"),
    "called-twice": ("a module is called {} times, in different places",),
    "changed-in-place": (
        "a view of memory that is changed in place",
        "memory that may be changed in place",
        "{} changes {} in place, which others may read",
        "{} changes {} in place, which would share its memory",
        "{} changes the source of the sum in place in between",
        "{} sees memory that {} changes in place",
    ),
    "other-method": (
        "{}, which is not traced, calls {} alone",
        "{}, which may be given other options, calls {} alone",
    ),
    # Code that is not written again, or not traced.
    "cannot-be-traced": (
        "{}, which cannot be traced",
        "a TorchScript module",
        "a TorchScript module has no Python code",
        "{}: the attribute {} of a tensor is assigned",
    ),
    "other-modes": (
        "an operation under autocast or its own grad mode",
        "the method enters a grad or autocast mode",
        "the method asks {}",
    ),
    "random-numbers": ("the trace drew random numbers",),
    "makes-a-tensor": ("the trace holds a tensor that the method makes itself",),
    "asks-for-a-dtype": ("it asks for the dtype or device of weights that it lists",),
    "changes-attributes": ("{} changes attributes of the module",),
    "open-arguments": (
        "forward takes *{}",
        "forward takes **{}",
        "what {}={} of forward decides is fixed by tracing",
        "forward has more combinations of optional arguments than are traced",
        "forward with {} cannot be traced",
        "it asks for the type of what it is given",
        "its caller, which cannot be traced, may give {} another value",
        "{} is also called in a way that cannot be traced",
        "{} takes any number of arguments",
        "{} calls another argument self",
    ),
    "who-runs-it": (
        "a Sequential runs its children one after the other",
        "a ModuleList has no forward",
        "its forward is an attribute of the instance",
        "its class asks for super(type(self), self)",
        "a GraphModule with a calling convention of its own",
        "it calls a module whose class has a __call__ of its own",
    ),
    "source-not-in-reach": (
        "the merged layer would read a value that only exists inside another module",
        "a source of the merged branches is not at hand",
        "a source of the merged branches is not at hand in this layout",
        "the value is only at hand with its axes in another order",
        "the code asks for the size of a value in between, which would be another one",
        "{} also has to run, and the call that runs it would go",
        "it is a part of {}",
        "{} is read, but not made any more",
    ),
    "odd-containers": (
        "it passes on a container of a class of its own",
        "it returns a container of a class of its own",
        "it computes with listed parameters or buffers",
        "a method is given a {}",
        "a method is given a module that is not part of the model",
        "the argument {} is a {}",
        "an argument holds a {}",
        "its result holds a {}",
    ),
    "names-of-others": (
        "it uses {}, which belongs to another module",
        "{} has a Python keyword as a name",
        "a function that it calls cannot be imported: {}",
    ),
    "calls-differ": (
        "its calls have different numbers of merged branches",
        "it does different things for the same kind of arguments",
    ),
    # Files.
    "old-opset": ("an operator of opset {}: convert the model to {}",),
    "not-understood": ("it is not understood, and stays as it is: {}: {}",),
    # What could be merged.
    "costs-more": ("merged from {} on it is one {}: {} times the MACs, {} times the price",),
    "capped": ("{}: only the 8 nearest and the 8 farthest ancestors were tried",),
}
# A part of these is a sentence of its own, and says more: the one at this index.
AROUND = {
    "it follows {}, which must exist: {}, and {}": 1,
    "the method cannot be written again: {}": 0,
    "{} is not written again: {}": 1,
    "{} must exist: {}": 1,
    "{}, and {}": 1,
}


def id_of(reason: str) -> str:
    """The name of a reason as it is printed; empty for what another library says."""
    return _names().get(template_of(reason), "")


@lru_cache(maxsize=1024)
def template_of(reason: str) -> str:
    """The sentence with `{}` in it that a reason was made from; empty where there is none.

    Where several fit, one that begins with a word comes before one that begins with anything,
    and the longest one before the others.
    """
    fitting = [template for template in _names() if _parts_of(template, reason)]
    begins = [template for template in fitting if not template.startswith("{}")]
    for around, index in AROUND.items():
        parts = _parts_of(around, reason)
        inner = template_of(parts[index]) if parts else ""
        if inner and (around[0] != "{" or not begins):
            return inner
    return max(begins or fitting, key=len, default="")


def _parts_of(template: str, reason: str) -> list[str]:
    """What stands for each `{}`, the whole where there is none; nothing where it does not fit."""
    first, *rest = template.split("{}")
    if not rest:
        return [reason] if reason == template else []
    if not reason.startswith(first):
        return []
    parts, begin = list[str](), len(first)
    for text in rest[:-1]:
        end = reason.find(text, begin + 1)
        if end < 0:
            return []
        parts.append(reason[begin:end])
        begin = end + len(text)
    end = len(reason) - len(rest[-1])
    return [*parts, reason[begin:end]] if end > begin and reason.endswith(rest[-1]) else []


@cache
def _names() -> dict[str, str]:
    return {template: name for name, templates in REASONS.items() for template in templates}
