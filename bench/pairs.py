#!/usr/bin/env python3
"""Times libraries of one model beside each other: forwards in turns, in one process.

usage: bench/pairs.py [--batch N] [--seconds S] LIBRARY.so LIBRARY.so...

For builds or choices that differ by a few per cent, on a machine whose speed changes by more within seconds:
each turn is one forward of every library, and what counts is the last column, the median of a library's time
over that of the first in the same turn. Libraries as `raftc MODEL.yaml --name A -o A` makes them, each with a
name of its own; their weights are drawn here. Needs NumPy.
"""
import argparse
import os
import statistics
import sys
import time

import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
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
    for model in models:  # the first run packs the weights
        model.forward(images)
    turns, end = [], time.perf_counter() + options.seconds
    while not turns or time.perf_counter() < end:
        turn = []
        for model in models:
            start = time.perf_counter()
            model.forward(images)
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
