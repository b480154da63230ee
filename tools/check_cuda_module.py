"""Imports a module built with the CUDA backend: `check_cuda_module.py build/cuda/_native*.so`.

It must load on a host without driver or CUDA libraries, list the device, and make a backend or say in one
sentence what is missing and what to do. Exits with 1 when it does not.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import ModuleType

from gptoss_native.errors import GptossError


def load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gptoss_native._native", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dynamic_libraries(path: str) -> list[str]:
    """Names of the shared libraries that loading the file would load."""
    text = subprocess.run(["readelf", "-d", path], capture_output=True, text=True, check=True).stdout
    return [line.split("[")[1].rstrip("]") for line in text.splitlines() if "(NEEDED)" in line]


def main() -> int:
    path = sys.argv[1]
    if linked := [name for name in dynamic_libraries(path) if "cuda" in name or "nv" in name]:
        print(f"{path} needs {', '.join(linked)}, expected the CUDA runtime to be linked in", file=sys.stderr)
        return 1
    native = load(path)
    print(f"devices: {', '.join(native.devices())}")
    if "cuda" not in native.devices():
        print("device cuda is missing, expected it in a build with GPTOSS_CUDA=ON", file=sys.stderr)
        return 1
    try:
        backend = native.Backend(device="cuda")
    except GptossError as error:
        print(f"no GPU here: {error}")
        return 0 if "use device='cpu'" in str(error) else 1
    print(f"backend: {backend.device}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
