"""RaftMLP-S/M/L in PyTorch, to be timed beside raftc (and, exported, by what reads ONNX).

Written for speed in eager mode: the channels stay last, the cross-scale embedding is a sum of
convolutions, LayerNorm's parameters are permuted once. `python raftmlp_torch.py GOLDEN...` checks
it against goldens; bench/compare does so before it times anything.
"""
import json
import math
import struct
import sys

import numpy as np
import torch
import yaml
from torch import nn
from torch.nn import functional as F


def draw_bits(name, count):
    """The fill rule: `count` numbers of 64 bits that depend on the name and the index alone."""
    seed = 14695981039346656037
    for byte in name.encode():
        seed = (seed ^ byte) * 1099511628211 % 2**64
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(seed)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def draws(name, count):
    """The same as numbers in [-1, 1)."""
    z = draw_bits(name, count)
    return (2 * ((z >> np.uint64(40)) / 2**24) - 1).astype(np.float32)


def filled(name, *shape):
    """A parameter by the fill rule."""
    v = draws(name, math.prod(shape))
    if name.endswith(".bias"):
        v *= np.float32(0.1)
    elif len(shape) == 2:
        v *= np.float32(math.sqrt(3 / shape[1]))
    else:
        v = 1 + np.float32(0.2) * v
    return nn.Parameter(torch.from_numpy(v).view(shape), requires_grad=False)


def filled_input(batch, height, width):
    values = 2 * draws("input", batch * 3 * height * width)
    return torch.from_numpy(values).view(batch, 3, height, width)


def filled_labels(batch, classes):
    return draw_bits("labels", batch) % np.uint64(classes)


def linear(name, inputs, outputs):
    layer = nn.Linear(inputs, outputs, device="meta")
    layer.weight = filled(f"{name}.weight", outputs, inputs)
    layer.bias = filled(f"{name}.bias", outputs)
    return layer


def layer_norm(name, channels, raft=1):
    """The parameters of channel r * (channels / raft) + g stand at g * raft + r."""
    layer = nn.LayerNorm(channels, device="meta")
    reorder = lambda p: nn.Parameter(p.view(-1, raft).t().reshape(-1), requires_grad=False)
    layer.weight = reorder(filled(f"{name}.weight", channels))
    layer.bias = reorder(filled(f"{name}.bias", channels))
    return layer


def mlp(name, width, expansion):
    return nn.Sequential(linear(f"{name}.fn.0", width, expansion * width), nn.GELU(),
                         linear(f"{name}.fn.3", expansion * width, width))


class Branch(nn.Module):
    """In training it is dropped, for each image by itself, with the probability `drop_path`."""
    drop_path = 0

    def add_to(self, x, y):
        if self.training and self.drop_path > 0:
            kept = x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - self.drop_path)
            y = y * kept.div_(1 - self.drop_path)
        return x + y


class ChannelBlock(Branch):
    def __init__(self, name, channels, expansion):
        super().__init__()
        self.norm = layer_norm(f"{name}.norm", channels)
        self.mlp = mlp(name, channels, expansion)

    def forward(self, x):
        return self.add_to(x, self.mlp(self.norm(x)))


class AxisBlock(Branch):
    """Mixes (raft, row) or (raft, column) of x [b, h, w, c]; axis is 1 or 2."""

    def __init__(self, name, axis, side, channels, raft, expansion):
        super().__init__()
        self.raft = raft
        # [b, h, w, raft, group] <-> [b, other axis, group, raft, axis]
        self.order = (0, 3 - axis, 4, 3, axis)
        self.back = tuple(self.order.index(i) for i in range(5))
        self.norm = layer_norm(f"{name}.norm.1", channels, raft)
        self.mlp = mlp(name, raft * side, expansion)

    def forward(self, x):
        b, h, w, c = x.shape
        y = self.norm(x).view(b, h, w, self.raft, c // self.raft).permute(self.order)
        y = self.mlp(y.flatten(3)).view(y.shape)
        return self.add_to(x, y.permute(self.back).reshape(x.shape))


class Embedding(nn.Module):
    """The product of all unfolded windows with one matrix: a convolution for each kernel size."""

    def __init__(self, name, inputs, channels, kernels):
        super().__init__()
        self.stride = kernels[0]
        sizes = [inputs * k * k for k in kernels]
        parts = filled(f"{name}.weight", channels, sum(sizes)).split(sizes, 1)
        self.weights = nn.ParameterList(
            nn.Parameter(part.reshape(channels, inputs, k, k), requires_grad=False)
            for part, k in zip(parts, kernels))
        self.bias = filled(f"{name}.bias", channels)

    def forward(self, x):
        bias, total = self.bias, 0
        for weight in self.weights:
            padding = (weight.shape[-1] - self.stride) // 2
            total = total + F.conv2d(x, weight, bias, self.stride, padding)
            bias = None
        return total.permute(0, 2, 3, 1).contiguous()


def resample(x, size):
    """Bicubic, on x [b, h, w, c]."""
    if x.shape[1:3] == size:
        return x
    x = F.interpolate(x.permute(0, 3, 1, 2), size, mode="bicubic")
    return x.permute(0, 2, 3, 1).contiguous()


class Level(nn.Module):
    def __init__(self, name, config, layer, inputs, side):
        super().__init__()
        channels, raft, self.side = layer["dim"], layer["raft_size"], side
        axis_expansion = config["token_expansion_factor"]
        self.patch = layer["patch_size"]
        self.embedding = Embedding(f"{name}.fn.0.fc", inputs, channels, layer["embedding_kernels"])
        self.layers = nn.ModuleList()
        for i in range(2, 2 + layer["depth"]):
            part = f"{name}.fn.{i}"
            self.layers.append(nn.ModuleList([
                AxisBlock(f"{part}.1", 1, side, channels, raft, axis_expansion),
                AxisBlock(f"{part}.3", 2, side, channels, raft, axis_expansion),
                ChannelBlock(f"{part}.5", channels, config["channel_expansion_factor"])]))

    def forward(self, x):
        h, w = (math.ceil(n / self.patch) for n in x.shape[2:])
        if x.shape[2:] != (h * self.patch, w * self.patch):
            x = F.interpolate(x, (h * self.patch, w * self.patch), mode="bicubic")
        x = self.embedding(x)
        for vertical, horizontal, channel in self.layers:
            x = horizontal(vertical(resample(x, (self.side, self.side))))
            x = channel(resample(x, (h, w)))
        return x.permute(0, 3, 1, 2)


class RaftMLP(nn.Module):
    """From the settings of a model with `ser_pm`, `emb_cross_mlp` and no shortcut."""

    def __init__(self, config, classes=1000):
        super().__init__()
        inputs, side = config.get("in_channels", 3), config.get("pretrained_image_size", 224)
        levels = []
        for i, layer in enumerate(config["layers"]):
            side = math.ceil(side / layer["patch_size"])
            levels.append(Level(f"levels.{i}", config, layer, inputs, side))
            inputs = layer["dim"]
        self.levels = nn.Sequential(*levels)
        self.norm = layer_norm("heads.0.1", inputs)
        self.classifier = linear("classifier", inputs, classes)

    def forward(self, x):
        x = self.levels(x).permute(0, 2, 3, 1)
        return self.classifier(self.norm(x).mean((1, 2)))


def read_golden(path):
    """The metadata and the tensors of a golden file."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    metadata = header.pop("__metadata__", {})
    return metadata, {name: np.frombuffer(data[slice(*entry["data_offsets"])], np.float32)
                      .reshape(entry["shape"]) for name, entry in header.items()}


def share_of_tolerance(golden, logits):
    """Greatest difference of logits (any number of first images) as a share of what is accepted."""
    golden = golden[:len(logits)]
    logits = np.asarray(logits)[:len(golden)]
    return float(np.abs(logits - golden).max() / (2e-5 * max(1, np.abs(golden).max())))


def main():
    worst = 0
    for path in sys.argv[1:]:
        metadata, tensors = read_golden(path)
        model = RaftMLP(yaml.safe_load(metadata["config"]), int(metadata["classes"]))
        for name in sorted(tensors):
            size, _, what = name.partition(".")
            if what != "logits" or "x" not in size:
                continue
            with torch.inference_mode():
                logits = model(filled_input(int(metadata["batch"]), *map(int, size.split("x"))))
            share = share_of_tolerance(tensors[name], logits)
            worst = max(worst, share)
            print(f"{metadata['model']} {name}: {share:.3g} of the tolerance")
    return int(not worst <= 1)


if __name__ == "__main__":
    sys.exit(main())
