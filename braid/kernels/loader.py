"""Finds the compiled kernels, picks the variant for this processor, and ties them to torch's OpenMP runtime."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from braid.core.env import forced_cpu_isa
from braid.core.errors import InvalidParameterError

PATH = Path(__file__).with_name("_native.so")
ABI_VERSION = 3
"""Must equal what ``library.cpp`` says: both sides then agree on the argument blocks."""
SCRATCH_KERNELS = frozenset(("linear", "paged_attention", "moe_ffn", "expert_pairs"))
"""Kernels whose argument blocks begin with the address and size of scratch memory."""
KERNELS = (*sorted(SCRATCH_KERNELS), "rms_norm", "rope", "gate_mul", "scatter", "argmax", "combine_pairs")

Function = Callable[[bytes], int]


class LibraryUnavailableError(Exception):
    """The native library cannot be used here; the text says why."""


class Scratch(threading.local):
    """Memory that kernels called from this thread work in; grows to the largest need, never shrinks."""

    def __init__(self) -> None:
        self.buffer = torch.empty(0, dtype=torch.uint8)
        self.address, self.size = 0, 0

    def grow(self, size: int) -> None:
        self.buffer = torch.empty(size + size // 4 + 64, dtype=torch.uint8)
        self.address = -(-self.buffer.data_ptr() // 64) * 64
        self.size = size + size // 4


class Call(NamedTuple):
    """One kernel call as it was made: the C function's address and its packed arguments."""

    address: int
    arguments: bytes
    takes_scratch: bool


class Recorder(threading.local):
    """Where this thread's kernel calls are written down, while somebody records them."""

    calls: list[Call] | None = None


class Kernel:
    """A C function that takes a packed argument block and returns a status."""

    __slots__ = ("_address", "_function", "_recorder", "_takes_scratch")

    def __init__(self, function: Any, recorder: Recorder, *, takes_scratch: bool) -> None:
        self._function, self._recorder, self._takes_scratch = function, recorder, takes_scratch
        self._address = ctypes.cast(function, ctypes.c_void_p).value or 0

    def __call__(self, arguments: bytes) -> int:
        calls = self._recorder.calls
        if calls is not None:
            calls.append(Call(self._address, arguments, self._takes_scratch))
        status: int = self._function(arguments)
        return status


class Library:
    """The functions of one variant.

    Args:
        isa: "generic", "avx2" or "avx512".
        functions: kernel name -> C function that takes a packed argument block and returns a status.
        replay: C function that makes a row of recorded calls (``library.cpp``).
    """

    def __init__(
        self, isa: str, functions: dict[str, Function], recorder: Recorder, replay: Function
    ) -> None:
        self.isa, self.functions, self.scratch = isa, functions, Scratch()
        self.recorder, self.replay = recorder, replay


def _openmp_runtimes() -> list[str]:
    """OpenMP runtimes mapped into this process, torch's own first."""
    paths = {line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    home = str(Path(torch.__file__).parent.parent)
    found = [p for p in paths if Path(p).name.startswith(("libgomp", "libiomp5", "libomp"))]
    return sorted(found, key=lambda p: not p.startswith(home))


def _open(path: Path) -> ctypes.CDLL:
    if not path.exists():
        raise LibraryUnavailableError("native library not built")
    try:
        if sys.platform == "linux":
            for runtime in _openmp_runtimes()[
                :1
            ]:  # our undefined GOMP_* and omp_* symbols resolve to this one
                ctypes.CDLL(runtime, mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryUnavailableError(f"native library does not load: {error}") from error
    if library.braid_abi_version() != ABI_VERSION:
        raise LibraryUnavailableError("native library was built from other sources; build it again")
    return library


def supported_isas(path: Path = PATH) -> tuple[str, ...]:
    """Variants in the library that run on this processor, best first; empty without a usable library."""
    try:
        return _supported(_open(path))
    except LibraryUnavailableError:
        return ()


def _supported(library: ctypes.CDLL) -> tuple[str, ...]:
    library.braid_supported_isas.restype = ctypes.c_char_p
    return tuple(library.braid_supported_isas().decode().split())


def _bind(library: ctypes.CDLL, isa: str) -> Library:
    functions: dict[str, Function] = {}
    recorder = Recorder()
    for kernel in KERNELS:
        function = _function(library, f"braid_{isa}_{kernel}")
        functions[kernel] = Kernel(function, recorder, takes_scratch=kernel in SCRATCH_KERNELS)
    return Library(isa, functions, recorder, _function(library, "braid_replay"))


def _function(library: ctypes.CDLL, name: str) -> Any:
    function = getattr(library, name)
    function.argtypes, function.restype = [ctypes.c_char_p], ctypes.c_ssize_t
    return function


def open_library(isa: str | None = None, path: Path = PATH) -> Library:
    """The library's variant ``isa``, else the one ``BRAID_CPU_ISA`` names, else the best that runs here.

    Raises:
        LibraryUnavailableError: there is no usable library (or ``BRAID_CPU_ISA=torch`` asks for none).
        InvalidParameterError: the named variant is unknown, or cannot run here.
    """
    wanted = isa or forced_cpu_isa()
    if wanted == "torch":
        raise LibraryUnavailableError("BRAID_CPU_ISA=torch")
    try:
        library = _open(path)
        supported = _supported(library)
    except LibraryUnavailableError as error:
        if wanted is None:
            raise
        raise InvalidParameterError(f"BRAID_CPU_ISA={wanted}: {error}", param="BRAID_CPU_ISA") from error
    if wanted is not None and wanted not in supported:
        choices = ", ".join((*supported, "torch"))
        raise InvalidParameterError(
            f"BRAID_CPU_ISA={wanted}: this machine runs {choices}", param="BRAID_CPU_ISA"
        )
    return _bind(library, wanted or supported[0])
