"""Writes the tensors of a model.safetensors as PyTorch's torch.save would, without PyTorch, for tests of the reader.

    python tests/write_pickle.py FROM.safetensors TO.bin zip|legacy|code

`code` writes a pickle that would run a command when Python loads it.
"""

import collections
import os
import pickle
import struct
import sys
import types
import zipfile
from io import BytesIO

from safetensors.numpy import load_file

# PyTorch's names, as far as its pickles mention them.
torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")


class FloatStorage:
    __module__, __qualname__ = "torch", "FloatStorage"


def _rebuild_tensor_v2(*arguments):
    return arguments


_rebuild_tensor_v2.__module__ = "torch._utils"
torch.FloatStorage, torch._utils, utils._rebuild_tensor_v2 = FloatStorage, utils, _rebuild_tensor_v2
sys.modules |= {"torch": torch, "torch._utils": utils}


class Storage:
    def __init__(self, key, count):
        self.key, self.count = key, count


class Tensor:
    def __init__(self, storage, array):
        self.storage, self.array = storage, array

    def __reduce__(self):
        strides = tuple(s // self.array.itemsize for s in self.array.strides)
        return _rebuild_tensor_v2, (self.storage, 0, self.array.shape, strides, False, collections.OrderedDict())


class Command:
    def __reduce__(self):
        return os.system, ("touch executed",)


class Pickler(pickle.Pickler):
    """Storages stand outside of the pickle. The old container gives them one field more."""

    def __init__(self, file, legacy):
        super().__init__(file, protocol=2)
        self.legacy = legacy

    def persistent_id(self, value):
        if isinstance(value, Storage):
            reference = ("storage", FloatStorage, value.key, "cpu", value.count)
            return reference + (None,) if self.legacy else reference
        return None


def dump(value, legacy):
    file = BytesIO()
    Pickler(file, legacy).dump(value)
    return file.getvalue()


def main():
    source, target, kind = sys.argv[1:]
    arrays = load_file(source)
    state = collections.OrderedDict()
    for i, (name, array) in enumerate(arrays.items()):
        # Every other matrix lies transposed, as some of PyTorch's do.
        stored = array.T.copy() if array.ndim == 2 and i % 2 else array
        seen = stored.T if stored is not array else array
        state[name] = Tensor(Storage(str(i), array.size), seen)
        arrays[name] = stored
    raw = [array.astype("<f4").tobytes() for array in arrays.values()]
    if kind == "code":
        state["x"] = Command()
    if kind == "legacy":
        with open(target, "wb") as file:
            machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
            for value in (0x1950A86A20F9469CFC6C, 1001, machine, state, [str(i) for i in range(len(raw))]):
                file.write(dump(value, True))
            for data in raw:
                file.write(struct.pack("<q", len(data) // 4) + data)
        return
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("model/data.pkl", dump(state, False))
        archive.writestr("model/byteorder", "little")
        for i, data in enumerate(raw):
            archive.writestr(f"model/data/{i}", data)


main()
