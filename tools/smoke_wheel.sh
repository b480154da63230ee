#!/usr/bin/env bash
# Installs dist/*.whl into an empty environment and runs what a new user runs first, away from the source: an answer, a
# server and a request to it, the package's own commands and benches. Prints how long install and import take.
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=$(echo "$PWD"/dist/*.whl)
room=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null; rm -rf "$room"' EXIT
"${PYTHON:-python3}" -m venv "$room/env"
cd "$room"
begin=$(date +%s.%N)
env/bin/python -m pip install -q --disable-pip-version-check "$wheel"
env/bin/python -c "import gptoss_native._native"
echo "install and import: $(echo "$(date +%s.%N) - $begin" | bc) s"
env/bin/gptoss-native version
answer=$(env/bin/gptoss-native chat demo --message "What is 4732 + 918?")
echo "answer: $answer"
[[ $answer == *5650* ]]
env/bin/gptoss-native plan openai/gpt-oss-20b --device cuda | head -3
env/bin/gptoss-native bench ops --shape tiny --context 32 --rows 1 8 --seconds 0.01 --json bench.json | tail -3
env/bin/gptoss-native bench ops --shape tiny --context 32 --rows 1 8 --seconds 0.01 --compare bench.json > compared
grep -q "moe_up q8 rows=8 " compared
env/bin/python -m pip install -q --disable-pip-version-check "$wheel[server]"
env/bin/gptoss-native serve demo --uds "$room/socket" --max-model-len 1024 &
server=$!
for _ in $(seq 100); do [ -S "$room/socket" ] && break; sleep 0.1; done
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
echo "==> the wheel works"
