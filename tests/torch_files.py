"""Weight files between raftc and PyTorch: what torch.save writes is read, what raftc writes loads.

usage: torch_files.py RAFTC         (exit status 77, and a line, where torch cannot be imported)
"""

import json
import pathlib
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parent / "data" / "weights"))
try:
    import torch
    import make_weights
except ImportError as problem:
    print(f"torch_files: skipped: {problem}")
    sys.exit(77)

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}


def read_safetensors(path):
    """As the format's page says, by hand."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + length]), {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = bytearray(data[8 + length + begin : 8 + length + end])
        dtype = DTYPES[entry["dtype"]]
        flat = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def differences(found, wanted):
    if found.keys() != wanted.keys():
        return f"names {sorted(found)}, not {sorted(wanted)}"
    for name, tensor in wanted.items():
        if found[name].dtype != tensor.dtype or found[name].shape != tensor.shape:
            return f"{name} is {found[name].dtype} {tuple(found[name].shape)}"
        if not torch.equal(found[name], tensor.detach()):
            return f"other values in {name}"
    return None


def check(raftc, folder, name, saved, options, wanted):
    """torch.save -> raftc -> .safetensors -> raftc -> .pt -> torch.load, the same tensors all along."""
    first, second, third = folder / name, folder / "there.safetensors", folder / "back.pt"
    torch.save(saved, first, **options)
    for source, target in ((first, second), (second, third)):
        ended = subprocess.run([raftc, "convert", source, target], capture_output=True, text=True)
        if ended.returncode:
            return ended.stderr
    for options in ({}, {"mmap": True}):
        fault = differences(torch.load(third, weights_only=True, **options), wanted)
        if fault:
            return f"written .pt: {fault}"
    return differences(read_safetensors(second), wanted)


def main(raftc):
    faults = 0
    cases = make_weights.cases()
    with tempfile.TemporaryDirectory() as folder:
        for name, (saved, options, wanted) in cases.items():
            fault = check(raftc, pathlib.Path(folder), name, saved, options, wanted)
            if fault:
                print(f"torch_files: {name}: {fault}")
                faults += 1
    print(f"torch_files: {len(cases)} files, {faults} faults, PyTorch {torch.__version__}")
    return faults > 0


sys.exit(main(sys.argv[1]))
