#!/usr/bin/env python3
"""Times libraries of one model beside each other: forwards in turns, in one process.

usage: bench/pairs.py [--train] [--batch N] [--seconds S] LIBRARY.so LIBRARY.so...

For builds or choices that differ by a few per cent, on a machine whose speed changes by more within seconds:
each turn is one forward of every library, or with --train one step of training, and what counts is the last
column, the median of a library's time over that of the first in the same turn. Libraries as
`raftc MODEL.yaml [--train] --name A -o A` makes them, each with a name of its own; their weights are drawn
here. Needs NumPy.
"""
import argparse
import ctypes
import os
import statistics
import sys
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def step_of(model, images):
    """A function that takes one step of training: each image has a class of its own, as far as there are so many."""
    classes = model._logits[0]
    target = np.eye(classes, dtype=np.float32)[np.arange(len(images)) % classes]
    loss = np.empty(len(images), np.float32)
    pointer = [ctypes.c_void_p(array.ctypes.data) for array in (images, target, loss)]

    def step():
        model._call("zero_gradients")
        model._call("backward", ctypes.c_int64(len(images)), pointer[0], pointer[1], None, pointer[2])
        model._call("step", ctypes.c_double(1e-4))

    step.keeps = target, loss
    return step


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("libraries", nargs="+", metavar="LIBRARY.so")
    options = parser.parse_args()
    sys.path.insert(0, os.path.join(ROOT, "runtime"))
    import raft
    models = []
    for path in options.libraries:
        model = raft.Model(os.path.abspath(path))
        random = np.random.default_rng(1)
        model.set_parameters({name: 0.05 * random.standard_normal(shape, np.float32)
                              for name, shape in model.parameters.items()})
        models.append(model)
    images = np.random.default_rng(0).standard_normal(
        (options.batch, *models[0].image_shape), np.float32)
    runs = [step_of(model, images) if options.train else lambda model=model: model.forward(images)
            for model in models]
    for run in runs:  # the first packs the weights
        run()
    turns, end = [], time.perf_counter() + options.seconds
    while not turns or time.perf_counter() < end:
        turn = []
        for run in runs:
            start = time.perf_counter()
            run()
            turn.append(1e3 * (time.perf_counter() - start))
        turns.append(turn)
    print(f"{len(turns)} turns of {options.batch} images; milliseconds")
    print(f"{'least':>10} {'median':>10} {'to first':>10}")
    for i, path in enumerate(options.libraries):
        times = [turn[i] for turn in turns]
        ratio = statistics.median(turn[i] / turn[0] for turn in turns)
        print(f"{min(times):10.2f} {statistics.median(times):10.2f} {ratio:10.3f}  {path}")


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    main()
