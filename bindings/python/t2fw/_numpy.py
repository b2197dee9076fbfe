"""The array library of `_core` for NumPy."""
from typing import Any, List, Sequence, Tuple

import numpy as np

from . import _t2fw
from ._core import Layout


class Numpy:
    @staticmethod
    def keys(arrays: Sequence[Any]) -> List[Any]:
        """Of each array what `layout` takes, quickly; hashable. Of None it is None."""
        return [None if a is None else (a.shape, a.strides, a.dtype, a.flags.aligned) for a in arrays]

    @staticmethod
    def layout(key: Any) -> Layout:
        shape, strides, dtype, aligned = key
        size = dtype.itemsize or 1
        rows = aligned and dtype.isnative and all(s % size == 0 for s in strides)
        rows = rows and (0 in shape or shape[-1:] in ((), (1,)) or strides[-1] == size)
        return Layout(shape, tuple(s // size for s in strides), dtype.name, (1, 0), rows)

    @staticmethod
    def run(method: Any, arrays: Sequence[Any], *numbers: int) -> None:
        """method(addresses of the arrays, *numbers, stream) on the first array's device."""
        method(tuple([None if a is None else a.ctypes.data for a in arrays]), *numbers, 0)

    @staticmethod
    def copy(a: Any) -> Any:
        """Contiguous, in memory as the C library takes it."""
        return np.array(a, dtype=a.dtype.newbyteorder("="), order="C")

    @staticmethod
    def indices(a: Any) -> Any:
        return np.ascontiguousarray(a, dtype=np.int64)

    @staticmethod
    def bytes(size: int, like: Any) -> Any:
        buffer = np.empty(size + _t2fw.ALIGNMENT, np.uint8)
        start = -buffer.ctypes.data % _t2fw.ALIGNMENT
        return buffer[start : start + size]

    @staticmethod
    def empty(shape: Tuple[int, ...], dtype: str, like: Any) -> Any:
        if dtype == "bfloat16":
            import ml_dtypes

            return np.empty(shape, ml_dtypes.bfloat16)
        return np.empty(shape, dtype)

    @staticmethod
    def like(a: Any) -> Any:
        """An empty contiguous array of the shape and dtype of `a`."""
        return np.empty(a.shape, a.dtype.newbyteorder("="))


def array(name: str, a: Any) -> Any:
    """A NumPy array over the memory of `a`."""
    if a is None or isinstance(a, np.ndarray):
        return a
    if hasattr(a, "__dlpack__"):
        return np.from_dlpack(a)
    raise TypeError(f"{name} is a {type(a).__name__}; expected a NumPy array, a torch tensor or an object with __dlpack__")
