#!/usr/bin/env python3
"""Writes optimisers.safetensors: trajectories of PyTorch's optimisers, for tests/test_optimiser.c.

usage: make.py    (needs PyTorch; writes beside itself)

start [25], gradients [6, 25]; of each case NAME.w and NAME.e, [6, 25]: weights and their average after
each step. The first 20 weights are a matrix, which decays, the others a bias, which may be exempt.
"""
import json
import pathlib
import struct

import torch

STEPS, MATRIX, ALL, AVERAGE = 6, 20, 25, 0.9
CASES = {  # optimiser, its arguments, weight decay, whether the bias is exempt, most norm of the gradients
    "adamw": (torch.optim.AdamW, {}, 0.05, False, 0),
    "adamw-clip-exempt": (torch.optim.AdamW, {}, 0.5, True, 3.0),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}, 0.05, False, 0),
    "sgd-clip-exempt": (torch.optim.SGD, {"momentum": 0.8}, 0.5, True, 3.0),
}


def rate(step):
    return 0.01 * (step + 1)


def run(kind, arguments, decay, exempt, most, start, gradients):
    parameters = [start[:MATRIX].clone().requires_grad_(), start[MATRIX:].clone().requires_grad_()]
    groups = [{"params": parameters[:1], "weight_decay": decay},
              {"params": parameters[1:], "weight_decay": 0.0 if exempt else decay}]
    optimiser = kind(groups, lr=1.0, **arguments)
    average, weights, averages = start.clone(), [], []
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        parameters[0].grad = gradients[step][:MATRIX].clone()
        parameters[1].grad = gradients[step][MATRIX:].clone()
        if most:
            torch.nn.utils.clip_grad_norm_(parameters, most)
        optimiser.step()
        weights.append(torch.cat([p.detach() for p in parameters]))
        average = AVERAGE * average + (1 - AVERAGE) * weights[-1]
        averages.append(average)
    return torch.stack(weights), torch.stack(averages)


def main():
    generator = torch.Generator().manual_seed(7)
    start = torch.randn(ALL, generator=generator)
    gradients = torch.randn(STEPS, ALL, generator=generator)
    gradients[2] *= 0.1  # shorter than the clipped ones
    tensors = {"start": start, "gradients": gradients}
    for name, case in CASES.items():
        tensors[f"{name}.w"], tensors[f"{name}.e"] = run(*case, start, gradients)
    header, data = {}, b""
    for name, tensor in tensors.items():
        values = tensor.numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape),
                        "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path = pathlib.Path(__file__).with_name("optimisers.safetensors")
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


main()
