"""Times raftc beside PyTorch on a GPU: RaftMLP-S/M/L, by CUDA events; bench/gpu.sh calls it.

usage: gpu_peers.py warm MODEL BATCH DTYPE     compiles for torch.compile, into its cache on disk
       gpu_peers.py train MODEL BATCH          times PyTorch's step of training, f32, from a CUDA graph
       gpu_peers.py time LIBRARIES JSON [--models s,m,l] [--batch 1,256] [--dtypes f32,bf16] [--seconds N]

LIBRARIES is a folder with what `raftc raftmlp-s.yaml --target cuda --weights @fill` writes. Each
contender runs from a CUDA graph: PyTorch's is captured here, raftc's library makes its own. The
contenders take turns, so that a GPU that slows down slows all of them. f32 is without TF32; PyTorch's
bf16 is there for the record. Before it is timed, the logits of a contender are compared with the
golden of the model; one that is wrong is told, and timed all the same.
"""
import argparse
import ctypes
import functools
import json
import os
import statistics
import sys
import time
import warnings

import numpy as np
import torch
import yaml

import raftmlp_torch as raftmlp

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
ROUNDS, ROUND_SECONDS = 5, 0.15


def read_model(name):
    path = os.path.join(ROOT, "tests", "data", "goldens", f"forward-raftmlp-{name}.safetensors")
    metadata, tensors = raftmlp.read_golden(path)
    return yaml.safe_load(metadata["config"]), tensors["224x224.logits"]


@functools.cache
def images_on_gpu(batch):
    return raftmlp.filled_input(batch, 224, 224).cuda()


def torch_forward(config, batch, dtype, compiled):
    """A function that queues a forward, and the tensor that gets the logits."""
    model = raftmlp.RaftMLP(config).eval().cuda().to(DTYPES[dtype])
    images = images_on_gpu(batch).to(DTYPES[dtype])
    run = torch.compile(model) if compiled else model
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        for _ in range(3):
            run(images)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph, stream=stream):
        logits = run(images)

    def forward():
        with torch.cuda.stream(stream):
            graph.replay()
    return forward, logits, stream, (model, images, graph)


def time_training(name, batch):
    """Forward, backward and AdamW, images and labels being on the GPU."""
    model = raftmlp.RaftMLP(read_model(name)[0]).train().cuda().requires_grad_(True)
    images = torch.as_tensor(raftmlp.filled_input(batch, 224, 224)).cuda()
    labels = torch.as_tensor(raftmlp.filled_labels(batch, 1000).astype(np.int64)).cuda()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=True, capturable=True)

    def step():
        optimiser.zero_grad(set_to_none=False)
        torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.1).backward()
        optimiser.step()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        step()

    def replay():
        with torch.cuda.stream(stream):
            graph.replay()
    times = [measure(replay, stream, 5) for _ in range(ROUNDS)]
    print(f"{name.upper()} {batch} PyTorch, a step of training: {min(times):.2f} ms at least, "
          f"{statistics.median(times):.2f} by the median")


class Options(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("threads", ctypes.c_int), ("device", ctypes.c_int),
                ("stream", ctypes.c_void_p), ("weights", ctypes.c_void_p),
                ("weights_size", ctypes.c_size_t)]


def raftc_forward(folder, name, batch):
    base, prefix = os.path.join(folder, f"raftmlp-{name}"), f"raftmlp_{name}"
    library = ctypes.CDLL(base + ".so")
    create, run = library[prefix + "_create"], library[prefix + "_forward"]
    error = library[prefix + "_error"]
    error.restype = ctypes.c_char_p
    run.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
    error.argtypes = [ctypes.c_void_p]
    stream = torch.cuda.Stream()
    images = images_on_gpu(batch)
    logits = torch.empty(batch, 1000, device="cuda")
    weights = np.memmap(base + ".weights", np.uint8, "r")
    options = Options(ctypes.sizeof(Options), 0, torch.cuda.current_device(), stream.cuda_stream,
                      weights.ctypes.data, weights.size)
    model, message = ctypes.c_void_p(), ctypes.create_string_buffer(512)
    torch.cuda.synchronize()
    if create(ctypes.byref(options), ctypes.byref(model), message, ctypes.c_size_t(512)) != 0:
        raise RuntimeError(message.value.decode())

    def forward():
        if run(model, batch, images.data_ptr(), logits.data_ptr()) != 0:
            raise RuntimeError(error(model).decode())
    for _ in range(3):
        forward()
    return forward, logits, stream, (weights, images)


def measure(forward, stream, count):
    """Milliseconds of each of `count` forwards queued in a row."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record(stream)
    for _ in range(count):
        forward()
    stop.record(stream)
    stop.synchronize()
    return start.elapsed_time(stop) / count


def check(golden, logits, dtype):
    values = logits.float().cpu().numpy()[:len(golden)]
    if dtype == "f32":
        return raftmlp.share_of_tolerance(golden, values)
    return float(np.linalg.norm(values - golden[:len(values)]) / np.linalg.norm(golden[:len(values)]))


def contenders(folder, config, name, batch, dtype):
    yield "raftc", lambda: raftc_forward(folder, name, batch)
    for compiled in (False, True):
        peer = "torch.compile" if compiled else "PyTorch"
        yield peer, lambda c=compiled: torch_forward(config, batch, dtype, c)


def compare(folder, name, batch, peers_dtype, deadline):
    config, golden = read_model(name)
    ready, rows = [], []
    for peer, make in contenders(folder, config, name, batch, peers_dtype):
        dtype = "f32" if peer == "raftc" else peers_dtype
        row = {"model": name, "batch": batch, "peer": peer, "dtype": dtype}
        rows.append(row)
        if time.monotonic() > deadline:
            row["error"] = "no time was left"
            continue
        try:
            start = time.monotonic()
            forward, logits, stream, kept = make()
            count = max(1, min(2000, int(1e3 * ROUND_SECONDS / measure(forward, stream, 3))))
            row["error_share" if dtype == "f32" else "error_relative"] = check(golden, logits, dtype)
            row["setup_seconds"] = time.monotonic() - start
            ready.append((row, forward, stream, count, kept, []))
        except Exception as error:  # the others are timed all the same
            row["error"] = f"{type(error).__name__}: {error}"[:500]
    for _ in range(ROUNDS):
        for row, forward, stream, count, _, times in ready:
            try:
                times.append(measure(forward, stream, count))
            except Exception as error:
                row["error"] = f"{type(error).__name__}: {error}"[:500]
    for row, *_, times in ready:
        if times:
            row["min_ms"], row["median_ms"] = min(times), statistics.median(times)
            row["images_per_second"] = 1e3 * batch / row["median_ms"]
    return rows


def print_rows(rows):
    base = next((r.get("median_ms") for r in rows if r["peer"] == "raftc"), None)
    for row in rows:
        head = f"{row['model'].upper()} {row['batch']:4d} {row['peer']:14s} {row['dtype']:5s}"
        if "median_ms" not in row:
            print(f"{head} {row.get('error', 'not timed')}", flush=True)
            continue
        share = row.get("error_share", row.get("error_relative"))
        ratio = f"{row['median_ms'] / base:7.2f} x raftc" if base else ""
        print(f"{head} {row['min_ms']:9.3f} {row['median_ms']:9.3f} ms "
              f"{row['images_per_second']:10.1f} images/s {share:9.3g} off {ratio}", flush=True)


def main():
    warnings.filterwarnings("ignore")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("warm", "train", "time"))
    parser.add_argument("words", nargs="+")
    parser.add_argument("--models", default="s,m,l")
    parser.add_argument("--batch", default="1,256")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--seconds", type=float, default=150)
    options = parser.parse_args()
    if options.what == "warm":
        name, batch, dtype = options.words
        torch_forward(read_model(name)[0], int(batch), dtype, True)
        return
    if options.what == "train":
        time_training(options.words[0], int(options.words[1]))
        return
    folder, path = options.words
    deadline, rows = time.monotonic() + options.seconds, []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; min and median of a forward")
    cases = [(dtype, int(batch), name) for dtype in options.dtypes.split(",")
             for batch in options.batch.split(",") for name in options.models.split(",")]
    for dtype, batch, name in cases:
        found = compare(folder, name, batch, dtype, deadline)
        print_rows(found)
        rows += found
        torch.cuda.empty_cache()
        with open(path, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
