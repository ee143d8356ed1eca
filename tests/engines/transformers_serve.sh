#!/usr/bin/env bash
# `transformers serve` on the converted folder, asked by the `openai` client: greedy answers must be `model.chat`'s.
#
# Run: bash tests/engines/transformers_serve.sh      (SERVE_PYTHON names a Python that has what is installed below)
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
server=
stop() {
  if [ -n "$server" ]; then
    kill -TERM -- "-$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
}
trap 'stop; rm -rf "$work"' EXIT

python=${SERVE_PYTHON:-}
if [ -z "$python" ]; then
  python3 -m venv "$work/venv"
  python=$work/venv/bin/python
  "$python" -m pip install -q "$root" "transformers[serving]==5.23.0" torchvision "openai>=2"
fi

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" OMP_WAIT_POLICY=PASSIVE
"$python" "$root/tests/engines/client.py" expect "$root" "$work/expected.json"
"$python" -m internvl_chat.cli convert "$root" "$work/native" --to native
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
setsid "$python" -c 'from transformers.cli.transformers import main; main()' serve "$work/native" \
  --host 127.0.0.1 --port "$port" --device cpu >"$work/log" 2>&1 &
server=$!
if ! "$python" "$root/tests/engines/client.py" ask "http://127.0.0.1:$port/v1" "$work/expected.json" "$server" \
  --model "$work/native" --images-only; then
  tail -60 "$work/log"
  exit 1
fi
echo "transformers: 1 passed, 0 failed"
