#!/usr/bin/env python3
"""What the CUDA kernels of a model take of a multiprocessor, which no GPU is needed to tell.

    bench/occupancy.py --models s,m,l --gpu-arch sm_80,sm_90

In: build/raftc, NVRTC, and cuobjdump of a CUDA toolkit, or --cuobjdump. Out: a table, per kernel of a
forward: registers of a thread, bytes of its stack, where registers spill, KiB of shared memory of a block, the blocks that
fit on a multiprocessor, what bounds their number, and their threads as a share of what it holds. Steps
with equal kernels are one row.
"""
import argparse
import pathlib
import re
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Of a multiprocessor. A block takes 1 KiB of shared memory for itself, a warp registers in steps of 256.
SHARED_KIB = {80: 164, 90: 228}
THREADS, REGISTERS, MOST_BLOCKS, WARP = 2048, 65536, 32, 32
KERNEL = re.compile(r"__launch_bounds__\((\d+), \d+\) (\w+_k(\d+)_\w+)\((?:.|\n)*?\n}\n")
# Of the usual shape: that for few images has memory of its own, deeper in.
SHARED = re.compile(r"^  raft_shared\(shared, (\d+)\)", re.MULTILINE)
USED = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+)")


def compile_model(raftc, model, architecture, folder):
    """The text of the kernels, the file of their code, and how many come before those of a forward."""
    settings = ROOT / f"models/raftmlp-{model}.yaml"
    run = subprocess.run([raftc, settings, "--target", "cuda", "--gpu-arch", f"sm_{architecture}",
                          "--emit", "cuda,cubin", "-o", folder / "m"],
                         check=True, stderr=subprocess.PIPE, text=True)
    preparing = re.search(r"(\d+) to prepare", run.stderr)
    return ((folder / "m.cu").read_text(), folder / f"m.sm_{architecture}.cubin",
            int(preparing[1]) if preparing else 0)


def blocks_that_fit(architecture, threads, registers, shared):
    warp_registers = -(-registers * WARP // 256) * 256
    limits = {"registers": REGISTERS // (warp_registers * threads // WARP),
              "threads": THREADS // threads,
              "blocks": MOST_BLOCKS,
              "shared memory": int(SHARED_KIB[architecture] // (shared / 1024 + 1))}
    bound = min(limits, key=limits.get)
    return limits[bound], bound


def print_model(raftc, cuobjdump, model, architecture):
    with tempfile.TemporaryDirectory() as folder:
        text, cubin, preparing = compile_model(raftc, model, architecture, pathlib.Path(folder))
        dump = subprocess.run([cuobjdump, "-res-usage", cubin], check=True, capture_output=True,
                              text=True).stdout
    used = {name: (int(registers), int(stack)) for name, registers, stack in USED.findall(dump)}
    print(f"raftmlp-{model}, sm_{architecture}\n")
    print("| kernel | registers | stack | shared KiB | blocks | bound by | occupancy |")
    print("|---|---:|---:|---:|---:|---|---:|")
    for match in KERNEL.finditer(text):
        threads, name = int(match[1]), match[2]
        if int(match[3]) < preparing:
            continue
        shared = SHARED.search(match[0])
        size = 4 * int(shared[1]) if shared else 0
        registers, stack = used[name]
        blocks, bound = blocks_that_fit(architecture, threads, registers, size)
        print(f"| {name.split('_', 2)[2]} | {registers} | {stack} | {size / 1024:.1f} "
              f"| {blocks} | {bound} | {100 * blocks * threads / THREADS:.0f} % |")
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raftc", default=ROOT / "build/raftc")
    parser.add_argument("--cuobjdump", default="cuobjdump")
    parser.add_argument("--models", default="s,m,l")
    parser.add_argument("--gpu-arch", default="sm_80,sm_90")
    options = parser.parse_args()
    for model in options.models.split(","):
        for architecture in options.gpu_arch.split(","):
            print_model(options.raftc, options.cuobjdump, model, int(architecture.removeprefix("sm_")))


if __name__ == "__main__":
    main()
