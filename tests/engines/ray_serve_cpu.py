"""Two replicas of vLLM behind `ray.serve.llm`, of which one is killed under load: every question gets its right answer.

Run with the virtual environment of `vllm_cpu.sh` (`VLLM_VENV=DIR bash tests/engines/vllm_cpu.sh one` makes one that
stays), after `DIR/bin/pip install "ray[serve]==2.60.0" jsonref async-timeout pyarrow`:

DIR/bin/python tests/engines/client.py expect . expected.json
DIR/bin/python tests/engines/ray_serve_cpu.py . expected.json
"""

import argparse
import json
import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CLIENTS, QUESTIONS = 4, 60
os.environ.update(RAY_USAGE_STATS_ENABLED="0", HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(folder: Path, port: int) -> None:
    import ray
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    config = LLMConfig(
        model_loading_config={"model_id": "internvl-chat", "model_source": str(folder.resolve())},
        deployment_config={"num_replicas": 2, "health_check_period_s": 2, "health_check_timeout_s": 10},
        placement_group_config={"bundles": [{"CPU": 1}]},
        engine_kwargs={
            "trust_remote_code": True,
            "dtype": "float32",
            "max_model_len": 4096,
            "max_num_seqs": 8,
            "enforce_eager": True,
            "limit_mm_per_prompt": {"image": 4},
        },
    )
    serve.run(build_openai_app({"llm_configs": [config]}), blocking=False)


def replicas() -> set:
    """Process ids of the replicas that hold a model; Ray gives their processes such names."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes().startswith(b"ray::ServeReplica:default:LLMServer"):
                found.add(int(entry.name))
        except OSError:  # gone in between
            continue
    return found


def main(folder: Path, expected: Path) -> None:
    import openai
    import ray

    cases = json.loads(expected.read_text())["cases"]
    names = ["text", "one image", "two images", "two rounds"]
    port, others = free_port(), replicas()
    start(folder, port)
    # What a client of a cluster is told to do: a failed request is asked again, by the client library.
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=300, max_retries=8)

    def ask(name):
        messages, wanted = cases[name]
        done = client.chat.completions.create(model="internvl-chat", messages=messages, temperature=0, max_tokens=48)
        return done.choices[0].message.content.strip() == wanted

    assert ask("text")
    before = replicas() - others
    assert len(before) == 2, before
    victim = min(before)
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(ask, names[number % len(names)]) for number in range(QUESTIONS)]
        while sum(future.done() for future in asked) < QUESTIONS // 4:
            time.sleep(0.05)
        os.kill(victim, signal.SIGKILL)
        left = sum(not future.done() for future in asked)
        answered = [future.result() for future in asked]  # an error of a request is raised here
    assert left > CLIENTS and all(answered)
    print(f"{QUESTIONS} questions by {CLIENTS} clients, a replica killed with {left} left: all answered as expected")
    end = time.monotonic() + 300
    while len(replicas() - others - {victim}) < 2:
        assert time.monotonic() < end, "the killed replica was not replaced"
        time.sleep(2)
    print("two replicas again")
    ray.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("expected", type=Path)
    options = parser.parse_args()
    main(options.folder, options.expected)
