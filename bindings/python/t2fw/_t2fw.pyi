from typing import Optional, Sequence, Tuple

ALIGNMENT: int

class UnsupportedError(NotImplementedError): ...

def backends() -> str: ...
def version() -> int: ...

class Plan:
    def __init__(
        self,
        rule: int,
        data_dtype: int,
        gate_dtype: int,
        state_dtype: int,
        f: int,
        g: int,
        device: int,
        device_index: int,
        backend: Optional[str],
        flags: int,
        sizes: Tuple[int, int, int, int, int],
        sequences: int,
        strides: Sequence[Tuple[str, Tuple[int, int, int]]],
    ) -> None: ...
    @property
    def backend(self) -> str: ...
    @property
    def explain(self) -> str: ...
    @property
    def saved_size(self) -> int: ...
    def scratch_size(self, operation: int) -> int: ...
    # addresses: of the operands in the order of t2fw_*_args, but for slot_indices, which come seventh as cu_seqlens do
    def forward(self, addresses: Tuple[Optional[int], ...], saved_size: int, scratch_size: int, stream: int) -> None: ...
    def backward(self, addresses: Tuple[Optional[int], ...], saved_size: int, scratch_size: int, stream: int) -> None: ...
    def step(self, addresses: Tuple[Optional[int], ...], slots: int, scratch_size: int, stream: int) -> None: ...
