"""A long run, shortened: see `soak.py`. The whole one is `python -m tests.soak`, or `pytest -m slow`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soak

ROOT = Path(__file__).resolve().parent.parent


def test_nothing_is_lost_in_sixty_chats(shipped_model, shipped_tokenizer):
    found = soak.run(shipped_model, shipped_tokenizer, chats=60, warm_up=10, every=1000, seed=3)
    assert found["lost"] == [], found
    assert len(found["kinds"]) == len(soak.CHATS) and len(found["faults"]) == len(soak.FAULTS), found


def test_what_is_lost_is_seen(shipped_model, shipped_tokenizer, monkeypatch):
    """A tensor kept from each chat."""
    kept, original = [], soak.Soak.step

    def step(self):
        if sum(self.counts.values()):
            kept.append(self._image())
        else:
            original(self)

    monkeypatch.setattr(soak.Soak, "step", step)
    found = soak.run(shipped_model, shipped_tokenizer, chats=4, warm_up=5, seed=3)
    assert found["lost"] == ["tensors", "tensor_bytes"]


def test_growth():
    flat = [(chat, 10**9 + chat % 7 * 4096) for chat in range(0, 1000, 20)]
    slope, error = soak.growth(flat)
    assert slope - 2 * error < soak.BYTES_A_CHAT
    slope, error = soak.growth([(chat, size + 2000 * chat) for chat, size in flat])
    assert slope - 2 * error > soak.BYTES_A_CHAT and slope == pytest.approx(2000, abs=100)


@pytest.mark.slow
def test_nothing_is_lost_in_a_thousand_chats():
    done = subprocess.run([sys.executable, "-m", "tests.soak"], cwd=ROOT, capture_output=True, text=True)
    found = json.loads(done.stdout)
    print(done.stdout)
    assert done.returncode == 0 and found["lost"] == [], found
    assert sum(found["faults"].values()) > 200
