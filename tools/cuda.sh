#!/usr/bin/env bash
# Builds the module with the CUDA backend into build/cuda, for every architecture; prints what each kernel takes
# (build/cuda/kernels.txt and .json) and fails when one spills; then imports the module. Needs no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
export PATH=$PWD/.venv/bin:$PATH:/usr/local/cuda/bin

# A toolkit may come without its disassembler, which NVIDIA publishes as packages too.
if ! command -v cuobjdump >/dev/null || ! command -v nvdisasm >/dev/null; then
    "$python" -m pip install -q --disable-pip-version-check "nvidia-cuda-cuobjdump>=13" "nvidia-cuda-nvdisasm>=13"
    export PATH=$PATH:$("$python" -c "import nvidia.cu13; print(nvidia.cu13.__path__[0])")/bin
fi

echo "==> compiling the CUDA kernels for every architecture (about two minutes on two cores)"
cmake -G Ninja -B build/cuda -DGPTOSS_CUDA=ON -DPython_EXECUTABLE="$python" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
    -DCMAKE_COMPILE_WARNING_AS_ERROR="${STRICT:-OFF}" | grep "CUDA backend"
cmake --build build/cuda
cmake --build build/cuda --target kernels | grep -v "^\["
PYTHONPATH=python "$python" tools/check_cuda_module.py build/cuda/_native*.so
