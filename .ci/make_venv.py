"""Make .venv ready: installs the project and what it needs there.

`python3 .ci/make_venv.py [EXTRA ...]`. An importable torch >= 2.10 is reused, with all that stands
beside it; otherwise 2.13.0 is installed first, so that nothing pulls a larger build in. Packages
that are there already are not asked for again, so with everything at hand no network is needed.
Extras are those of pyproject.toml.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
TORCH = "torch==2.13.0"
OLDEST_TORCH = (2, 10)

# Run inside .venv: prints the requirements that are not met, one a line.
_UNMET = """
import importlib.metadata, sys
from pip._vendor.packaging.requirements import Requirement
for text in sys.argv[1:]:
    requirement = Requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate():
        continue
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        print(text)
        continue
    if not requirement.specifier.contains(version, prereleases=True):
        print(text)
"""

# Run inside .venv: prints the torch that is there as a requirement, so that pip leaves it there.
_TORCH = """
import importlib.metadata
try:
    print("torch==" + importlib.metadata.version("torch"))
except importlib.metadata.PackageNotFoundError:
    pass
"""

_READ = """
import json, sys
try:
    import tomllib
except ModuleNotFoundError:
    from pip._vendor import tomli as tomllib
with open(sys.argv[1], "rb") as file:
    print(json.dumps(tomllib.load(file)))
"""


def run(*command: str | Path, **kwargs: object) -> str:
    """Run a command and return what it printed; stop where it fails."""
    result = subprocess.run(list(map(str, command)), text=True, stdout=subprocess.PIPE, **kwargs)
    if result.returncode:
        sys.exit(result.stdout or f"{command[0]} failed with {result.returncode}")
    return result.stdout


def reusable_site() -> Path | None:
    """The folder that holds a new enough torch for this Python, if there is one."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    from importlib.metadata import version

    numbers = tuple(int(part) for part in version("torch").split("+")[0].split(".")[:2])
    return Path(spec.origin).parent.parent if numbers >= OLDEST_TORCH else None


def create() -> None:
    """Make .venv, open to the packages beside a torch that is reused."""
    site = reusable_site()
    print(
        f"making the virtual environment {VENV.name}, some seconds"
        + (f", with torch from {site}" if site else ""),
        flush=True,
    )
    venv.create(VENV, system_site_packages=site is not None, with_pip=True)
    if site is not None:
        own = Path(
            run(PYTHON, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        )
        # A virtual environment's own packages are not seen through --system-site-packages.
        (own / "reused.pth").write_text(f"{site}\n")


def unmet(requirements: list[str]) -> list[str]:
    """The requirements that .venv does not meet."""
    return run(PYTHON, "-c", _UNMET, *requirements).split("\n")[:-1]


def install(requirements: list[str]) -> None:
    """Install what is missing."""
    missing = unmet(requirements)
    if missing:
        print(f"installing {', '.join(missing)}, which may take minutes", flush=True)
        kept = run(PYTHON, "-c", _TORCH).split()
        subprocess.run([PYTHON, "-m", "pip", "install", "-q", *missing, *kept], check=True)


def build() -> None:
    """Install the project from here; quick where nothing changed."""
    stamp = VENV / "built"
    sources = [p for folder in ("csrc", ".ci") for p in (ROOT / folder).rglob("*") if p.is_file()]
    sources += [ROOT / name for name in ("setup.py", "CMakeLists.txt", "pyproject.toml")]
    names = ("SIGEO_CUDA", "SIGEO_BUILD", "TORCH_CUDA_ARCH_LIST", "SIGEO_CMAKE_ARGS")
    switches = " ".join(f"{name}={os.environ.get(name, '')}" for name in names)
    newest = max(source.stat().st_mtime for source in sources)
    if stamp.exists() and stamp.stat().st_mtime > newest and stamp.read_text() == switches:
        return
    print("building the kernels, some minutes the first time, later only what changed", flush=True)
    command = [
        PYTHON,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "-e",
        ROOT,
    ]
    subprocess.run(command, check=True)
    stamp.write_text(switches)


def main(extras: list[str]) -> None:
    """Make .venv ready with the given extras."""
    import json

    if not PYTHON.exists():
        create()
    if unmet([f"torch>={'.'.join(map(str, OLDEST_TORCH))}"]):
        install([TORCH])
    project = json.loads(run(PYTHON, "-c", _READ, ROOT / "pyproject.toml"))
    optional = project["project"]["optional-dependencies"]
    install(
        [
            *project["build-system"]["requires"],
            *project["project"]["dependencies"],
            *(requirement for extra in extras for requirement in optional[extra]),
        ]
    )
    build()


if __name__ == "__main__":
    main(sys.argv[1:])
