"""Builds the native CPU kernels where a GCC-like compiler is at hand; without one Braid computes through torch.

The library has no Python and no torch headers in it and is not linked against an OpenMP runtime: at run time it uses
the one that torch has loaded, so that both share one team of threads.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("braid/kernels/native")
X86 = platform.machine().lower() in ("x86_64", "amd64") and sys.platform == "linux"
COMMON = "-std=c++17 -O3 -fno-math-errno -ffp-contract=fast -fno-exceptions -fno-rtti -fvisibility=hidden -g0"
OPENMP = "-fopenmp" if sys.platform == "linux" else ""
VARIANTS = {
    "generic": "",
    "avx2": "-mavx2 -mfma",
    "avx512": "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512",
}


class BuildNative(build_ext):
    """Compiles each variant with its own instruction-set flags and links them into one plain shared library."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        variants = VARIANTS if X86 else {"generic": ""}
        flags = {f"variant_{isa}.cpp": f"{COMMON} {OPENMP} {extra}" for isa, extra in variants.items()}
        flags["team.cpp"] = COMMON
        flags["library.cpp"] = COMMON + (" -DBRAID_X86" if X86 else "")
        objects: list[str] = []
        for name, options in flags.items():
            objects += self.compiler.compile(
                [str(SOURCES / name)],
                output_dir=self.build_temp,
                extra_postargs=options.split(),
                depends=ext.depends,
            )
        path = self.get_ext_fullpath(ext.name)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, path, extra_postargs=["-pthread"])


setup(
    ext_modules=[
        Extension(
            "braid.kernels._native",
            sources=sorted(map(str, SOURCES.glob("*.cpp"))),
            depends=sorted(map(str, SOURCES.glob("*.h"))),
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
