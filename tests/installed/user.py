"""A Python program with a compiled model.
usage: user.py LIBRARY WEIGHTS_BLOB WEIGHTS GOLDEN [--train]"""

import json
import sys
import tracemalloc

import numpy
import raft
from refused import refused


def load(path: str) -> dict[str, numpy.ndarray]:
    """The tensors of a safetensors file, all of them F32."""
    with open(path, "rb") as file:
        data = file.read()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, tensor in header.items():
        begin, end = (start + offset for offset in tensor["data_offsets"])
        tensors[name] = numpy.frombuffer(data[begin:end], "<f4").reshape(tensor["shape"])
    return tensors


def check_no_copies(model: raft.Model, images: numpy.ndarray) -> None:
    """Fails if a call allocates more than its results: arrays are not even copied for a moment."""
    for call in (model.forward, model.features):
        tracemalloc.start()
        results = call(images)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        arrays = results if isinstance(results, list) else [results]
        spare = peak - sum(array.nbytes for array in arrays)
        assert 0 <= spare < images.nbytes / 10, (call, spare, images.nbytes)


def check_training(model: raft.Model, images: numpy.ndarray) -> None:
    """The loss changes as its gradients say, along a drawn direction of all parameters."""
    refused(raft.RaftError, "forward_keep comes before", model.backward_from)
    draw = numpy.random.default_rng(1).standard_normal
    given = [draw((len(images), *shape), numpy.float32) for shape in model.map_shapes]
    _, maps = model.forward_keep(images, logits=False, features=True)
    refused(ValueError, "1 gradients of", lambda: model.backward_from(maps=given[1:]))
    refused(ValueError, "the shape", lambda: model.backward_from(maps=given[::-1]))
    gradients = model.backward_from(maps=given)
    assert not gradients["classifier.weight"].any()
    steps = {name: draw(shape) for name, shape in model.parameters.items()}
    expected = sum((gradients[name] * steps[name]).sum(dtype=float) for name in steps)
    losses = []
    for width in (-1e-3, 1e-3):
        before = {name: model.parameter(name).copy() for name in steps}
        for name, step in steps.items():
            model.parameter(name)[...] += width * step
        maps = model.features(images)
        losses.append(sum((m * g).sum(dtype=float) for m, g in zip(maps, given)))
        for name, array in before.items():
            model.parameter(name)[...] = array
    difference = (losses[1] - losses[0]) / 2e-3
    assert abs(difference - expected) <= 1e-2 * abs(expected), (difference, expected)


library, blob, weights_path, golden_path = sys.argv[1:5]
weights, golden = load(weights_path), load(golden_path)
images, wanted = golden["dark.input"], golden["dark.logits"]

with raft.Model(library, weights) as model:
    assert model.image_shape == (3, 32, 32)
    assert model.parameters == {name: weights[name].shape for name in model.parameters}
    assert set(model.parameters) == set(weights)
    logits = model.forward(images)
    assert logits.dtype == numpy.float32 and logits.shape == wanted.shape
    assert abs(logits - wanted).max() <= 2e-5 * max(1, abs(wanted).max())
    assert (model.forward(images[1:]) == logits[1:]).all()
    maps = model.features(images)
    assert [m.shape for m in maps] == [(2, 16, 8, 8), (2, 32, 4, 4)]
    assert all(numpy.isfinite(m).all() and m.any() for m in maps)

    check_no_copies(model, numpy.tile(images, (32, 1, 1, 1)))

    refused(TypeError, "list", lambda: model.forward([1.0]))
    refused(TypeError, "float64", lambda: model.forward(images.astype(float)))
    refused(TypeError, ">f4", lambda: model.forward(images.astype(">f4")))
    refused(ValueError, "contiguous", lambda: model.forward(images[..., ::-1]))
    refused(ValueError, "(b, 3, 32, 32)", lambda: model.forward(images[0]))
    refused(raft.RaftError, "batch is 0", lambda: model.forward(images[:0]))
    bias = weights["classifier.bias"]
    misspelt = {"classifier.bia": bias}
    refused(raft.RaftError, "'classifier.bias'", lambda: model.set_parameters(misspelt))
    refused(raft.RaftError, "shape", lambda: model.set_parameters({"classifier.bias": bias[:9]}))
    model.set_parameters({"classifier.bias": bias + numpy.float32(1)})
    assert abs(model.forward(images) - wanted - 1).max() <= 1e-4
refused(ValueError, "closed", lambda: model.forward(images))
model.close()

with raft.Model(library, blob, threads=1, prefix="tiny") as mapped:
    made_up = mapped.forward(images)
with raft.Model(library, blob, threads=4) as mapped:
    assert (mapped.forward(images) == made_up).all()
with raft.Model(library) as empty:
    refused(raft.RaftError, "not set", lambda: empty.forward(images))
with raft.Model(library, blob) as mapped:
    if "--train" in sys.argv:
        check_training(mapped, images)
    else:
        refused(raft.RaftError, "does not train", lambda: mapped.parameter("classifier.bias"))
        refused(raft.RaftError, "does not train", lambda: mapped.forward_keep(images))
        refused(raft.RaftError, "does not train", mapped.backward_from)
refused(raft.RaftError, "weights", lambda: raft.Model(library, weights_path))
refused(raft.RaftError, "threads", lambda: raft.Model(library, threads=-1))
other = numpy.linalg._umath_linalg.__file__
refused(raft.RaftError, "not a library", lambda: raft.Model(other))
print("user.py: the logits are PyTorch's")
