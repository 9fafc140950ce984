"""The next MindSpore, imitated over the installed one as the docstrings of 2.10 announce it.

``MINDSEG_FUTURE=1 python -m pytest …`` runs tests under it: tests/conftest.py calls :func:`install` before any module
that uses MindSpore is imported. Modules of MindSpore itself see what they always saw; all others see other classes,
and AttributeErrors for removed names. Without ``set_context`` everything runs in PyNative mode.
"""
import os
import sys

FUTURE = os.environ.get("MINDSEG_FUTURE") == "1"
CONTEXT = ("set_context", "get_context", "set_auto_parallel_context", "get_auto_parallel_context",
           "reset_auto_parallel_context")
REMOVED = {
    "mindspore": CONTEXT,
    "mindspore.context": CONTEXT,
    "mindspore.nn": ("Dense", "Momentum", "AdamWeightDecay", "SoftmaxCrossEntropyWithLogits", "no_init_parameters",
                     "DistributedGradReducer"),
    "mindspore.nn.utils": ("no_init_parameters",),
    "mindspore.ops": ("cast", "assign", "assign_add", "assign_sub", "slice", "tensor_scatter_elements",
                      "clip_by_global_norm"),
}


def install() -> None:
    """Replaces names of MindSpore, for the rest of the process."""
    import mindspore as ms

    replaced = {"mindspore.nn": _cells(), "mindspore": {"export": _make_export(ms.export)},
                "mindspore.ops": {"transpose": _transpose, "gather": _gather}}
    for name, removed in REMOVED.items():
        module = sys.modules[name]
        module.__class__ = _make_module(module.__class__, removed, replaced.get(name, {}))


def _make_module(base: type, removed: tuple[str, ...], replaced: dict[str, object]) -> type:
    """Makes a class of modules that hides and replaces names from all code but MindSpore's own."""

    class FutureModule(base):
        def __getattribute__(self, name: str) -> object:
            if name in removed or name in replaced:
                caller = sys._getframe(1).f_globals.get("__name__", "")
                if caller.partition(".")[0] != "mindspore":
                    if name in removed:
                        raise AttributeError(f"the next MindSpore has no {self.__name__}.{name}")
                    return replaced[name]
            return super().__getattribute__(name)

        def __setattr__(self, name: str, value: object) -> None:
            """Lets tests replace a name for a while."""
            if name in replaced:
                replaced[name] = value
            else:
                super().__setattr__(name, value)

    return FutureModule


def _make_export(export: object) -> object:
    def future_export(*inputs: object, file_format: str = "MINDIR", **options: object) -> None:
        if file_format == "AIR":
            raise ValueError("file_format AIR was removed")
        export(*inputs, file_format=file_format, **options)

    return future_export


def _transpose(input, dim0, dim1):
    """Swap two axes."""
    from mindspore import ops
    order = list(range(input.ndim))
    order[dim0], order[dim1] = dim1, dim0
    return ops.Transpose()(input, tuple(order))


def _gather(input, dim, index):
    """Look up one value for each index, as ``gather_elements`` of today does."""
    from mindspore import ops
    return ops.GatherD()(input, dim, index)


def _cells() -> dict[str, type]:
    return {**_layers(), **_norms(), **_optimizers()}


def _layers() -> dict[str, type]:
    from mindspore import nn

    class Conv2d(nn.Conv2d):
        def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, dilation=1, groups=1, bias=True,
                     padding_mode="zeros", dtype=None):
            super().__init__(in_channels, out_channels, kernel_size, stride, "pad", padding, dilation, groups, bias)

    class Conv2dTranspose(nn.Conv2dTranspose):
        def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, output_padding=0, groups=1,
                     bias=True, dilation=1, padding_mode="zeros", dtype=None):
            super().__init__(in_channels, out_channels, kernel_size, stride, "pad", padding, output_padding, dilation,
                             groups, bias)

    class MaxPool2d(nn.MaxPool2d):
        def __init__(self, kernel_size, stride=None, padding=0, dilation=1, return_indices=False, ceil_mode=False):
            super().__init__(kernel_size, kernel_size if stride is None else stride, "pad", padding, dilation,
                             return_indices, ceil_mode)

    class Linear(nn.Dense):
        def __init__(self, in_features, out_features, bias=True, dtype=None):
            super().__init__(in_features, out_features, has_bias=bias)

    return {"Conv2d": Conv2d, "Conv2dTranspose": Conv2dTranspose, "MaxPool2d": MaxPool2d, "Linear": Linear}


def _norms() -> dict[str, type]:
    from mindspore import nn

    class BatchNorm2d(nn.BatchNorm2d):
        """``momentum`` is the factor of the new value; ``use_batch_statistics`` is no more."""

        def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True, dtype=None):
            super().__init__(num_features, eps, 1.0 - momentum, affine)
            self.momentum = momentum

        def construct(self, x):
            normalise = self.bn_train if self.training else self.bn_infer
            return normalise(x, self.gamma, self.beta, self.moving_mean, self.moving_variance)[0]

    class SyncBatchNorm(BatchNorm2d):
        """Of one device."""

        def __init__(self, num_features, eps=1e-5, momentum=0.1, affine=True, track_running_stats=True,
                     process_group=None, dtype=None):
            super().__init__(num_features, eps, momentum, affine)

    return {"BatchNorm2d": BatchNorm2d, "SyncBatchNorm": SyncBatchNorm}


def _optimizers() -> dict[str, type]:
    from mindspore import nn

    class SGD(nn.SGD):
        def __init__(self, params, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
            super().__init__(params, lr, momentum, dampening, weight_decay, nesterov)

    class Adam(nn.Adam):
        def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False):
            super().__init__(params, lr, *betas, eps, weight_decay=weight_decay, use_amsgrad=amsgrad)

    return {"SGD": SGD, "Adam": Adam}
