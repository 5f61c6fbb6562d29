"""The tower's first layer as a matrix product: a convolution whose kernels do not overlap is one.

Of a still image all frames of a patch are equal, so its kernels may be summed over them first: half the arithmetic,
and no copy of the pixels. On a CPU this is 5 to 15 times faster than the convolution.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class PatchProjection(nn.Conv3d):
    """The same parameters under the same names as the convolution it stands for."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(P, 3, frames, p, p) -> (P, D); frames that are one in memory (stride 0) are read once."""
        if input.stride(2) == 0:
            return functional.linear(input[:, :, 0].flatten(1), self.weight.sum(2).flatten(1), self.bias)
        return functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)


def project_by_product(model: nn.Module) -> int:
    """Let every patch embedding of ``model`` compute as a product; returns how many there are.

    Weights stay the same objects, and checkpoints keep their names.
    """
    found = [name for name, module in model.named_modules() if name.endswith("patch_embed.proj") and _splits(module)]
    for name in found:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, _as_product(model.get_submodule(name)))
    return len(found)


def _splits(module: nn.Module) -> bool:
    """Whether this is a convolution that sees every value once."""
    return (
        type(module) is nn.Conv3d
        and module.kernel_size == module.stride
        and (module.padding, module.dilation, module.groups) == ((0, 0, 0), (1, 1, 1), 1)
    )


def _as_product(module: nn.Module) -> PatchProjection:
    assert isinstance(module, nn.Conv3d)
    with torch.device("meta"):
        depth, height, width = module.kernel_size
        kernel = (depth, height, width)
        product = PatchProjection(module.in_channels, module.out_channels, kernel, kernel, bias=module.bias is not None)
    product.weight, product.bias = module.weight, module.bias
    return product.train(module.training)
