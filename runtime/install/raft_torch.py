"""A model that raftc compiled with --train, as a module of PyTorch: alone, or as the backbone of heads
for detection and segmentation. The module and the library share the memory of all parameters, and
tensors are handed over by DLPack: nothing is copied.

    raftc raftmlp-s.yaml --train
    python raft_torch.py ./raftmlp-s.so 100

trains a small segmentation head and its backbone on made-up pictures. raft.py must be in PYTHONPATH.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy
import raft
import torch
from torch.nn import functional


def _array(tensor: torch.Tensor) -> Any:
    """The tensor's own memory; only where its elements do not lie in a row, that of a copy."""
    return numpy.from_dlpack(tensor.detach().contiguous())


class _Run(torch.autograd.Function):
    """A forward and the backward to it. The library keeps what one backward needs: if another forward
    has come between, it is computed again."""

    @staticmethod
    def forward(ctx: Any, module: Compiled, images: torch.Tensor, *parameters: torch.Tensor) -> Any:
        if images.requires_grad:
            raise ValueError("there are no gradients of the images")
        ctx.module = module
        ctx.save_for_backward(images, *parameters)
        logits, maps = module.keep(images, outputs=True)
        ctx.run = module.run
        return tuple(torch.from_dlpack(array) for array in (maps if module.features else [logits]))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        module = ctx.module
        images, *_ = ctx.saved_tensors  # PyTorch refuses them where they have changed since
        if module.run != ctx.run:
            module.keep(images, outputs=False)
        module.run += 1
        given = [_array(gradient) for gradient in gradients]
        results = module.model.backward_from(
            None if module.features else given[0], given if module.features else None
        )
        return None, None, *map(torch.from_dlpack, results.values())


class Compiled(torch.nn.Module):
    """The model of a library: images [b, c, h, w] to logits [b, classes], or, with `features`, to a
    list of feature maps [b, c, h, w]. Its parameters have the published names."""

    def __init__(self, library: str, features: bool = False, **options: Any) -> None:
        """options: those of raft.Model, as weights and threads."""
        super().__init__()
        self.model = raft.Model(library, **options)
        self.features = features
        self.run = 0  # the number of the last one, of which the library keeps what a backward needs
        for name in self.model.parameters:
            *path, last = name.split(".")
            owner: torch.nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, torch.nn.Module())
                owner = owner.get_submodule(part)
            tensor = torch.from_dlpack(self.model.parameter(name))
            of_head = path[0] in ("heads", "classifier")  # no feature map depends on it
            parameter = torch.nn.Parameter(tensor, requires_grad=not (features and of_head))
            owner.register_parameter(last, parameter)

    def keep(self, images: torch.Tensor, outputs: bool) -> Any:
        self.run += 1
        return self.model.forward_keep(
            _array(images), outputs and not self.features, outputs and self.features
        )

    def forward(self, images: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            outputs = _Run.apply(self, images, *self.parameters())
            return list(outputs) if self.features else outputs[0]
        self.run += 1
        if self.features:
            return [torch.from_dlpack(array) for array in self.model.features(_array(images))]
        return torch.from_dlpack(self.model.forward(_array(images)))

    def draw(self) -> None:
        """Parameters as PyTorch's modules begin, but for biases of 0."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                bound = 1 / math.sqrt(parameter.shape[1])
                torch.nn.init.uniform_(parameter, -bound, bound)
            else:
                torch.nn.init.constant_(parameter, 0 if name.endswith("bias") else 1)


class Segmenter(torch.nn.Module):
    """One number a pixel of the largest feature map: the sum of a product of each, brought to its size."""

    def __init__(self, backbone: Compiled) -> None:
        super().__init__()
        self.backbone = backbone
        channels = [shape[0] for shape in backbone.model.map_shapes]
        self.heads = torch.nn.ModuleList(torch.nn.Conv2d(c, 1, 1) for c in channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.backbone(images)
        size = maps[0].shape[2:]
        parts = [functional.interpolate(head(m), size) for head, m in zip(self.heads, maps)]
        return torch.stack(parts).sum(0)


def draw_pictures(batch: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a brighter rectangle in each, and where that is."""
    channels, height, width = shape
    y, x = torch.rand(2, batch, 1, 1) * 0.5
    rows, columns = (torch.arange(n) / n for n in (height, width))
    inside = ((rows[:, None] >= y) & (rows[:, None] < y + 0.5) & (columns >= x) & (columns < x + 0.5))
    mask = inside[:, None].float()
    return torch.rand(batch, channels, height, width) + mask, mask


def main() -> None:
    library, steps = sys.argv[1], int(sys.argv[2])
    torch.manual_seed(1)
    backbone = Compiled(library, features=True)
    backbone.draw()
    model = Segmenter(backbone)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, steps + 1):
        images, mask = draw_pictures(16, backbone.model.image_shape)
        logits = model(images)
        mask = functional.interpolate(mask, logits.shape[2:])
        loss = functional.binary_cross_entropy_with_logits(logits, mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step == 1 or step % 20 == 0:
            right = ((logits > 0) == (mask > 0)).float().mean()
            print(f"step {step}  loss {loss.item():.4f}  pixels right {right.item():.3f}")


if __name__ == "__main__":
    main()
