"""`split_model`: the model cards' rule, on exactly the modules that exist."""

import math

import pytest
import torch

import internvl_chat
from internvl_chat import split_model

LLMS = ["Qwen2", "InternLM2", "Llama", "Phi3", "Qwen3", "Qwen3Moe", "GptOss"]


def published_rule(num_layers, world_size):
    """The loop of the model cards, restated: layer -> GPU."""
    per_gpu = math.ceil(num_layers / (world_size - 0.5))
    counts = [math.ceil(per_gpu * 0.5)] + [per_gpu] * (world_size - 1)
    order = [gpu for gpu, count in enumerate(counts) for _ in range(count)][:num_layers]
    order[-1] = 0
    return dict(enumerate(order))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("num_layers", [1, 2, 3, 24, 28, 48, 80])
def test_layers_go_where_the_model_cards_put_them(toy_config, num_layers, world_size):
    config = toy_config(text={"num_hidden_layers": num_layers})
    device_map = split_model(config, world_size=world_size)
    layers = {name: gpu for name, gpu in device_map.items() if ".layers." in name}
    expected = published_rule(num_layers, world_size)
    assert layers == {f"language_model.model.layers.{layer}": gpu for layer, gpu in expected.items()}
    assert all(gpu == 0 for name, gpu in device_map.items() if ".layers." not in name)


@pytest.mark.parametrize("llm", LLMS)
def test_covers_every_parameter_and_buffer_once(toy_config, llm):
    config = toy_config(llm, text={"num_hidden_layers": 8})
    before = config.to_dict()
    device_map = split_model(config, world_size=3)
    assert config.to_dict() == before
    with torch.device("meta"):
        model = internvl_chat.InternVLChatModel(config)
    modules = dict(model.named_modules())
    assert set(device_map) <= set(modules)
    tensors = [name for name, _ in (*model.named_parameters(), *model.named_buffers())]
    for tensor in tensors:
        covering = [name for name in device_map if tensor.startswith(name + ".")]
        assert len(covering) == 1, (tensor, covering)
    assert len(set(device_map.values())) == 3


def test_takes_a_folder(checkpoint):
    config = internvl_chat.InternVLChatConfig.from_pretrained(checkpoint)
    assert split_model(checkpoint, world_size=2, trust_remote_code=True) == split_model(config, world_size=2)


def test_errors(toy_config):
    with pytest.raises(ValueError, match="world_size must be at least 1, got 0"):
        split_model(toy_config(), world_size=0)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="world_size"):
            split_model(toy_config())
    with pytest.raises(OSError):
        split_model("no/such-folder", world_size=2)


def test_the_map_loads(checkpoint, shipped_model):
    """Every device is the CPU here: the map's names and accelerate's hooks are what is tried."""
    device_map = {name: "cpu" for name in split_model(checkpoint, world_size=2)}
    model = internvl_chat.InternVLChatModel.from_pretrained(
        checkpoint, torch_dtype=torch.float32, device_map=device_map
    )
    ids = torch.arange(20, 40).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, shipped_model(input_ids=ids).logits)
