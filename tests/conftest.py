"""Shared fixtures: the shipped checkpoint, and toy models with random weights. No network, an own cache, two threads.

The fixtures named `toy_*` and `draw_weights` give functions, so that a test makes what it needs:
`toy_model("Llama", vision={"norm_type": "rms_norm"}, select_layer=-2)`.
"""

import atexit
import copy
import os
import shutil
import tempfile
from pathlib import Path

# Before torch and transformers are imported anywhere: they read these once.
_CACHE = tempfile.mkdtemp(prefix="internvl-chat-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ.update(HF_HUB_OFFLINE="1", HF_HOME=_CACHE, HF_MODULES_CACHE=os.path.join(_CACHE, "modules"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep; on a busy machine spinning ones cost 4 times

import no_drift  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import internvl_chat  # noqa: E402

torch.set_num_threads(2)

# A grid of 4 × 4 patches, which is 4 image tokens a tile at the ratio 0.5.
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "patch_size": 8,
    "image_size": 32,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
}
_LLM = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_MORE = {
    "Qwen2": {"rope_theta": 1000000.0},
    "Llama": {"rope_theta": 500000.0, "rms_norm_eps": 1e-5},
    "Phi3": {"rms_norm_eps": 1e-5},
    "Qwen3": {"head_dim": 16, "rope_theta": 1000000},
    "Qwen3Moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    "GptOss": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "InternLM2": {"bias": False, "rope_theta": 1000000.0},
}
_MODEL_TYPE = {"Qwen3Moe": "qwen3_moe", "GptOss": "gpt_oss"}


@pytest.fixture(scope="session", autouse=True)
def nothing_drifts():
    """Every public call in every test leaves its arguments and its model as they were (see `no_drift.py`)."""
    with pytest.MonkeyPatch.context() as monkeypatch, no_drift.nothing_drifts(monkeypatch):
        yield


@pytest.fixture(scope="session")
def checkpoint():
    """Folder of the shipped checkpoint: the repository's root."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shipped_model(checkpoint):
    """The shipped model in float32, loaded through the package door. Tests leave it as it is."""
    return transformers.AutoModel.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def shipped_tokenizer(checkpoint):
    return transformers.AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def toy_values():
    """`toy_values(llm="Qwen2", vision={}, text={}, **top)`: content of a toy `config.json`, as a fresh dictionary.

    `vision` and `text` replace values of the two parts, `top` those of the whole. Skips the test where the installed
    transformers does not have the language model.
    """

    def make(llm="Qwen2", vision=None, text=None, **top):
        if llm != "InternLM2" and not hasattr(transformers, f"{llm}ForCausalLM"):
            pytest.skip(f"this transformers has no {llm}")
        llm_config = {
            "architectures": [f"{llm}ForCausalLM"],
            "model_type": _MODEL_TYPE.get(llm, llm.lower()),
            **_LLM,
            **_MORE[llm],
            **(text or {}),
        }
        values = {
            "vision_config": {**_VISION, **(vision or {})},
            "llm_config": llm_config,
            "ps_version": "v2",
            "img_context_token_id": 7,
            **top,
        }
        return copy.deepcopy(values)

    return make


@pytest.fixture(scope="session")
def toy_config(toy_values):
    """`toy_config(...)`, with the arguments of `toy_values`: an `InternVLChatConfig`."""
    return lambda *args, **kwargs: internvl_chat.InternVLChatConfig(**toy_values(*args, **kwargs))


@pytest.fixture(scope="session")
def draw_weights():
    """`draw_weights(module, seed=0)`: replaces every parameter, norms and biases too: none is without effect."""

    @torch.no_grad()
    def draw(module, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel()
            parameter.copy_(0.5 + 0.2 * noise if parameter.dim() == 1 else noise * fan_in**-0.5)
        return module

    return draw


@pytest.fixture(scope="session")
def toy_model(toy_config, draw_weights):
    """`toy_model(..., seed=0)`, with the arguments of `toy_values`: an `InternVLChatModel` in float32, not training.

    `model_class` is another class to make, `attn_implementation` the backend of both towers.
    """

    def make(*args, seed=0, model_class=None, attn_implementation=None, **kwargs):
        config = toy_config(*args, **kwargs)
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        model = (model_class or internvl_chat.InternVLChatModel)(config)
        return draw_weights(model, seed).eval()

    return make
