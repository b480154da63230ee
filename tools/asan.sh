#!/usr/bin/env bash
# Builds the extension with AddressSanitizer and UndefinedBehaviorSanitizer into build/asan and runs the op,
# model and checkpoint tests, then the fuzzer with a forward pass on every case that loads.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
site=build/asan/site/gptoss_native

cmake -G Ninja -B build/asan -DGPTOSS_SANITIZE=ON -DGPTOSS_CUDA=OFF -DPython_EXECUTABLE="$python" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >/dev/null
cmake --build build/asan
# A copy of the Python sources beside the sanitized module: the editable install holds the ordinary one.
rm -rf "$site" && mkdir -p "$site"
cp -r python/gptoss_native/. "$site"
cp build/asan/_native*.so "$site"

# The interpreter is not instrumented: its runtime must be loaded first, and its own leaks are not ours.
export LD_PRELOAD="$(g++ -print-file-name=libasan.so) $(g++ -print-file-name=libubsan.so) $(g++ -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1
# -S, with the packages named by hand: otherwise the editable install's import hook wins over PYTHONPATH.
packages=$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
export PYTHONPATH=$PWD/build/asan/site:$packages PYTHONMALLOC=malloc
loaded=$("$python" -S -c "from gptoss_native import _native; print(_native.__file__)")
case "$loaded" in
    "$PWD"/build/asan/*) echo "==> sanitized module: $loaded" ;;
    *) echo "the sanitized module was not loaded, found $loaded" >&2; exit 1 ;;
esac
"$python" -S -m pytest -q tests/ops tests/model "$@"
"$python" -S -m tests.fuzz.fuzz_checkpoint --n "${FUZZ_CASES:-20000}" --forward
