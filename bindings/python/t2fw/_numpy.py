"""The array library of `_core` for NumPy."""
import contextlib
from typing import Any, Iterator, Tuple

import numpy as np

from . import _t2fw


class Numpy:
    @staticmethod
    def shape(a: Any) -> Tuple[int, ...]:
        return a.shape

    @staticmethod
    def dtype(a: Any) -> str:
        return a.dtype.name

    @staticmethod
    def strides(a: Any) -> Tuple[int, ...]:
        return tuple(s // a.itemsize for s in a.strides)

    @staticmethod
    def device(a: Any) -> Tuple[int, int]:
        return 1, 0

    @staticmethod
    def address(a: Any) -> int:
        return a.ctypes.data

    @staticmethod
    @contextlib.contextmanager
    def stream(a: Any) -> Iterator[int]:
        yield 0

    @staticmethod
    def rows(a: Any) -> Any:
        """`a`, or a copy where its memory is not what the C library takes."""
        good = a.flags.aligned and a.dtype.isnative and all(s % a.itemsize == 0 for s in a.strides)
        if good and (a.shape[-1] == 1 or a.size == 0 or a.strides[-1] == a.itemsize):
            return a
        return np.array(a, dtype=a.dtype.newbyteorder("="), order="C")

    contiguous = staticmethod(np.ascontiguousarray)

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


def array(name: str, a: Any) -> Any:
    """A NumPy array over the memory of `a`."""
    if a is None or isinstance(a, np.ndarray):
        return a
    if hasattr(a, "__dlpack__"):
        return np.from_dlpack(a)
    raise TypeError(f"{name} is a {type(a).__name__}; expected a NumPy array, a torch tensor or an object with __dlpack__")
