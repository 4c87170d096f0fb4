"""Prints what h5py finds in HDF5 files, as JSON: datasets with type and shape, their values, and attributes."""

import json
import sys

import h5py


def plain(value):
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, bytes):
        return value.decode()
    return [plain(v) for v in value] if isinstance(value, list) else value


def describe(path):
    with h5py.File(path, "r") as file:
        return {
            "datasets": {
                name: {
                    "dtype": str(d.dtype),
                    "shape": list(d.shape),
                    "checksummed": bool(d.fletcher32),
                    "values": plain(d[...]),
                }
                for name, d in file.items()
            },
            "attributes": {name: plain(value) for name, value in file.attrs.items()},
        }


print(json.dumps({path: describe(path) for path in sys.argv[1:]}))
