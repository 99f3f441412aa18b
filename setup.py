"""Drives CMake, which is the one description of the build (see CMakeLists.txt).

Environment:
  SIGEO_BUILD=0             no compiled code: every op runs its pure-PyTorch reference
  SIGEO_CUDA=ON             compile the CUDA kernels as well; needs nvcc, needs no GPU
  TORCH_CUDA_ARCH_LIST      their architectures, as torch spells them ("8.0;9.0a"), default all
  SIGEO_CMAKE_ARGS          further arguments for CMake, separated by spaces
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def torch_dir() -> Path:
    """The installed torch package, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(
            "sigeo-ext: building needs an installed torch >= 2.10 "
            "(pip install torch, then pip install --no-build-isolation .), found none"
        )
    return Path(spec.origin).parent


def tool(name: str) -> str:
    """The path of `name`, beside this Python or on the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        sys.exit(f"sigeo-ext: building needs {name} (pip install {name}), found none")
    return found


def cuda_architectures() -> list[str]:
    """TORCH_CUDA_ARCH_LIST in CMake's spelling: "9.0a+PTX" becomes 90a-real and 90a-virtual."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";")
    architectures = []
    for entry in filter(None, listed.split(";")):
        number = entry.removesuffix("+PTX").replace(".", "")
        architectures.append(f"{number}-real")
        if entry.endswith("+PTX"):
            architectures.append(f"{number}-virtual")
    return architectures


class CMakeBuild(build_ext):
    """Configures and builds once into a folder that stays, then installs where setuptools looks."""

    def run(self) -> None:
        """Build `_C` and `_host`."""
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        command = [
            tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            "-U", "SIGEO_*",  # the folder stays, what an earlier build was asked for does not
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DSIGEO_TORCH_DIR={torch_dir()}",
            f"-Dpybind11_DIR={self._pybind11_dir()}",
            f"-DSIGEO_CUDA={os.environ.get('SIGEO_CUDA', 'OFF')}",
        ]  # fmt: skip
        if architectures := cuda_architectures():
            command.append(f"-DSIGEO_CUDA_ARCHITECTURES={';'.join(architectures)}")
        command += os.environ.get("SIGEO_CMAKE_ARGS", "").split()
        prefix = ROOT if self.editable_mode or self.inplace else Path(self.build_lib).resolve()
        subprocess.run(command, check=True)
        subprocess.run([tool("cmake"), "--build", str(build)], check=True)
        subprocess.run(
            [
                tool("cmake"),
                "--install",
                str(build),
                "--prefix",
                str(prefix),
                "--component",
                "python",
            ],
            check=True,
        )

    @staticmethod
    def _pybind11_dir() -> str:
        command = [sys.executable, "-m", "pybind11", "--cmakedir"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class BinaryDistribution(Distribution):
    """Marks the wheel as one platform's; setuptools does not see what CMake makes."""

    def has_ext_modules(self) -> bool:
        """Whether the wheel belongs to one platform."""
        return compiled


compiled = os.environ.get("SIGEO_BUILD", "1") != "0"
if not compiled:  # an editable install would go on using what an earlier one built
    for library in (*ROOT.glob("sigeo_ext/_C.so"), *ROOT.glob("sigeo_ext/_host*.so")):
        library.unlink()
setup(
    distclass=BinaryDistribution,
    ext_modules=[Extension("sigeo_ext._host", [])] if compiled else [],
    cmdclass={"build_ext": CMakeBuild},
)
