"""The smallest graph for each reason that a plan of an ONNX model gives."""

from __future__ import annotations

from tests.refusals.examples import in_onnx, nowhere

__all__ = ["EXAMPLES"]

EXAMPLES = (
    # Borders.
    in_onnx(
        "the second conv pads by {} where the first would give its bias or taps",
        "n.conv(n.conv(x))",
    ),
    in_onnx(
        "the conv pads with zeros where the shift before it would stand",
        "n.conv(n.bn(x))",
    ),
    in_onnx(
        "the average does not count the border, so that its divisor changes there",
        'n.add(n.conv(x), n.node("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1]))',
    ),
    in_onnx(
        "the pooling window may hang over the end (ceil_mode)",
        """
        pool = n.node("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
        n.add(n.conv(x, strides=[2, 2], pads=[0, 0, 0, 0]), pool)
        """,
        dims=(2, 8, 7, 9),
    ),
    in_onnx(
        "a dilated average pooling",
        """
        pool = n.node("AveragePool", x, kernel_shape=[3, 3], dilations=[2, 2])
        n.add(n.conv(x, dilations=[2, 2], pads=[0, 0, 0, 0]), pool)
        """,
        opset=19,
    ),
    in_onnx(
        "a border of {}",
        'n.conv(n.node("Pad", x, n.ints(0, 0, 1, 1, 0, 0, 1, 1), n.const(1.0)))',
    ),
    in_onnx(
        "a border along the channels or the batch",
        'n.conv(n.node("Pad", x, n.ints(0, 1, 0, 0, 0, 1, 0, 0)), inputs=10)',
    ),
    in_onnx(
        "a border whose {} is not known here",
        'n.conv(n.node("Pad", x, n.ints(0, 0, 1, 1, 0, 0, 1, 1), n.input("fill", ())))',
    ),
    in_onnx(
        "the padding of auto_pad depends on the size of the input",
        'n.bn(n.conv(x, auto_pad="SAME_UPPER", strides=[2, 2]))',
    ),
    in_onnx(
        "the crop of a ConvTranspose with auto_pad or output_shape depends on the input",
        'n.bn(n.conv_transpose(x, auto_pad="SAME_UPPER", strides=[2, 2]))',
    ),
    # Not linear.
    in_onnx(
        "a branch is multiplied by a factor that depends on the input",
        """
        y = n.conv(x)
        gate = n.node("Sigmoid", n.node("GlobalAveragePool", y))
        n.add(n.node("Mul", y, gate), n.conv(x, size=1))
        """,
    ),
    in_onnx(
        "its factors depend on the input: dynamic=True (--dynamic) makes it one {} where that is "
        "cheaper",
        """
        gate = n.node("Sigmoid", n.node("GlobalAveragePool", x))
        n.add(n.node("Mul", n.conv(x), gate), n.conv(x, size=1))
        """,
    ),
    in_onnx(
        "the factor is computed from the output of its own branch, which has to exist",
        """
        y = n.conv(x)
        gate = n.node("Sigmoid", n.node("GlobalAveragePool", y))
        n.add(n.node("Mul", y, gate), n.conv(x, size=1))
        """,
        dynamic=True,
    ),
    in_onnx(
        "a branch with a factor of its own has another one",
        """
        gate = n.node("Sigmoid", n.node("GlobalAveragePool", x))
        y = n.node("Mul", gate, n.node("Mul", gate, n.conv(x)))
        n.add(y, n.conv(x, size=1))
        """,
        dynamic=True,
    ),
    in_onnx(
        "the factor differs from position to position",
        """
        gate = n.node("Sigmoid", n.conv(x, outputs=1))
        n.add(n.node("Mul", gate, n.conv(x)), n.conv(x, size=1))
        """,
        dynamic=True,
    ),
    in_onnx(
        "the factors differ from channel to channel, which a conv mixes",
        """
        gate = n.node("Sigmoid", n.node("GlobalAveragePool", x))
        n.conv(n.node("Mul", gate, x), size=1)
        """,
        dynamic=True,
    ),
    in_onnx(
        "no branch is a conv",
        """
        gate = n.node("Sigmoid", n.node("ReduceMean", x, axes=[1, 2, 3]))
        n.add(n.node("Mul", gate, n.bn(x)), x)
        """,
        dynamic=True,
    ),
    in_onnx(
        "{} is not run with another kernel for each sample",
        """
        gate = n.node("Sigmoid", n.node("GlobalAveragePool", x))
        n.add(n.node("Mul", gate, n.conv_transpose(x)), n.conv_transpose(x))
        """,
        dynamic=True,
    ),
    in_onnx(
        "the factor is the same for all samples of a batch",
        """
        gate = n.node("Sigmoid", n.node("ReduceMean", x, axes=[0, 2, 3]))
        n.add(n.node("Mul", gate, n.conv(x)), n.conv(x, size=1))
        """,
        dynamic=True,
    ),
    in_onnx(
        "the factor is computed from another input, whose batch may be another one",
        """
        other = n.conv(n.input("other", (1, 8, "H", "W")), size=1)
        gate = n.node("Sigmoid", n.node("GlobalAveragePool", other))
        n.add(n.node("Mul", gate, n.conv(x)), n.conv(x, size=1))
        """,
        dynamic=True,
    ),
    in_onnx(
        "a kernel for each sample takes a Scan, which opset {} lacks",
        """
        gate = n.node("Sigmoid", n.node("GlobalAveragePool", x))
        n.add(n.node("Mul", n.conv(x), gate), n.conv(x, size=1))
        """,
        dynamic=True,
        opset=8,
    ),
    in_onnx(
        "a branch passes through {}, across which nothing is merged",
        "n.add(n.conv(x), n.relu(n.conv(x, size=1)))",
    ),
    in_onnx(
        "a dropout that may be active",
        'n.bn(n.node("Dropout", n.conv(x), n.const(0.5), n.const(True, elem=TensorProto.BOOL)))',
    ),
    in_onnx(
        "a batch norm on the statistics of the batch",
        """
        y, mean, variance = n.several(
            "BatchNormalization", n.conv(x), *n.statistics(), count=3, training_mode=1
        )
        y
        """,
    ),
    in_onnx(
        "a batch norm over axis 1, where the channels are axis {}",
        'n.bn(n.node("MatMul", x, n.weight(4, 4)))',
        dims=("N", 8, 4),
    ),
    in_onnx(
        "a batch norm over axis 1 of an input whose number of axes is not known here",
        'in_a_function(lambda n, x: n.bn(n.node("MatMul", x, n.weight(8, 8))))',
    ),
    in_onnx(
        "a batch norm over each position by itself",
        """
        parts = [n.scale(8, 5, 5), n.scale(8, 5, 5), n.scale(8, 5, 5), n.positive(8, 5, 5)]
        n.node("BatchNormalization", n.conv(x), *parts, spatial=0)
        """,
        dims=(2, 8, 5, 5),
        opset=8,
    ),
    in_onnx(
        "it follows {}",
        "n.relu(n.bn(n.relu(x)))",
    ),
    in_onnx(
        "a constant of shape {} is no number per channel",
        'n.node("Add", n.conv(x), n.scale(8))',
        dims=(2, 8, 5, 8),
    ),
    in_onnx(
        "its third operand adds another number to each row",
        'n.node("Mul", n.node("Gemm", x, n.weight(8, 6), n.weight(3, 6)), n.const(2.0))',
        dims=(3, 8),
    ),
    in_onnx(
        "a constant divided by a value is not linear",
        'n.node("Div", n.scale(8, 1, 1), n.conv(x))',
    ),
    in_onnx(
        "its first matrix is transposed",
        'n.node("Mul", n.node("Gemm", x, n.weight(5, 6), transA=1), n.const(2.0))',
        dims=(5, 8),
    ),
    in_onnx(
        "its second matrix has {} axes",
        'n.node("MatMul", n.bn(x), n.weight(8, 5, 4))',
        dims=("N", 8, 7, 5),
    ),
    # Values that must exist.
    in_onnx(
        "it is an output of the graph",
        "y = n.conv(x)\n(y, n.bn(y))",
    ),
    in_onnx(
        "its shape or type is read and nothing else has the same",
        """
        y = n.conv(x, strides=[2, 2])
        z = n.conv(y, size=1, strides=[2, 2])
        (n.relu(z), n.node("Shape", y))
        """,
    ),
    in_onnx(
        "a norm that is written out: runtimes run it as one kernel with its scale and bias",
        """
        y = n.node("Sub", x, n.node("ReduceMean", x, axes=[-1]))
        variance = n.node("ReduceMean", n.node("Mul", y, y), axes=[-1])
        deviation = n.node("Sqrt", n.node("Add", variance, n.const(1e-5)))
        z = n.node("Mul", n.node("Div", y, deviation), n.scale(8))
        n.node("MatMul", n.node("Add", z, n.weight(8)), n.weight(8, 6))
        """,
        dims=("N", 5, 8),
    ),
    # Weights.
    in_onnx(
        "its weight is no constant",
        'n.bn(n.node("Conv", x, n.input("w", (8, 8, 3, 3))))',
    ),
    in_onnx(
        "{} is also a graph input, so that a caller may set it",
        """
        n.input("w", (8, 8, 3, 3))
        n.bn(n.node("Conv", x, n.weight(8, 8, 3, 3, name="w")))
        """,
    ),
    in_onnx(
        "{} is computed in steps ({}), where a last bit decides",
        'n.bn(n.node("Conv", x, n.node("Sign", n.weight(8, 8, 3, 3))))',
    ),
    in_onnx(
        "{} takes its type from {}, whose type is not known here",
        """
        def part(n, x):
            weight = n.node("CastLike", n.literal(np.ones((8, 8, 1, 1))), x)
            return n.bn(n.node("Conv", x, weight))

        in_a_function(part)
        """,
    ),
    in_onnx(
        "a quantized operator: its numbers are integers, which a fold would have to round",
        """
        q = n.node("QuantizeLinear", x, n.const(0.1), n.const(0, elem=TensorProto.INT8))
        weight = n.const(np.ones((8, 8, 3, 3)), elem=TensorProto.INT8)
        y = n.node("ConvInteger", q, weight)
        n.bn(n.node("Cast", y, to=TensorProto.FLOAT))
        """,
    ),
    in_onnx(
        "{} is dequantized from integers: folding into it would change what they stand for",
        """
        weight = n.const(np.ones((8, 8, 3, 3)), elem=TensorProto.INT8)
        zero = n.const(0, elem=TensorProto.INT8)
        n.bn(n.node("Conv", x, n.node("DequantizeLinear", weight, n.const(0.1), zero)))
        """,
    ),
    in_onnx(
        "the weights hold NaN, infinity or a negative variance",
        'n.bn(n.node("Conv", x, n.const(np.full((8, 8, 1, 1), np.nan))))',
    ),
    in_onnx(
        "the folded weights overflow {}",
        """
        weight = n.const(np.full((8, 8, 1, 1), 1e3), elem=TensorProto.FLOAT16)
        n.node("Mul", n.node("Conv", x, weight), n.const(1e3, elem=TensorProto.FLOAT16))
        """,
        elem=10,
    ),
    # Files.
    in_onnx(
        "an operator of opset {}: convert the model to {}",
        "n.bn(n.conv(x))",
        opset=6,
    ),
    nowhere(
        "the element type of the result is not known here",
        "the constants of a merged operator have a type",
    ),
    nowhere(
        "it is not understood, and stays as it is: {}: {}",
        "it is an error of repfuse: please report the file",
    ),
    # Costs.
    in_onnx(
        "merged from {} on it is one {}: {} times the MACs, {} times the price",
        "n.conv(n.conv(x, group=8), size=1)",
    ),
)
