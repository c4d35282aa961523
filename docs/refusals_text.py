"""What each refusal means and what its reader can change, for docs/refusals.md."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TEXTS", "THEMES", "About"]


@dataclass(frozen=True)
class About:
    """means: why the merge would be wrong. change: what to do about it in the model or the file."""

    theme: str
    means: str
    change: str


BORDERS = "Borders and padding"
BRANCHES = "Branches that do not fit each other"
NONLINEAR = "Steps that are not linear"
NEEDED = "Values that somebody else needs"
WEIGHTS = "Weights"
CODE = "Code that is not traced or not written again"
FILES = "Files"
COSTS = "What could be merged, and is not"
THEMES = (BORDERS, BRANCHES, NONLINEAR, NEEDED, WEIGHTS, CODE, FILES, COSTS)
NOTHING = "nothing has to change; the layers stay and the result is the same."

TEXTS: dict[str, About] = {
    "conv-pads-after-conv": About(
        BORDERS,
        "The second conv reads zeros at its border. One merged conv would compute there what the "
        "first conv gives outside of its input: its bias, or taps that reach into the input.",
        "move the padding to the first conv when training, or train the first one without a bias "
        "and with padding that reaches as far as the second one reads. A 1x1 before a padded kxk "
        "merges if the border is filled with the 1x1's bias.",
    ),
    "conv-pads-after-shift": About(
        BORDERS,
        "A batch norm (or any shift) stands before a conv that pads with zeros. Inside the shift "
        "is added, in the border it is not, so that no single bias is right everywhere.",
        "put the norm after the conv, use `padding_mode='reflect'` or `'replicate'`, or fill the "
        "border behind the norm with the norm's own shift.",
    ),
    "average-without-border": About(
        BORDERS,
        "The average is over fewer positions at the border than inside, which is no convolution.",
        "train with `count_include_pad=True` (`count_include_pad=1` in a file), or pool without "
        "padding.",
    ),
    "ceil-mode": About(
        BORDERS,
        "With `ceil_mode` the last window may hang over the end, and then averages fewer numbers.",
        "use `ceil_mode=False`, and a padding if the output has to be as large.",
    ),
    "dilated-average": About(
        BORDERS,
        "An average pooling with dilation is not read.",
        "write it as a depthwise Conv with equal taps.",
    ),
    "borders-differ": About(
        BORDERS,
        "Two branches read beyond the input, and find different numbers there.",
        "give all branches that pad the same `padding_mode`; their amounts may differ.",
    ),
    "uneven-mirrored-padding": About(
        BORDERS,
        "The merged conv would pad by different amounts on both sides with a border that is made "
        "of the input. A layer with such padding does not exist, and zero taps do not help.",
        "pad by the same amount on both sides, or with zeros.",
    ),
    "border-of-numbers": About(
        BORDERS,
        "A conv pads with zeros only. Here the border holds other numbers.",
        "pad with zeros; or let the border hold what the operator before it makes of zeros (its "
        "bias, the norm's shift), which is merged.",
    ),
    "border-of-other-numbers": About(
        BORDERS,
        "A border between two operators can be moved in front of the first one only if that one "
        "would give exactly the numbers that the border holds.",
        "fill the border with the bias of the conv before it (or the shift of the norm), from the "
        "same parameter; let only a pointwise conv or a norm stand before it.",
    ),
    "border-not-spatial": About(
        BORDERS,
        "The Pad adds channels or samples, which no conv does.",
        "pad the spatial axes only.",
    ),
    "border-unknown": About(
        BORDERS,
        "How wide the border is, or what it holds, is decided when the model runs.",
        "make it a constant: plain ints in the module, an initializer in the file.",
    ),
    "padding-mode": About(
        BORDERS,
        "The conv has a padding mode that torch's convs do not take.",
        "use 'zeros', 'reflect', 'replicate' or 'circular', or pad before the conv.",
    ),
    "auto-pad": About(
        BORDERS,
        "With auto_pad or output_shape the padding depends on the size of the input, so that one "
        "set of numbers is not right for all sizes.",
        "export with explicit pads, or fix the input size of the file.",
    ),
    "output-sizes-differ": About(
        BRANCHES,
        "The branches give outputs of different sizes (for some inputs), and their sum broadcasts "
        "or fails.",
        "pad each branch so that pad_low + pad_high - dilation * (kernel_size - 1) is the same.",
    ),
    "strides-differ": About(
        BRANCHES,
        "The branches look at different positions of the input.",
        "give all branches one stride; a pooled branch counts with the stride of its pooling.",
    ),
    "settings-differ": About(
        BRANCHES,
        "Two branches of a sum or of a concat differ in something that cannot be made equal.",
        "make it equal; a branch of one channel that is added to many is a broadcast, and stays.",
    ),
    "channels-differ": About(
        BRANCHES,
        "The widths do not fit: one side is broadcast along the channels, which is not a "
        "convolution of the same kind.",
        "let the branch give as many channels as it is added to, if it is meant to be merged.",
    ),
    "axes-differ": About(
        BRANCHES,
        "The operators see different axes as channels: a Linear the last one, a 2-D conv the last "
        "but two.",
        "use 1x1 convs instead of Linears (or the other way round) on one side.",
    ),
    "transposed-conv": About(
        BRANCHES,
        "A transposed conv has a border of its own: at the edges fewer taps reach an output. Only "
        "pointwise convs and scales merge with it everywhere.",
        "keep the convs before and after it pointwise, the one before it without bias; put norms "
        "after the transposed conv.",
    ),
    "groups-in-concat": About(
        BRANCHES,
        "The rows of a grouped conv have to stay together by group; stacking two of them mixes "
        "the groups.",
        "concatenate dense convs, or convs of equal groups on neighbouring slices of the input.",
    ),
    "slices-in-concat": About(
        BRANCHES,
        "Convs on slices become the groups of one conv only if the slices follow each other in "
        "the order of the concat.",
        "slice and concatenate in the same order, without gaps.",
    ),
    "factor-from-input": About(
        NONLINEAR,
        "A branch is multiplied by something that is computed from the input, such as a "
        "squeeze-and-excite gate. Another input needs another kernel.",
        "put the gate after the sum of the branches: then they merge in front of it. A factor for "
        "each sample (or for each of its channels) that is computed from the input of the branches "
        "can stay: `dynamic=True` mixes a kernel for each sample, where that is cheaper.",
    ),
    "factor-not-per-sample": About(
        NONLINEAR,
        "`dynamic=True` makes one conv whose kernel is mixed for each sample. A factor that "
        "differs from position to position cannot move into a kernel, and one that is the same "
        "for the whole batch ties the samples together. One of another input of a file may be for "
        "one sample where the branches have several.",
        "average the factor over the positions of one sample when training; give the batch axes of "
        "all inputs one name when exporting. Where that is not what the model means, "
        f"{NOTHING}",
    ),
    "factor-from-its-branch": About(
        NONLINEAR,
        "The factor of a branch is computed from what the branch itself gives, as in "
        "squeeze-and-excite. The branch has to run before its factor is known, so that no kernel "
        "can be mixed first.",
        "compute the factor from the input of the branches when training, as dynamic convolutions "
        "do, and fuse with `dynamic=True`.",
    ),
    "factors-not-mixed": About(
        NONLINEAR,
        "These branches have factors, and one conv with a kernel for each sample has no form for "
        "them: a product of two factors, a conv after factors that differ by channel, a transposed "
        "conv or a Linear, no conv at all, a factor that is computed from more than 256 values, or "
        "a file of an opset that cannot loop over samples.",
        "multiply the two factors first; put the conv after the sum before the factors; convert "
        f"the file to opset 9 or later. In the other cases {NOTHING}",
    ),
    "step-in-branch": About(
        NONLINEAR,
        "Between the common input and the sum one branch goes through an activation, a max pooling "
        "or another step that is no affine map.",
        "move the activation behind the sum, if the branch is meant to be merged; a residual "
        "connection around an activation stays in any case.",
    ),
    "changed-between-branches": About(
        NONLINEAR,
        "The branches seem to read one tensor, but an in-place activation changes it after the "
        "first branch has read it.",
        "use the activation with `inplace=False` if both branches are meant to read the same.",
    ),
    "active-dropout": About(
        NONLINEAR,
        "The dropout drops numbers whenever the model runs, also in eval mode.",
        "use `nn.Dropout`, or `F.dropout(x, training=self.training)`; export in eval mode.",
    ),
    "batch-statistics": About(
        NONLINEAR,
        "The batch norm normalises by the batch at hand, so that it is not affine.",
        "export in eval mode, or call it with `training=False` and running statistics.",
    ),
    "no-running-statistics": About(
        NONLINEAR,
        "The batch norm was built with `track_running_stats=False` and normalises by the batch at "
        "hand, also in eval mode. (A module that is merely in train mode is fused as its eval "
        "form.)",
        "train with running statistics, or estimate them over a data set afterwards.",
    ),
    "batch-norm-axis": About(
        NONLINEAR,
        "The batch norm works along axis 1. That this is the axis of the channels of the operator "
        "beside it is not so, or not known.",
        "put the channels on axis 1 around the norm (`transpose(1, 2)`); or flatten the tokens "
        "into the batch, in a model in which a conv before it says how many axes there are.",
    ),
    "between-nonlinear": About(
        NONLINEAR,
        "A batch norm or scale can be folded into the conv before or after it. Here neither "
        "neighbour can take it; both are named.",
        NOTHING,
    ),
    "not-per-channel": About(
        NONLINEAR,
        "The constant differs from position to position or from sample to sample. One that has "
        "as many elements as there are channels may still belong to the last axis.",
        "give a number per channel the shape (C, 1, 1).",
    ),
    "divided-by-a-value": About(
        NONLINEAR,
        "c / x is no affine function of x.",
        NOTHING,
    ),
    "matrix-form": About(
        NONLINEAR,
        "The product is not that of a Linear: rows and columns of the input change places, or each "
        "sample has a matrix of its own.",
        "export the layer as a MatMul or Gemm with one constant matrix on the right.",
    ),
    "is-output": About(
        NEEDED,
        "The value in between is also an output, so that the layer which makes it has to stay.",
        "return only what is used, or export without the extra output.",
    ),
    "kept-by-forward": About(
        NEEDED,
        "forward stores the value in an attribute, a list or somewhere else, where others find it.",
        "do not store intermediate values in the deployed model; return them instead.",
    ),
    "public-method": About(
        NEEDED,
        "The value goes in or out of a method that users call by themselves (`forward_features`).",
        "move the norm or the branch to the same side of the method.",
    ),
    "used-by-untraced": About(
        NEEDED,
        "A module whose code depends on the data uses some of these layers by themselves. What "
        "happens around them there is not known.",
        "move the decision on data out of the module that owns the layers.",
    ),
    "shape-is-read": About(
        NEEDED,
        "A Shape, Size or CastLike reads the value, and nothing that stays has that shape or type.",
        "export with fixed sizes, or let onnxsim fold the shapes (`repfuse-onnx --simplify`).",
    ),
    "norm-has-other-readers": About(
        NEEDED,
        "The scale and bias of a LayerNorm or RMSNorm go into the Linears that read it only if all "
        "readers take them over, and their weights are read by nobody else.",
        NOTHING,
    ),
    "written-out-norm": About(
        NEEDED,
        "The norm stands in the file as its single steps, which runtimes know by their last "
        "multiplication and addition and run as one kernel.",
        "export with an opset that has LayerNormalization (17), or leave it.",
    ),
    "own-memory": About(
        NEEDED,
        "The operator only copies, but both copies are returned: as one tensor they would share "
        "memory.",
        NOTHING,
    ),
    "hooks": About(
        NEEDED,
        "A hook sees or changes what the layer computes.",
        "remove the hooks before fusing. The hooks of weight norm and spectral norm are folded.",
    ),
    "called-twice": About(
        NEEDED,
        "One layer is called in several places, and only some of them could be merged with it.",
        "give each place a layer of its own, with copied weights.",
    ),
    "changed-in-place": About(
        NEEDED,
        "The value is changed in place while other names of the same memory are read.",
        "use the operation that makes a new tensor (`x = x + 1` for `x += 1`, `inplace=False`).",
    ),
    "other-method": About(
        NEEDED,
        "A method that forward does not call uses some of the layers and not all, or in another "
        "way, or may return what one of them gives. It has to give the same as before.",
        "remove the method from the deployed model, or let it use the layers as forward does.",
    ),
    "weight-from-input": About(
        WEIGHTS,
        "The weight is an input of the graph or of a function, or is computed from one.",
        "make it an initializer; kernels that are mixed from the input have to stay.",
    ),
    "overridable-weight": About(
        WEIGHTS,
        "The weight is listed among the graph's inputs, so that a caller may give another one.",
        "take it out of the inputs: export with `keep_initializers_as_inputs=False`.",
    ),
    "weight-in-steps": About(
        WEIGHTS,
        "The weight is rounded or compared while the model runs. Computed in float64 it could come "
        "out on the other side of a step.",
        "store the rounded weight itself.",
    ),
    "weight-type-unknown": About(
        WEIGHTS,
        "The weight takes its float type from a value whose type the file does not tell.",
        "inline the function (`onnx.inliner`), or give the weight its type.",
    ),
    "quantized": About(
        WEIGHTS,
        "The weights are integers, codes or complex numbers, which a fold would have to round.",
        "fuse first, and quantize the result.",
    ),
    "weights-used-elsewhere": About(
        WEIGHTS,
        "Code looks at the layer or its weights besides calling it, holds it in a list, or lists "
        "and counts layers or weights. It would find a layer there that is merged, or a new one.",
        "call the layers only, and keep them in an `nn.ModuleList`.",
    ),
    "weights-used-by-untraced": About(
        WEIGHTS,
        "A module whose code cannot be traced may read the weights.",
        "give that module no access to the layer, or make it traceable.",
    ),
    "weights-change": About(
        WEIGHTS,
        "forward changes the weights in place, so that they are no constants.",
        "change the weights outside of forward.",
    ),
    "not-finite": About(
        WEIGHTS,
        "Some weights are NaN or infinite, or a variance is negative, so that nothing can be "
        "proved. Found when the plan is applied.",
        "look for the broken layer: it is named, and the model gives NaN itself.",
    ),
    "overflow": About(
        WEIGHTS,
        "The merged weights are larger than the dtype can hold.",
        "fuse in float32, or in bfloat16, whose range is wider.",
    ),
    "dtypes-differ": About(
        WEIGHTS,
        "The branches have weights of different dtypes, and one layer has one dtype.",
        "convert the model to one dtype first.",
    ),
    "on-meta": About(
        WEIGHTS,
        "Some of the layers have no weights yet, others have.",
        "load the weights, or move the whole model to the meta device.",
    ),
    "uninitialised": About(
        WEIGHTS,
        "A lazy layer gets its weights when it runs for the first time.",
        "run the model once before fusing.",
    ),
    "computed-weight": About(
        WEIGHTS,
        "The weight is computed by code that also counts or changes something whenever it runs.",
        "remove the parametrization with its value kept "
        "(`torch.nn.utils.parametrize.remove_parametrizations`).",
    ),
    "cannot-be-traced": About(
        CODE,
        "The module cannot be traced: TorchScript, a decision on data, an assignment to an "
        "attribute of a tensor. Its children are fused all the same.",
        "fuse before scripting; move the decision or the assignment out of the module.",
    ),
    "other-modes": About(
        CODE,
        "The method enters autocast or a grad mode, or asks which one is on. What a trace saw of "
        "it is true for one mode only.",
        "enter the mode around the whole model.",
    ),
    "asks-for-a-dtype": About(
        CODE,
        "The method takes the dtype or device of a weight from a list of all; written again it "
        "would use those of today for ever, also after `half()` or `cuda()`.",
        "take them from the input (`x.dtype`) or from one weight by its name "
        "(`self.conv.weight.dtype`).",
    ),
    "random-numbers": About(
        CODE,
        "The method drew random numbers while it was traced; written again it would use the same "
        "ones for ever.",
        "draw outside of the model and pass the numbers in, or fuse the part that holds the "
        "branches by itself (`model.part = repfuse.fuse(model.part)`): all that is traced "
        "together stays.",
    ),
    "makes-a-tensor": About(
        CODE,
        "The method makes a tensor when it runs; the trace holds only the one that it made once.",
        "register the tensor as a buffer.",
    ),
    "changes-attributes": About(
        CODE,
        "forward changes attributes (a counter, a cache), which what is written again would not.",
        "move the counter to the module around the one that holds the branches, or remove it from "
        "the deployed model.",
    ),
    "open-arguments": About(
        CODE,
        "The method takes arguments that decide what it does, in more ways than were traced.",
        "give forward a plain signature: tensors, flags, and optional tensors that are None.",
    ),
    "who-runs-it": About(
        CODE,
        "The code that would have to be written again is not a method of the class: torch's own, "
        "one that was put on the instance, or one around forward.",
        "define forward in the class; subclass instead of assigning.",
    ),
    "source-not-in-reach": About(
        CODE,
        "The value that the merged layer reads exists inside another module only, and cannot be "
        "named where the branches are added; or something else than the sum is made there, or is "
        "asked of a value that would be gone.",
        "add the branches in the module that computes their input, and nothing else beside.",
    ),
    "odd-containers": About(
        CODE,
        "The method passes something on that a trace cannot write down: a list or dict of a class "
        "of its own, a slice of tensors, an object.",
        "pass tensors, tuples, lists and plain dicts.",
    ),
    "names-of-others": About(
        CODE,
        "The method uses a layer that cannot be named from its module.",
        "register the layer as a child, under a name that is no Python keyword.",
    ),
    "calls-differ": About(
        CODE,
        "The method does one thing in one call and another thing in another call, and its "
        "arguments do not tell which.",
        "pass what decides as an argument, or use two modules.",
    ),
    "old-opset": About(
        FILES,
        "Before opset 7 operands were broadcast by other rules.",
        "convert the file (`onnx.version_converter`), or export it again.",
    ),
    "not-understood": About(
        FILES,
        "Reading the graph failed, so that all of it stays.",
        "this is an error of repfuse: please report the file.",
    ),
    "costs-more": About(
        COSTS,
        "It could be merged exactly, and the result would be more expensive: the MACs of both are "
        "compared, and what both cost on the target.",
        'nothing; or `target="min-ops"`, if the fewest operators are wanted at any price.',
    ),
    "capped": About(
        COSTS,
        "The value depends on more linear steps in a row than are looked at, so that a merge over "
        "more than 16 of them is not found.",
        NOTHING,
    ),
}
