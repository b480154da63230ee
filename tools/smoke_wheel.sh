#!/usr/bin/env bash
# Installs each of PYTHONS' wheels in dist/ (default: the one that fits python3) into an empty environment and runs what a
# new user runs first, away from the source: an answer, a server and a request to it, a bench. Prints how long install and
# import take.
set -euo pipefail
cd "$(dirname "$0")/.."
dist=$PWD/dist
room=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$room"' EXIT
cd "$room"
for python in ${PYTHONS:-python3}; do
    tag=$("$python" -c "import sys; print('cp%d%d' % sys.version_info[:2])")
    wheel=$(echo "$dist"/*-"$tag"-*.whl)
    echo "==> trying $(basename "$wheel")"
    rm -rf env socket
    "$python" -m venv env
    begin=$(date +%s%N)
    env/bin/python -m pip install -q --disable-pip-version-check "$wheel"
    env/bin/python -c "import gptoss_native._native"
    echo "install and import: $((($(date +%s%N) - begin) / 1000000)) ms"
    env/bin/gptoss-native version
    begin=$(date +%s%N)
    answer=$(env/bin/gptoss-native chat demo --message "What is 4732 + 918?")
    echo "answer after $((($(date +%s%N) - begin) / 1000000)) ms: $answer"
    [[ $answer == *5650* ]]
    env/bin/gptoss-native plan openai/gpt-oss-20b --device cuda >plan
    head -3 plan
    env/bin/gptoss-native bench ops --shape tiny --context 32 --rows 1 8 --seconds 0.01 --json bench.json | tail -3
    env/bin/gptoss-native bench ops --shape tiny --context 32 --rows 1 8 --seconds 0.01 --compare bench.json >compared
    grep -q "moe_up q8 rows=8 " compared
    env/bin/python -m pip install -q --disable-pip-version-check "$wheel[server]"
    env/bin/gptoss-native serve demo --uds "$room/socket" --max-model-len 1024 &
    server=$!
    for _ in $(seq 100); do [ -S socket ] && break; sleep 0.1; done
    env/bin/python - "$room/socket" <<'END'
import http.client, json, socket, sys

connection = http.client.HTTPConnection("localhost")
connection.sock = socket.socket(socket.AF_UNIX)
connection.sock.connect(sys.argv[1])
body = {"messages": [{"role": "user", "content": "What is 12 + 30?"}], "temperature": 0}
connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
content = json.load(connection.getresponse())["choices"][0]["message"]["content"]
assert "42" in content, content
print("served:", content)
END
    kill "$server"
    wait "$server" || true
    server=
done
echo "==> the wheels work"
