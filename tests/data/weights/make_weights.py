"""Checkpoints as training scripts save them, each of the same state: what raftc must read of them.

    python3 make_weights.py             writes those of FIXTURES here
    import make_weights                 tests/torch_files.py tries all of cases()
"""

import argparse
import collections
import datetime
import pathlib
import types

import numpy
import torch

FIXTURES = ["checkpoint.pt", "checkpoint_old.pt", "protocol4.pt", "protocol4_old.pt", "expanded.pt", "buffers.pt"]


def state():
    """Names and values that differ in every element."""
    values = torch.arange(24, dtype=torch.float32) / 8 - 1
    return collections.OrderedDict(
        [("fc.weight", values[:15].reshape(5, 3).clone()), ("fc.bias", values[15:20].clone())]
    )


def prefixed(tensors, prefix="module."):
    return collections.OrderedDict((prefix + name, value) for name, value in tensors.items())


def shared(tensors):
    """Views of one storage, one of them transposed, behind a part that is nobody's."""
    flat = torch.cat([torch.zeros(7)] + [t.flatten() for t in tensors.values()])
    views, offset = collections.OrderedDict(), 7
    for name, tensor in tensors.items():
        views[name] = flat[offset : offset + tensor.numel()].view(tensor.shape)
        offset += tensor.numel()
    views["fc.weight"] = views["fc.weight"].t().contiguous().t()
    return views


def beside():
    """What training scripts keep beside the weights."""
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 10)
    itself, itself_of_four = ([],), ([], 1, 2, 3)
    itself[0].append(itself)
    itself_of_four[0].append(itself_of_four)
    return {
        "epoch": 299,
        "iterations": 2**40,
        "seed": 2**80,
        "offset": -5,
        "best": None,
        "finished": True,
        "accuracy": numpy.float64(0.825),
        "history": numpy.arange(3.0),
        "optimizer": optimiser.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "args": argparse.Namespace(lr=1e-3, output=pathlib.PosixPath("runs"), sizes=[1, (2, 3)]),
        "counts": collections.Counter("aab"),
        "groups": collections.defaultdict(list, {"a": [1]}),
        "skipped": {"a", "b"},
        "raw": b"\0\1\xff",
        "device": torch.device("cpu"),
        "dtype": torch.float32,
        "shape": torch.Size([1, 2]),
        "wave": 1 + 2j,
        "frozen": frozenset([1, 2]),
        "when": [datetime.datetime(2021, 8, 10), datetime.date(2021, 8, 10), datetime.timedelta(1)],
        "last": collections.deque([1, 2], maxlen=3),
        "counters": collections.defaultdict(int, {"a": 1}),
        "names": types.SimpleNamespace(a=1),
        "version": torch.__version__,
        "changed": bytearray(b"ab"),
        "types": [torch.int64, torch.int32, torch.uint8, torch.bool],
        "circles": [itself, itself_of_four],
        "rng": torch.get_rng_state()[:16].clone(),
    }


def buffers():
    """As they are in a module: a parameter and a buffer with attributes, and of other types."""
    module = torch.nn.Module()
    module.tagged = torch.nn.Parameter(torch.tensor([0.5]))
    module.tagged.tag = "decayed"
    module.buffer = torch.nn.Buffer(torch.tensor([2.5]))
    module.mask = torch.nn.Buffer(torch.tensor([True, False, True]))
    module.small = torch.nn.Buffer(torch.tensor([-1, 127], dtype=torch.int8))
    module.short = torch.nn.Buffer(torch.tensor([256, -1], dtype=torch.int16))
    return module.state_dict(keep_vars=True)


def cases():
    """NAME: (what is saved, options of torch.save, the tensors that raftc must find)."""
    tensors = state()
    double = collections.OrderedDict((n, t.double()) for n, t in tensors.items())
    half = collections.OrderedDict((n, t.half()) for n, t in tensors.items())
    bfloat = collections.OrderedDict((n, t.bfloat16()) for n, t in tensors.items())
    counted = collections.OrderedDict(tensors, batches=torch.tensor(5))
    parameters = collections.OrderedDict((n, torch.nn.Parameter(t)) for n, t in tensors.items())
    expanded = {"a": torch.ones(1).expand(3, 2), "b": torch.zeros(0, 3), "c": torch.tensor(2.5)}
    objects = {
        "bare": (tensors, tensors),
        "dict": (dict(tensors), tensors),
        "model": ({"model": tensors}, tensors),
        "state_dict": ({"epoch": 1, "state_dict": tensors}, tensors),
        "nested": ({"model": {"state_dict": tensors, "epoch": 1}}, tensors),
        "checkpoint": ({"model": prefixed(tensors), **beside()}, tensors),
        "module": (prefixed(tensors), tensors),
        "compiled": (prefixed(tensors, "_orig_mod."), tensors),
        "compiled_module": ({"model": prefixed(tensors, "module._orig_mod.")}, tensors),
        "module_compiled": (prefixed(tensors, "_orig_mod.module."), tensors),
        "lightning": ({"state_dict": prefixed(tensors, "model.")}, tensors),
        "averaged": ({**prefixed(tensors), "n_averaged": torch.tensor(5)}, tensors),
        "model_state_dict": ({"model_state_dict": tensors, "loss": 0.5}, tensors),
        "shared": (shared(tensors), tensors),
        "parameters": (parameters, tensors),
        "double": (double, double),
        "half": (half, half),
        "bfloat": (bfloat, bfloat),
        "counted": (counted, counted),
        "expanded": (expanded, {name: t.contiguous() for name, t in expanded.items()}),
        "buffers": (buffers(), None),
        "linear": (torch.nn.Linear(3, 2).state_dict(keep_vars=True), None),
    }
    made = {}
    for name, (saved, wanted) in objects.items():
        wanted = saved if wanted is None else wanted
        made[f"{name}.pt"] = (saved, {}, wanted)
        made[f"{name}_old.pt"] = (saved, {"_use_new_zipfile_serialization": False}, wanted)
    for protocol in (3, 4, 5):
        for old in (False, True):
            name = f"protocol{protocol}{'_old' if old else ''}.pt"
            options = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": not old}
            made[name] = ({"model": tensors, **beside()}, options, tensors)
    return made


if __name__ == "__main__":
    folder = pathlib.Path(__file__).parent
    torch.manual_seed(1)
    made = cases()
    for name in FIXTURES:
        saved, options, _ = made[name]
        torch.save(saved, folder / name, **options)
