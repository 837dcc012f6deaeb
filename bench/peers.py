"""Times raftc beside PyTorch, ONNX Runtime and OpenVINO: RaftMLP-S/M/L, f32, one table.

usage: VENV/bin/python bench/peers.py [--raftc PATH] [--models s,m,l] [--batch 1,8] [--threads N]
                                      [--rounds N] [--compile] [--json FILE]

The contenders take turns, round after round (A B C A B C ...), so that a machine that slows down
slows all of them. Each peer lives in its own process and is idle while another runs; raftc is
`raftc bench`. Before it is timed, a peer's logits must agree with the golden of the model. VENV
needs torch, numpy, pyyaml, onnx, onnxruntime and openvino; it belongs outside the repository.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PEERS = {"eager": "PyTorch", "compile": "torch.compile", "onnxruntime": "ONNX Runtime",
         "openvino": "OpenVINO"}
WARM_UP, LEAST_RUNS, LEAST_SECONDS = 3, 5, 0.5


def golden_path(model):
    return os.path.join(ROOT, "tests", "data", "goldens", f"forward-raftmlp-{model}.safetensors")


# ---- one peer in a process of its own ---------------------------------------------------------


def export(model, example):
    """The bytes of an ONNX file for the shape of `example`."""
    import torch
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        torch.onnx.export(model, (example,), path, opset_version=18, dynamo=False,
                          input_names=["input"], output_names=["logits"])
        with open(path, "rb") as file:
            return file.read()


def make_forward(peer, model, images, threads):
    """A function that computes the logits of `images` as an array."""
    import torch
    torch.set_num_threads(threads)
    if peer in ("eager", "compile"):
        module = torch.compile(model, mode="max-autotune") if peer == "compile" else model

        def forward():
            with torch.inference_mode():
                return module(images).numpy()
        return forward

    exported, images = export(model, images), images.numpy()
    if peer == "onnxruntime":
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(exported, options, ["CPUExecutionProvider"])
        return lambda: session.run(None, {"input": images})[0]

    import openvino
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": threads}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(exported, b""), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda: request.infer({"input": images})[0]


def work(peer, model_name, batch, threads):
    """Answers each line of stdin with a line of stdout: the milliseconds of some forwards."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the libraries print is not an answer
    warnings.filterwarnings("ignore")
    import yaml
    import raftmlp_torch as raftmlp
    metadata, tensors = raftmlp.read_golden(golden_path(model_name))
    model = raftmlp.RaftMLP(yaml.safe_load(metadata["config"])).eval()
    forward = make_forward(peer, model, raftmlp.filled_input(batch, 224, 224), threads)
    share = raftmlp.share_of_tolerance(tensors["224x224.logits"], forward())
    if not share <= 1:
        sys.exit(f"peers: {PEERS[peer]}: logits are {share:.3g} times the tolerance off")
    for _ in range(WARM_UP):
        forward()
    print(json.dumps(share), file=answers, flush=True)
    for _ in sys.stdin:
        times, start = [], time.perf_counter()
        while len(times) < LEAST_RUNS or time.perf_counter() - start < LEAST_SECONDS:
            before = time.perf_counter()
            forward()
            times.append(1e3 * (time.perf_counter() - before))
        print(json.dumps(times), file=answers, flush=True)


class Peer:
    def __init__(self, peer, model, batch, threads):
        self.name = PEERS[peer]
        command = [sys.executable, os.path.abspath(__file__), "--worker", peer, model, str(batch),
                   str(threads)]
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads))
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=environment)

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"peers: {self.name} gave up")
        return json.loads(line)

    def round(self):
        """(least, median) milliseconds."""
        print("go", file=self.process.stdin, flush=True)
        times = self.answer()
        return min(times), statistics.median(times)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Raftc:
    name = "raftc"

    def __init__(self, path, model, batch, threads):
        yaml = os.path.join(ROOT, "models", f"raftmlp-{model}.yaml")
        self.command = [path, "bench", yaml, "--weights", "@fill", "--batch", str(batch),
                        "--threads", str(threads), "--json"]
        self.shares = []  # of the peak of the machine

    def round(self):
        done = subprocess.run(self.command, stdout=subprocess.PIPE)
        if done.returncode != 0:
            sys.exit(f"peers: {' '.join(self.command)}: exit status {done.returncode}")
        report = json.loads(done.stdout)
        self.shares.append(report["gflops"] / report["peak_gflops"])
        return report["min_ms"], report["median_ms"]

    def close(self):
        pass


# ---- all of them ------------------------------------------------------------------------------


def measure(options, model, batch):
    """One row for each contender of one model and batch."""
    raftc = Raftc(options.raftc, model, batch, options.threads)
    peers = [peer for peer in PEERS if peer != "compile" or options.compile]
    contenders = [raftc]
    for peer in peers:
        contenders.append(Peer(peer, model, batch, options.threads))
        contenders[-1].answer()  # one after the other, so that none is slowed by another's start
    rounds = {contender: [] for contender in contenders}
    for _ in range(options.rounds):
        for contender in contenders:
            rounds[contender].append(contender.round())
    for contender in contenders:
        contender.close()

    summary = {c: (min(least for least, _ in r), statistics.median(m for _, m in r))
               for c, r in rounds.items()}
    raftc_median = summary[raftc][1]
    share = statistics.median(raftc.shares)
    return [{"model": f"raftmlp-{model}", "batch": batch, "contender": c.name, "min_ms": least,
             "median_ms": median, "images_per_second": 1e3 * batch / median,
             "of_peak": share * raftc_median / median, "over_raftc": median / raftc_median}
            for c, (least, median) in summary.items()]


def print_table(rows):
    print("| model | batch | contender | min ms | median ms | images/s | of peak | / raftc |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print("| {model} | {batch} | {contender} | {min_ms:.2f} | {median_ms:.2f}"
              " | {images_per_second:.1f} | {of_peak:.0%} | {over_raftc:.2f} |".format(**row))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--raftc", default=os.path.join(ROOT, "build", "raftc"))
    parser.add_argument("--models", default="s,m,l")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="torch.compile too (takes minutes)")
    parser.add_argument("--json", help="write the rows to this file, too")
    options = parser.parse_args()
    rows = []
    for model in options.models.split(","):
        for batch in options.batch.split(","):
            print(f"peers: raftmlp-{model}, batch {batch}", file=sys.stderr)
            rows += measure(options, model, int(batch))
    print(f"f32, 224x224, {options.threads} threads, {options.rounds} rounds\n")
    print_table(rows)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    sys.dont_write_bytecode = True
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
