#!/usr/bin/env bash
# What needs big extras: new golden cases, from random models that no test has seen, by both official
# implementations, which must agree with each other; then the native code against them; then the server against the
# vendors' own clients. Arguments: the environment with torch, transformers, gpt-oss and peft of the versions that
# tools/make_golden.py pins; the one with openai and anthropic; the one with Ray.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf build/golden
mkdir -p build/golden
echo "==> making golden cases with the official implementations"
PYTHONPATH=python:. "$1/bin/python" tools/make_golden.py build/golden
echo "==> comparing the native code with them"
.venv/bin/python -m tools.check_golden build/golden/*
echo "==> loading an edited export in transformers"
rm -rf build/export
.venv/bin/python -m tools.check_export write build/export
"$1/bin/python" tools/check_export.py compare build/export
echo "==> merging and running LoRA adapters as PEFT does"
rm -rf build/lora
mkdir build/lora
cp -r build/export/bf16 build/lora/model
cp -r build/export/model build/lora/quantized
"$1/bin/python" tools/check_lora.py make build/lora
.venv/bin/python -m tools.check_lora compare build/lora
if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    echo "==> installing Chromium for the chat page"
    apt-get install -y -q chromium >/dev/null
fi
echo "==> asking the server with the official clients, a browser, and what schemathesis thinks of"
GPTOSS_COMMAND="$PWD/.venv/bin/gptoss-native" "$2/bin/python" -m pytest --confcutdir=tests/server/clients tests/server/clients
echo "==> two replicas under Ray Serve"
"$3/bin/python" -m pytest --confcutdir=tests/server/ray tests/server/ray
