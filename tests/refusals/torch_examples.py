"""The smallest module for each reason that a plan of a module gives."""

from __future__ import annotations

import torch

from tests.refusals.examples import in_torch, nowhere

__all__ = ["EXAMPLES"]

EXAMPLES = (
    # Borders.
    in_torch(
        "the second conv pads by {} where the first would give its bias or taps",
        "nn.Sequential(conv(), conv())",
    ),
    in_torch(
        "the conv pads with zeros where the shift before it would stand",
        "nn.Sequential(norm(), conv())",
    ),
    in_torch(
        "the average does not count the border, so that its divisor changes there",
        """
        pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        Net(lambda n, x: n.a(x) + n.b(x), a=conv(), b=pool)
        """,
    ),
    in_torch(
        "the pooling window may hang over the end (ceil_mode)",
        """
        pool = nn.AvgPool2d(2, ceil_mode=True)
        Net(lambda n, x: n.a(x) + n.b(x), a=nn.Conv2d(8, 8, 2, 2), b=pool)
        """,
    ),
    in_torch(
        "the borders differ: {} against {}",
        'Net(lambda n, x: n.a(x) + n.b(x), a=conv(), b=conv(padding_mode="reflect"))',
    ),
    in_torch(
        "unequal padding {} with a {} border needs a larger border",
        "nn.Sequential(nn.ReflectionPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3))",
    ),
    in_torch(
        "a border of {}",
        "nn.Sequential(nn.ConstantPad2d(1, 1.0), nn.Conv2d(8, 8, 3))",
    ),
    in_torch(
        "a border of numbers per channel",
        """
        def forward(n, x):
            y = F.pad(x, (1, 0, 0, 0))
            y[:, :, :, :1] = n.c
            return n.a(y)

        Net(forward, a=nn.Conv2d(8, 8, 3), c=torch.rand(8, 1, 1))
        """,
    ),
    in_torch(
        "the border holds other numbers than the operator before it makes of zeros",
        """
        pad = nn.ConstantPad2d(1, 1.0)
        nn.Sequential(conv(size=1), pad, nn.Conv2d(8, 8, 3))
        """,
    ),
    in_torch(
        "the conv before the border would reach its input there: it pads by {}",
        "nn.Sequential(conv(), nn.ConstantPad2d(1, 1.0))",
    ),
    in_torch(
        "a transposed conv stands before the border",
        "nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), nn.ConstantPad2d(1, 1.0))",
    ),
    in_torch(
        "a border whose width is not known here",
        """
        pad = nn.ZeroPad2d(1)
        pad.padding = (np.int64(1),) * 4
        nn.Sequential(pad, nn.Conv2d(8, 8, 3))
        """,
    ),
    in_torch(
        "a conv with padding_mode {}",
        """
        a = conv()
        a.padding_mode = "constant"
        nn.Sequential(a, norm())
        """,
    ),
    # Branches that do not fit each other.
    in_torch(
        "the output sizes differ: padding {} with kernel_size {} against {} with {}",
        "Net(lambda n, x: n.a(x) + n.b(x), a=conv(), b=nn.Conv2d(8, 8, 8))",
    ),
    in_torch(
        "stride differs: {} against {}",
        "Net(lambda n, x: n.a(x) + n.b(x), a=nn.Conv2d(8, 8, 2, 2), b=nn.Conv2d(8, 8, 5))",
    ),
    in_torch(
        "{} differs: {} against {}",
        "Net(lambda n, x: n.a(x) + n.b(x), a=conv(), b=conv(8, 1))",
    ),
    in_torch(
        "the skip keeps {} channels, the conv beside it maps {} to {}",
        "Net(lambda n, x: x + n.a(x), a=conv(8, 1))",
    ),
    in_torch(
        "the conv before a transposed conv has a bias or is no pointwise conv",
        "nn.Sequential(conv(), nn.ConvTranspose2d(8, 8, 2, 2))",
    ),
    in_torch(
        "the conv after a transposed conv is no pointwise conv",
        "nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2), conv())",
    ),
    in_torch(
        "a transposed conv is added to one that is not",
        "Net(lambda n, x: n.a(x) + n.b(x), a=conv(), b=nn.ConvTranspose2d(8, 8, 3, 1, 1))",
    ),
    in_torch(
        "the shift reaches the outputs of the transposed conv through different taps",
        "nn.Sequential(norm(), nn.ConvTranspose2d(8, 8, 2, 2))",
    ),
    in_torch(
        "rows of {} and {} groups do not stay contiguous per group",
        """
        def forward(n, x):
            return torch.cat([n.a(x), n.b(x)], 1)

        Net(forward, a=conv(groups=8), b=conv(groups=8))
        """,
    ),
    # Not linear.
    in_torch(
        "a branch is multiplied by a factor that depends on the input",
        """
        def forward(n, x):
            y = n.a(x)
            return y * y.mean((2, 3), keepdim=True).sigmoid() + n.b(x)

        Net(forward, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "its factors depend on the input: dynamic=True (--dynamic) makes it one {} where that is "
        "cheaper",
        """
        def forward(n, x):
            gate = x.mean((2, 3), keepdim=True).sigmoid()
            return n.a(x) * gate + n.b(x)

        Net(forward, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "the factor differs from position to position",
        """
        def forward(n, x):
            gate = x.mean(1, keepdim=True).sigmoid()
            return n.a(x) * gate + n.b(x)

        Net(forward, a=conv(), b=conv(size=1))
        """,
        dynamic=True,
    ),
    in_torch(
        "the factor is the same for all samples of a batch",
        """
        def forward(n, x):
            gate = x.mean((0, 2, 3), keepdim=True).sigmoid()
            return n.a(x) * gate + n.b(x)

        Net(forward, a=conv(), b=conv(size=1))
        """,
        dynamic=True,
    ),
    in_torch(
        "the factor is computed from the output of its own branch, which has to exist",
        """
        def forward(n, x):
            y = n.a(x)
            return y * y.mean((2, 3), keepdim=True).sigmoid() + n.b(x)

        Net(forward, a=conv(), b=conv(size=1))
        """,
        dynamic=True,
    ),
    in_torch(
        "a branch with a factor of its own has another one",
        """
        def forward(n, x):
            gate = x.mean((2, 3), keepdim=True).sigmoid()
            return n.a(x) * gate * gate.tanh() + n.b(x)

        Net(forward, a=conv(), b=conv(size=1))
        """,
        dynamic=True,
    ),
    in_torch(
        "the factors differ from channel to channel, which a conv mixes",
        """
        def forward(n, x):
            gate = x.mean((2, 3), keepdim=True).sigmoid()
            return n.c(n.a(x) * gate) + n.b(x)

        Net(forward, a=conv(), b=conv(size=1), c=conv(size=1))
        """,
        dynamic=True,
    ),
    in_torch(
        "the factor is computed from more values than are looked through",
        """
        def forward(n, x):
            y = n.norms(x)
            return y * y.mean((2, 3), keepdim=True).sigmoid() + n.a(x)

        Net(forward, a=conv(), norms=nn.Sequential(*[norm() for _ in range(260)]))
        """,
        dynamic=True,
    ),
    in_torch(
        "no branch is a conv",
        """
        def forward(n, x):
            gate = x.mean((1, 2, 3), keepdim=True).sigmoid()
            return gate * n.a(x) + x

        Net(forward, a=norm())
        """,
        dynamic=True,
    ),
    in_torch(
        "{} is not run with another kernel for each sample",
        """
        def forward(n, x):
            gate = x.mean((2, 3), keepdim=True).sigmoid()
            return gate * n.a(x) + n.b(x)

        up = [nn.ConvTranspose2d(8, 8, 2, stride=2) for _ in range(2)]
        Net(forward, a=up[0], b=up[1])
        """,
        dynamic=True,
    ),
    in_torch(
        "a branch passes through {}, across which nothing is merged",
        "Net(lambda n, x: n.a(x) + n.b(x).relu(), a=conv(), b=conv(size=1))",
    ),
    in_torch(
        "{} changes the input of the branches in place between them",
        "Net(lambda n, x: n.a(x) + n.b(x.relu_()), a=conv(), b=conv(size=1))",
    ),
    in_torch(
        "a dropout that may be active",
        """
        def forward(n, x):
            return n.w(x) + n.up(F.dropout(n.down(x)))

        Net(forward, w=nn.Linear(8, 8), down=nn.Linear(8, 2), up=nn.Linear(2, 8))
        """,
    ),
    in_torch(
        "a batch norm on the statistics of the batch",
        "Net(lambda n, x: F.batch_norm(n.a(x), None, None, training=True), a=conv())",
    ),
    in_torch(
        "a batch norm without running statistics",
        "nn.Sequential(conv(), nn.BatchNorm2d(8, track_running_stats=False))",
    ),
    in_torch(
        "a batch norm over axis 1 of an input whose number of axes is not known here",
        "nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))",
        shape=(3, 8),
    ),
    in_torch(
        "it follows {}",
        "nn.Sequential(nn.ReLU(), norm(), nn.ReLU())",
    ),
    # Values that must exist.
    in_torch(
        "it is an output of the model",
        """
        def forward(n, x):
            y = n.a(x)
            return y, y + n.b(x)

        Net(forward, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "forward keeps it in the attribute {}",
        """
        def forward(n, x):
            n.last = n.a(x)
            return n.last + n.b(x)

        model = Net(forward, a=conv(), b=conv(size=1))
        model.last = None
        model
        """,
    ),
    in_torch(
        "forward keeps it {}",
        """
        seen = []

        def forward(n, x):
            y = n.a(x)
            seen.append(y)
            return y + n.b(x)

        Net(forward, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "forward keeps a value outside of the model",
        """
        seen = []

        def forward(n, x):
            seen.append(x)
            return n.a(x) + n.b(x)

        Net(forward, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "it passes through {}, which can be called by itself",
        """
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = conv(), norm()

            def forward_features(self, x):
                return self.a(x)

            def forward(self, x):
                return self.b(self.forward_features(x))

        Model()
        """,
    ),
    in_torch(
        "a module that cannot be traced uses a part of this by itself",
        """
        class EarlyExit(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.Sequential(conv(), norm())

            def forward(self, x):
                return self.layers[:1](x) if x.mean() > 1 else self.layers(x)

        EarlyExit()
        """,
    ),
    nowhere(
        "a layer is also called by a module that cannot be traced",
        "what goes into such a layer and comes out of it has to exist, which is told first",
    ),
    in_torch(
        "one of its readers cannot absorb it: {}",
        """
        def forward(n, x):
            y = n.norm(x)
            return n.a(y), y

        Net(forward, norm=nn.LayerNorm(8), a=nn.Linear(8, 8))
        """,
    ),
    in_torch(
        "{} ({}) reads it too: {}",
        """
        def forward(n, x):
            y = n.norm(x)
            return n.a(y), y.relu()

        Net(forward, norm=nn.LayerNorm(8), a=nn.Linear(8, 8))
        """,
    ),
    in_torch(
        "the weight of {}, which reads it, is used elsewhere as well",
        """
        a, b = nn.Linear(8, 8), nn.Linear(8, 8)
        b.weight = a.weight
        Net(lambda n, x: n.b(n.a(n.norm(x)).relu()), norm=nn.LayerNorm(8), a=a, b=b)
        """,
    ),
    nowhere(
        "{} is also read by something that needs its weight and bias",
        "all readers of a norm are asked before one of them absorbs it",
    ),
    in_torch(
        "{}, in memory of its own",
        "Net(lambda n, x: (y := n.a(x), -(-y)), a=conv())",
    ),
    # Weights.
    in_torch(
        "{} with weights of {}",
        "nn.Sequential(conv(dtype=torch.complex128), conv(size=1, dtype=torch.complex128))",
        dtype=torch.complex128,
    ),
    in_torch(
        "{} are read by {} as well",
        "Net(lambda n, x: (n.b(n.a(x)), n.a.weight.norm()), a=conv(), b=norm())",
    ),
    in_torch(
        "{} are kept in a list as well",
        """
        model = Net(lambda n, x: n.b(n.a(x)), a=conv(), b=norm())
        model.norms = [model.b]
        model
        """,
    ),
    in_torch(
        "{} looks up {} of {}",
        """
        def forward(n, x):
            return n.inner(x).relu() * n.inner.a.out_channels

        Net(forward, inner=Net(lambda n, x: n.b(n.a(x)), a=conv(), b=norm()))
        """,
    ),
    in_torch(
        "{} lists the layers of {}",
        """
        def forward(n, x):
            return n.inner(x).relu() * len(list(n.modules()))

        inner = Net(lambda n, x: x + F.conv2d(x, n.w), w=nn.Parameter(conv(size=1).weight))
        Net(forward, inner=inner)
        """,
    ),
    in_torch(
        "{} may be used by {}, which cannot be traced",
        """
        class Reads(nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.layer = layer

            def forward(self, x):
                return x * self.layer.weight.sum() if x.mean() > 1 else x

        b = norm()
        nn.Sequential(conv(), b, Reads(b))
        """,
    ),
    in_torch(
        "{} change in place",
        """
        def forward(n, x):
            n.a.weight.mul_(0.5)
            return n.b(n.a(x))

        Net(forward, a=conv(), b=norm()).requires_grad_(False)
        """,
    ),
    in_torch(
        "the weights hold NaN, infinity or a negative variance",
        """
        b = norm()
        b.running_var[0] = -1.0
        nn.Sequential(conv(), b)
        """,
    ),
    in_torch(
        "the folded weights overflow {}",
        """
        b = norm()
        b.weight.data.fill_(6e4)
        b.running_var.fill_(1e-4)
        nn.Sequential(conv(), b)
        """,
        dtype=torch.float16,
    ),
    in_torch(
        "the branches have different dtypes: {}",
        """
        a, b = conv().double(), conv(size=1)
        Net(lambda n, x: n.a(x) + n.b(x), a=a, b=b)
        """,
        runs=False,
    ),
    in_torch(
        "some of the weights are on the meta device, and have no values",
        'Net(lambda n, x: n.a(x) + n.b(x), a=conv(), b=conv(size=1, device="meta"))',
        runs=False,
    ),
    in_torch(
        "{}, which is not initialised yet",
        "nn.Sequential(nn.LazyConv2d(8, 3), norm())",
        runs=False,
    ),
    in_torch(
        "the {} is computed by code that changes a buffer",
        """
        class Counts(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("n", torch.ones(()))

            def forward(self, weight):
                self.n += 1
                return weight * self.n

        a = conv()
        nn.utils.parametrize.register_parametrization(a, "weight", Counts())
        nn.Sequential(a, norm())
        """,
    ),
    # Layers and memory with other users.
    in_torch(
        "{} with hooks",
        """
        a = conv()
        a.register_forward_hook(lambda layer, given, result: None)
        nn.Sequential(a, norm())
        """,
    ),
    in_torch(
        "a module is called {} times, in different places",
        "Net(lambda n, x: n.a(n.b(n.a(x)).relu()), a=conv(), b=norm())",
    ),
    in_torch(
        "a view of memory that is changed in place",
        """
        def forward(n, x):
            y = n.a(x)
            y[:, :4].mul_(2.0)
            return n.b(y)

        Net(forward, a=conv(), b=norm())
        """,
    ),
    in_torch(
        "memory that may be changed in place",
        """
        def forward(n, x):
            y = n.a(x)
            torch._foreach_add_([y], 1.0)
            return n.b(y)

        Net(forward, a=conv(), b=norm())
        """,
    ),
    in_torch(
        "{} changes {} in place, which others may read",
        """
        def forward(n, x):
            y = n.a(x).relu()
            y += 1.0
            return n.b(y)

        Net(forward, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "{} changes the source of the sum in place in between",
        """
        def forward(n, x):
            y = x.sigmoid()
            z = n.a(y)
            y.relu_()
            return n.b(z)

        Net(forward, a=conv(), b=norm())
        """,
    ),
    in_torch(
        "{} sees memory that {} changes in place",
        """
        def forward(n, x):
            y = n.a(x)
            z = y[:, :1]
            y *= 2.0
            return n.b(y), z

        Net(forward, a=conv(4, 8, 1), b=norm())
        """,
        shape=(2, 4, 8, 8),
    ),
    in_torch(
        "{} changes {} in place, which would share its memory",
        """
        def forward(n, x):
            y = n.a(x)
            z = -(-y)
            z.relu_()
            return y, z

        Net(forward, a=conv())
        """,
    ),
    in_torch(
        "{}, which is not traced, calls {} alone",
        """
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = conv(), norm()

            def embed(self, x):
                return self.a(x)

            def forward(self, x):
                return self.b(self.a(x))

        Model()
        """,
    ),
    # Code that is not traced, or not written again.
    in_torch(
        "{}, which cannot be traced",
        """
        class Decides(nn.Module):
            def forward(self, x):
                return x.relu() if x.mean() > 0 else x

        nn.Sequential(Decides(), norm(), nn.ReLU())
        """,
    ),
    in_torch(
        "a TorchScript module",
        "nn.Sequential(torch.jit.script(conv().double()), norm())",
    ),
    in_torch(
        "a TorchScript module has no Python code",
        "torch.jit.script(nn.Sequential(conv(), norm()).double().eval())",
    ),
    in_torch(
        "{}: the attribute {} of a tensor is assigned",
        """
        def forward(n, x):
            y = n.a(x)
            y.grad = None
            return y + n.b(x)

        Net(forward, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "an operation under autocast or its own grad mode",
        """
        def forward(n, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return n.a(x) + n.b(x)

        Net(forward, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "the method enters a grad or autocast mode",
        """
        def forward(n, x):
            with torch.no_grad():
                y = n.b(x)
            return n.a(x) + y

        Net(forward, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "the method asks {}",
        """
        def forward(n, x):
            y = n.a(x) + n.b(x)
            return y.relu() if torch.is_grad_enabled() else y.sigmoid()

        Net(forward, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "the trace drew random numbers",
        "Net(lambda n, x: (n.a(x) + n.b(x)) * random.random(), a=conv(), b=conv(size=1))",
    ),
    in_torch(
        "it asks for the dtype or device of weights that it lists",
        """
        def forward(n, x):
            x = x.to(next(n.parameters()).dtype)
            return n.a(x) + n.b(x)

        Net(forward, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "the trace holds a tensor that the method makes itself",
        "Net(lambda n, x: (n.a(x) + n.b(x)) * torch.ones(8, 1, 1), a=conv(), b=conv(size=1))",
    ),
    in_torch(
        "{} changes attributes of the module",
        """
        def forward(n, x):
            n.calls += 1
            return n.a(x) + n.b(x)

        model = Net(forward, a=conv(), b=conv(size=1))
        model.calls = 0
        model
        """,
    ),
    in_torch(
        "forward takes *{}",
        """
        class Model(Net):
            def forward(self, x, *more):
                return self.a(x) + self.b(x)

        Model(None, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "forward takes **{}",
        """
        class Model(Net):
            def forward(self, x, **options):
                return self.a(x) + self.b(x)

        Model(None, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "what {}={} of forward decides is fixed by tracing",
        """
        class Model(Net):
            def forward(self, x, scale=2.0):
                return self.a(x) + self.b(x)

        Model(None, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "forward has more combinations of optional arguments than are traced",
        """
        class Model(Net):
            def forward(self, x, a=None, b=None, c=None, d=None):
                return self.a(x) + self.b(x)

        Model(None, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "forward with {} cannot be traced",
        """
        class Model(Net):
            def forward(self, x, mask=None):
                if mask is not None and mask.sum() > 0:
                    x = x * mask
                return self.a(x) + self.b(x)

        Model(None, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "it asks for the type of what it is given",
        """
        def forward(n, x):
            x = x[0] if isinstance(x, list) else x
            return n.a(x) + n.b(x)

        class Model(Net):
            def forward(self, x):
                return forward(self, x)

        Model(None, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "its caller, which cannot be traced, may give {} another value",
        """
        class Child(Net):
            def forward(self, x, double=False):
                return self.a(x) + self.b(x), double

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.child = Child(None, a=conv(), b=conv(size=1))

            def forward(self, x):
                positive = x.sum() > 0
                return self.child(x, positive)[0] if positive else x

        Model()
        """,
    ),
    in_torch(
        "{} is also called in a way that cannot be traced",
        """
        class Child(Net):
            def forward(self, x, double=False):
                y = self.a(x) + self.b(x)
                return y * 2 if double else y

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.child = Child(None, a=conv(), b=conv(size=1))

            def forward(self, x):
                return self.child(x) + self.child(x, x.sum() > 0)

        Model()
        """,
    ),
    in_torch(
        "{} takes any number of arguments",
        """
        class Model(Net):
            def both(self, *parts):
                return self.a(parts[0]) + self.b(parts[0])

            def forward(self, x):
                return self.both(x).relu()

        Model(None, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "{} calls another argument self",
        """
        class Model(Net):
            def forward(this, self):
                return this.a(self) + this.b(self)

        Model(None, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "its forward is an attribute of the instance",
        """
        model = Net(None, a=conv(), b=conv(size=1))
        model.forward = types.MethodType(lambda n, x: n.a(x) + n.b(x), model)
        model
        """,
    ),
    in_torch(
        "its class asks for super(type(self), self)",
        """
        class Model(Net):
            def train(self, mode=True):
                return super(type(self), self).train(mode)

        Model(lambda n, x: n.a(x) + n.b(x), a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "it calls a module whose class has a __call__ of its own",
        """
        class Act(nn.Module):
            def __call__(self, x):
                return super().__call__(x) * 2

            def forward(self, x):
                return x.relu()

        Net(lambda n, x: n.act(n.a(x) + n.b(x)), a=conv(), b=conv(size=1), act=Act())
        """,
    ),
    in_torch(
        "the code asks for the size of a value in between, which would be another one",
        """
        def forward(n, x):
            y = n.a(x)
            return n.b(y) * y.shape[1]

        Net(forward, a=conv(8, 16), b=conv(16, 8, size=1))
        """,
    ),
    in_torch(
        "{} also has to run, and the call that runs it would go",
        """
        class Add(nn.Module):
            def forward(self, a, b, skip):
                skip.relu_()
                return a + b

        def forward(n, x):
            y = x.sigmoid()
            return n.add(n.a(x), n.b(x), y), y

        Net(forward, a=conv(), b=conv(size=1), add=Add())
        """,
    ),
    in_torch(
        "{}, which may be given other options, calls {} alone",
        """
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.bn = conv(), nn.BatchNorm2d(8)

            def forward(self, x):
                return self.features(x).relu()

            def features(self, x, raw=False):
                y = self.conv(x)
                return y if raw else self.bn(y)

        Model()
        """,
    ),
    in_torch(
        "its result holds a {}",
        """
        class Both(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = conv(), conv(size=1)

            def forward(self, x):
                return self.a(x) + self.b(x), torch.relu

        Net(lambda n, x: n.both(x)[0], both=Both())
        """,
    ),
    in_torch(
        "it returns a container of a class of its own",
        """
        def forward(n, x):
            return OrderedDict(y=n.a(x) + n.b(x))

        Net(forward, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "it passes on a container of a class of its own",
        """
        def forward(n, x):
            return n.act(OrderedDict(y=n.a(x) + n.b(x)))

        class Act(nn.Module):
            def forward(self, parts):
                return parts["y"].relu()

        Net(forward, a=conv(), b=conv(size=1), act=Act())
        """,
    ),
    in_torch(
        "it computes with listed parameters or buffers",
        """
        def forward(n, x):
            scale = sum(weight.norm().item() for weight in n.c.parameters())
            return (n.a(x) + n.b(x)) * scale

        Net(forward, a=conv(), b=conv(size=1), c=norm())
        """,
    ),
    in_torch(
        "a Sequential runs its children one after the other",
        """
        def forward(n, x):
            return n.inner(x).relu() * n.inner[0].out_channels

        Net(forward, inner=nn.Sequential(conv(), norm()))
        """,
    ),
    in_torch(
        "a GraphModule with a calling convention of its own",
        """
        class Own(fx.CodeGen):
            pass

        class Model(Net):
            def forward(self, x):
                return self.a(x) + self.b(x)

        model = fx.symbolic_trace(Model(None, a=conv(), b=conv(size=1)))
        model.graph.set_codegen(Own())
        model
        """,
    ),
    in_torch(
        "the merged layer would read a value that only exists inside another module",
        """
        def two(n, x):
            y = x.relu()
            return n.a(y), n.b(y)

        def forward(n, x):
            a, b = n.inner(x)
            return a + b

        Net(forward, inner=Net(two, a=conv(), b=conv(size=1)))
        """,
    ),
    in_torch(
        "a method is given a {}",
        """
        class Model(Net):
            def act(self, x, how):
                return x.relu()

            def forward(self, x):
                return self.act(self.a(x) + self.b(x), types.SimpleNamespace())

        Model(None, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "a method is given a module that is not part of the model",
        """
        class Model(Net):
            def act(self, x, how):
                return x.relu()

            def forward(self, x):
                return self.act(self.a(x) + self.b(x), nn.ReLU())

        Model(None, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "the argument {} is a {}",
        """
        class Model(Net):
            def _both(self, parts):
                return self.a(parts.start) + self.b(parts.start)

            def forward(self, x):
                return self._both(slice(x, None))

        Model(None, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "an argument holds a {}",
        """
        class Model(Net):
            def _both(self, x, dtype):
                return self.a(x) + self.b(x)

            def forward(self, x):
                return self._both(x, torch.float64)

        Model(None, a=conv(), b=conv(size=1))
        """,
    ),
    in_torch(
        "it uses {}, which belongs to another module",
        """
        act = nn.ReLU()
        inner = Net(lambda n, x: n.acts[0](n.a(x) + n.b(x)), a=conv(), b=conv(size=1))
        inner.acts = [act]
        nn.Sequential(inner, act)
        """,
    ),
    in_torch(
        "{} has a Python keyword as a name",
        """
        def forward(n, x):
            return getattr(n, "class")(n.a(x) + n.b(x))

        Net(forward, a=conv(), b=conv(size=1), **{"class": nn.ReLU()})
        """,
    ),
    in_torch(
        "it does different things for the same kind of arguments",
        """
        state = [False]

        def inner(n, x):
            y = n.a(x) + n.b(x)
            return y.relu() if state[0] else y.sigmoid()

        def forward(n, x):
            for state[0] in (True, False):
                x = n.inner(x)
            return x

        Net(forward, inner=Net(inner, a=conv(), b=conv(size=1)))
        """,
    ),
    nowhere(
        "{} has hooks",
        "a layer with hooks is not looked into, which is told first",
    ),
    nowhere(
        "a ModuleList has no forward",
        "what is called is a method of a module around the list",
    ),
    nowhere(
        "it is a part of {}",
        "what stands inside one operation of the code is lifted to the sum around it",
    ),
    nowhere(
        "a source of the merged branches is not at hand",
        "a method is only chosen where it can name all sources",
    ),
    nowhere(
        "a source of the merged branches is not at hand in this layout",
        "the value is followed to where it has the layout that the layer reads",
    ),
    nowhere(
        "the value is only at hand with its axes in another order",
        "a layer is put where its input has the axes that it reads",
    ),
    nowhere(
        "{} is read, but not made any more",
        "what somebody reads is never removed",
    ),
    nowhere(
        "a function that it calls cannot be imported: {}",
        "the functions that a trace records are torch's own",
    ),
    nowhere(
        "its calls have different numbers of merged branches",
        "a module that is not edited alike in every call is told first",
    ),
    # Costs.
    in_torch(
        "merged from {} on it is one {}: {} times the MACs, {} times the price",
        "nn.Sequential(conv(groups=8), conv(size=1))",
    ),
    in_torch(
        "{}: only the 8 nearest and the 8 farthest ancestors were tried",
        "nn.Sequential(*[nn.Conv2d(8, 8, 3) for _ in range(17)])",
        shape=(2, 8, 35, 35),
    ),
)
