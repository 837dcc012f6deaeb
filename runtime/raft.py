"""Runs the libraries that raftc makes, by ctypes and NumPy alone.

    with raft.Model("raftmlp-s.so", weights="raftmlp-s.weights") as model:
        logits = model.forward(images)  # float32 [b, c, h, w] -> float32 [b, classes]

Arrays are handed over by pointer, never copied or converted: one that is not float32, or whose
elements do not lie in a row, is refused.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy
from numpy.typing import NDArray


class RaftError(Exception):
    """What a library says of a call that failed."""


class _Options(ctypes.Structure):
    """NAME_Options of the header of a library."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("threads", ctypes.c_int),
        ("device", ctypes.c_int),
        ("stream", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("weights_size", ctypes.c_size_t),
    ]


class _Parameter(ctypes.Structure):
    """NAME_Parameter of the header of a library."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("rank", ctypes.c_int),
        ("shape", ctypes.c_int64 * 4),
        ("elements", ctypes.c_int64),
    ]


class Model:
    """One instance of a compiled model. Threads may share it: their calls wait for each other."""

    parameters: dict[str, tuple[int, ...]]
    """Name and shape of every parameter, in the order of the library."""

    image_shape: tuple[int, ...]
    """Channels, height and width of an image."""

    map_shapes: list[tuple[int, ...]]
    """Those of each feature map."""

    def __init__(
        self,
        library_path: str | os.PathLike[str],
        weights: str | os.PathLike[str] | Mapping[str, NDArray[numpy.float32]] | None = None,
        threads: int | None = None,
        prefix: str | None = None,
    ) -> None:
        """Loads a library (.so).

        weights: the file that `raftc --weights` wrote beside the library, which is mapped, or
        arrays by name. Without them, and unless the library holds its own (raftc --embed),
        set_parameters must come before the first run.
        threads: how many a call may use; by default, as many as there are processors.
        prefix: of the library's functions, where a file holds several models.
        """
        path = os.path.abspath(library_path)
        self._library = ctypes.CDLL(path)
        self._prefix = prefix or _find_prefix(self._library, path)
        self._lock = threading.Lock()
        self._blob = None
        options = _Options(size=ctypes.sizeof(_Options), threads=threads or 0)
        if weights is not None and not isinstance(weights, Mapping):
            self._blob = numpy.memmap(weights, numpy.uint8, "r")
            options.weights = self._blob.ctypes.data
            options.weights_size = self._blob.size
        self._kept: NDArray[numpy.float32] | None = None
        self._model = ctypes.c_void_p()
        message = ctypes.create_string_buffer(512)
        status = self._function("create")(
            ctypes.byref(options), ctypes.byref(self._model), message, ctypes.c_size_t(512)
        )
        if status != 0:
            raise RaftError(message.value.decode(errors="replace"))
        self._destroy = weakref.finalize(self, self._function("destroy"), self._model)
        self.parameters = dict(self._list("parameters"))
        ((_, self.image_shape),) = self._list("inputs")
        outputs = [shape for _, shape in self._list("outputs")]
        (self._logits,) = (shape for shape in outputs if len(shape) == 1)
        self.map_shapes = [shape for shape in outputs if len(shape) == 3]
        if isinstance(weights, Mapping):
            self.set_parameters(weights)

    def set_parameters(self, parameters: Mapping[str, NDArray[numpy.float32]]) -> None:
        """Copies parameters into the instance, by name; those not given stay as they are."""
        for name, array in parameters.items():
            _check_array(array, f"parameter '{name}'")
            shape = (ctypes.c_int64 * max(array.ndim, 1))(*array.shape)
            rank = ctypes.c_int(array.ndim)
            self._call("set_parameter", name.encode(), shape, rank, _pointer(array))

    def forward(self, images: NDArray[numpy.float32]) -> NDArray[numpy.float32]:
        """The logits, float32 [b, classes], of images, float32 [b, c, h, w]."""
        batch = self._check_images(images)
        logits = numpy.empty((batch, *self._logits), numpy.float32)
        self._run("forward", images, _pointer(logits))
        return logits

    def features(self, images: NDArray[numpy.float32]) -> list[NDArray[numpy.float32]]:
        """The feature maps, each float32 [b, c, h, w], of images, float32 [b, c, h, w]."""
        if not self.map_shapes:
            raise RaftError("the model has no feature maps")
        batch = self._check_images(images)
        maps = [numpy.empty((batch, *shape), numpy.float32) for shape in self.map_shapes]
        self._run("features", images, _pointers(maps))
        return maps

    def parameter(self, name: str) -> NDArray[numpy.float32]:
        """A parameter in the memory of the instance, to be read and changed between calls, until
        close. This and what follows are for libraries that train (raftc --train)."""
        self._check_trains()
        function = self._function("parameter")
        function.restype = ctypes.c_void_p
        address = function(self._model, name.encode()) if self._destroy.alive else None
        if not address:
            raise RaftError(f"the model has no parameter '{name}'")
        shape = self.parameters[name]
        floats = (ctypes.c_float * int(numpy.prod(shape))).from_address(address)
        setattr(floats, "model", self)  # which must live as long
        return numpy.ctypeslib.as_array(floats).reshape(shape)

    def forward_keep(
        self, images: NDArray[numpy.float32], logits: bool = True, features: bool = False
    ) -> tuple[NDArray[numpy.float32] | None, list[NDArray[numpy.float32]]]:
        """Logits and feature maps of images, if they are wanted. What backward_from needs is kept,
        until the next run; so long, images and parameters must stay as they are."""
        self._check_trains()
        batch = self._check_images(images)
        array = numpy.empty((batch, *self._logits), numpy.float32) if logits else None
        maps = [numpy.empty((batch, *m), numpy.float32) for m in self.map_shapes if features]
        self._run("forward_keep", images, _pointer(array), _pointers(maps) if maps else None)
        self._kept = images
        return array, maps

    def backward_from(
        self,
        logits: NDArray[numpy.float32] | None = None,
        maps: Sequence[NDArray[numpy.float32] | None] | None = None,
    ) -> dict[str, NDArray[numpy.float32]]:
        """The gradients of a loss with respect to the parameters, by name, of those with respect to
        the logits and the feature maps that forward_keep gave; None: 0."""
        self._check_trains()
        wanted = [self._logits, *self.map_shapes]
        given = [logits, *(maps or [None] * len(self.map_shapes))]
        if len(given) != len(wanted):
            raise ValueError(f"{len(given) - 1} gradients of feature maps, not {len(self.map_shapes)}")
        for array, shape in zip(given, wanted):
            if array is None:
                continue
            _check_array(array, "a gradient")
            if self._kept is not None and array.shape != (len(self._kept), *shape):
                raise ValueError(f"a gradient has the shape {array.shape}, not that of its value")
        results = {
            name: numpy.empty(shape, numpy.float32) for name, shape in self.parameters.items()
        }
        maps_given = _pointers(given[1:]) if maps else None
        self._call("backward_from", _pointer(logits), maps_given, _pointers(results.values()))
        self._kept = None
        return results

    def close(self) -> None:
        """Releases the instance; it may be called again."""
        with self._lock:
            self._destroy()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"{self._prefix}_{name}")

    def _list(self, function: str) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of one of the library's tables."""
        count = ctypes.c_int()
        table = self._function(function)
        table.restype = ctypes.POINTER(_Parameter)
        tensors = table(self._model, ctypes.byref(count))
        return [(t.name.decode(), tuple(t.shape[: t.rank])) for t in tensors[: count.value]]

    def _check_trains(self) -> None:
        if not hasattr(self._library, f"{self._prefix}_backward_from"):
            raise RaftError("the library does not train: raftc --train makes one that does")

    def _check_images(self, images: NDArray[numpy.float32]) -> int:
        _check_array(images, "images")
        if images.ndim != 4 or images.shape[1:] != self.image_shape:
            wanted = ", ".join(map(str, ("b", *self.image_shape)))
            raise ValueError(f"images have the shape {images.shape}, not ({wanted})")
        return int(images.shape[0])

    def _run(self, function: str, images: NDArray[numpy.float32], *outputs: object) -> None:
        self._call(function, ctypes.c_int64(images.shape[0]), _pointer(images), *outputs)

    def _call(self, function: str, *arguments: object) -> None:
        with self._lock:
            if not self._destroy.alive:
                raise ValueError("the model is closed")
            if self._function(function)(self._model, *arguments) != 0:
                error = self._function("error")
                error.restype = ctypes.c_char_p
                raise RaftError(error(self._model).decode(errors="replace"))


def _pointer(array: NDArray[numpy.float32] | None) -> ctypes.c_void_p | None:
    return None if array is None else ctypes.c_void_p(array.ctypes.data)


def _pointers(arrays: Collection[NDArray[numpy.float32] | None]) -> object:
    return (ctypes.c_void_p * len(arrays))(*map(_pointer, arrays))


def _check_array(array: object, what: str) -> None:
    if not isinstance(array, numpy.ndarray):
        raise TypeError(f"{what}: a {type(array).__name__}, not a numpy.ndarray")
    if array.dtype != numpy.float32:
        raise TypeError(f"{what}: of {array.dtype}, not float32; see numpy.ndarray.astype")
    if not array.flags.c_contiguous:
        raise ValueError(f"{what}: not contiguous; see numpy.ascontiguousarray")


def _find_prefix(library: ctypes.CDLL, path: str) -> str:
    """The prefix of the functions that a file exports, from the names that stand in it."""
    with open(path, "rb") as file:
        names = re.findall(rb"\0([A-Za-z_][A-Za-z0-9_]*)_set_parameter(?=\0)", file.read())
    prefixes: set[str] = {name.decode() for name in names}
    found = sorted(prefix for prefix in prefixes if hasattr(library, prefix + "_outputs"))
    if not found:
        raise RaftError(f"{path}: not a library of raftc")
    if len(found) > 1:
        raise RaftError(f"{path}: several models, of which prefix must name one: {', '.join(found)}")
    return found[0]
