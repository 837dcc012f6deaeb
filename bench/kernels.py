#!/usr/bin/env python3
"""Times each kernel of several builds of raftc on one core, for machines on which others work, too.

    bench/kernels.py --models s --batch 1 --rounds 8 OLD/raftc build/raftc

The builds take turns, and for each kernel the least CPU time of its thread counts. In: executables, the
settings in models/, a C compiler. Out: a table, per kernel and build: ms, and the share of the peak that
the same run measured (the best of all runs). Kernels are told apart by their place in the forward.
"""
import argparse
import json
import os
import pathlib
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

# bench asks OpenMP what time it is; beside others, the CPU time of the thread is what tells.
CLOCK = """
#include <time.h>
double omp_get_wtime(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
"""


def build_clock(folder):
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(CLOCK)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


def profile(raftc, model, options, clock, core):
    command = ["taskset", "-c", str(core), raftc, "bench", ROOT / f"models/raftmlp-{model}.yaml",
               "--profile", "--threads", "1", "--json", *options]
    run = subprocess.run(command, env={**os.environ, "LD_PRELOAD": str(clock)}, capture_output=True)
    if run.returncode not in (0, 4):  # 4: more than the peak, as neighbours slow that down
        raise SystemExit(run.stderr.decode())
    return json.loads(run.stdout)


def keep_best(best, result):
    best["peak"] = max(best.get("peak", 0), result["peak_gflops"])
    for i, kernel in enumerate(result["kernels"]):
        old = best.setdefault(i, kernel)
        if kernel["ms"] < old["ms"]:
            best[i] = kernel


def print_table(model, batch, best):
    peak = max(b["peak"] for b in best)
    print(f"raftmlp-{model}, batch {batch}, one thread; peak {peak:.1f} GFLOP/s")
    for i in range(len(best[0]) - 1):
        cells = "".join(f"{b[i]['ms']:9.3f} {100 * b[i]['gflops'] / peak:5.1f} %" for b in best)
        print(f"{cells}  {best[-1][i]['times']} x {best[-1][i]['kernel']}")
    total = [sum(k["ms"] for i, k in b.items() if i != "peak") for b in best]
    flops = [sum(k["ms"] * k["gflops"] for i, k in b.items() if i != "peak") for b in best]
    print("".join(f"{t:9.3f} {100 * f / t / peak:5.1f} %" for t, f in zip(total, flops)), " all")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("raftc", nargs="+")
    parser.add_argument("--models", default="s")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--option", action="append", default=[], help="for every build, as --mcpu=NAME")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clock = build_clock(pathlib.Path(folder))
        for model in a.models.split(","):
            for batch in a.batch.split(","):
                best = [{} for _ in a.raftc]
                for _ in range(a.rounds):
                    for raftc, b in zip(a.raftc, best):
                        keep_best(b, profile(raftc, model, ["--batch", batch, *a.option], clock, a.core))
                print_table(model, batch, best)


if __name__ == "__main__":
    main()
