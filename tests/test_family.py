"""The published family: every configuration at its real size, without storage, and toy-size copies with their files."""

import copy
import json
from decimal import Decimal
from math import prod

import pytest
import torch
import transformers
from published_configs import FAMILY, OWN_HEADS
from published_tensors import fused, published_tensors
from safetensors.torch import load_file, save_file
from toy_inputs import pixels, text_ids

from internvl_chat import InternVLChatConfig, InternVLChatModel, split_model
from internvl_chat.conversation import get_conv_template

# Layers on each GPU, by number of layers and of GPUs: what the loop of the model cards gives for layers that exist.
LAYERS_ON_GPUS = {
    24: {2: (9, 15), 3: (6, 10, 8), 4: (5, 7, 7, 5), 8: (3, 4, 4, 4, 4, 4, 1, 0)},
    28: {2: (11, 17), 3: (7, 12, 9), 4: (5, 8, 8, 7), 8: (3, 4, 4, 4, 4, 4, 4, 1)},
    32: {2: (12, 20), 3: (8, 13, 11), 4: (6, 10, 10, 6), 8: (4, 5, 5, 5, 5, 5, 3, 0)},
    36: {2: (13, 23), 3: (9, 15, 12), 4: (7, 11, 11, 7), 8: (4, 5, 5, 5, 5, 5, 5, 2)},
    40: {2: (15, 25), 3: (9, 16, 15), 4: (7, 12, 12, 9), 8: (4, 6, 6, 6, 6, 6, 6, 0)},
    48: {2: (17, 31), 3: (11, 20, 17), 4: (8, 14, 14, 12), 8: (5, 7, 7, 7, 7, 7, 7, 1)},
    60: {2: (21, 39), 3: (13, 24, 23), 4: (10, 18, 18, 14), 8: (5, 8, 8, 8, 8, 8, 8, 7)},
    64: {2: (23, 41), 3: (14, 26, 24), 4: (11, 19, 19, 15), 8: (6, 9, 9, 9, 9, 9, 9, 4)},
    80: {2: (28, 52), 3: (17, 32, 31), 4: (13, 23, 23, 21), 8: (7, 11, 11, 11, 11, 11, 11, 7)},
    94: {2: (33, 61), 3: (20, 38, 36), 4: (15, 27, 27, 25), 8: (8, 13, 13, 13, 13, 13, 13, 8)},
}


def skip_unless_there(values):
    architecture = values["llm_config"]["architectures"][0]
    if architecture != "InternLM2ForCausalLM" and not hasattr(transformers, architecture):
        pytest.skip(f"this transformers has no {architecture}")


# --- real sizes -------------------------------------------------------------------------------------------------------


def experts_are_modules() -> bool:
    """Before transformers 5 each of the 128 experts of a layer is a module: 94 layers take half a minute to build."""
    qwen3_moe = getattr(transformers.models, "qwen3_moe", None)
    return qwen3_moe is not None and not hasattr(qwen3_moe.modeling_qwen3_moe, "Qwen3MoeExperts")


def rows():
    for name in FAMILY:
        is_long = name == "InternVL3_5-241B-A28B" and experts_are_modules()
        yield pytest.param(name, marks=pytest.mark.slow if is_long else ())


@pytest.fixture(scope="module", params=rows())
def built(request):
    """(its row of the table, the model at its real size on the meta device)."""
    checkpoint = FAMILY[request.param]
    skip_unless_there(checkpoint.config)
    with torch.device("meta"):
        return checkpoint, InternVLChatModel(InternVLChatConfig(**copy.deepcopy(checkpoint.config)))


def test_tensors_are_the_published_ones(built):
    """Every name and shape, and the parameters of each part. A head is counted also where the file says it is tied: the
    weights have one of their own."""
    checkpoint, model = built
    expected = published_tensors(checkpoint.config)
    actual = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if any(name.endswith(".experts.gate_up_proj") for name in actual):
        expected = fused(expected)
    derived = f"not read in the file itself: {sorted(checkpoint.derived())}"
    assert sorted(set(expected) - set(actual))[:5] == [], derived
    assert sorted(set(actual) - set(expected))[:5] == [], derived
    assert {name: (shape, expected[name]) for name, shape in actual.items() if shape != expected[name]} == {}, derived
    parts = ("vision_model.", "mlp1.", "language_model.")
    counts = [sum(prod(shape) for name, shape in actual.items() if name.startswith(part)) for part in parts]
    assert tuple(counts) == checkpoint.parameters, derived


def test_what_callers_read(built):
    checkpoint, model = built
    assert model.num_image_token == model.config.num_image_token == 256
    assert model.template == model.config.template == checkpoint.config["template"]
    assert model.system_message == get_conv_template(checkpoint.config["template"]).system_message
    assert (model.select_layer, model.downsample_ratio, model.ps_version) == (-1, 0.5, "v2")


@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_split_model(built, world_size):
    """The model cards' share of layers for each GPU, the last layer back on the first one, every tensor placed once."""
    _, model = built
    device_map = split_model(model.config, world_size=world_size)
    num_layers = model.config.llm_config.num_hidden_layers
    on_gpus = [device_map.pop(f"language_model.model.layers.{layer}") for layer in range(num_layers)]
    assert tuple(on_gpus.count(gpu) for gpu in range(world_size)) == LAYERS_ON_GPUS[num_layers][world_size]
    assert on_gpus[:-1] == sorted(on_gpus[:-1]) and on_gpus[-1] == 0
    assert set(device_map.values()) == {0} and {"vision_model", "mlp1"} <= set(device_map)
    placed = {*device_map, *(f"language_model.model.layers.{layer}" for layer in range(num_layers))}
    for name in [*model.state_dict(), *(name for name, _ in model.named_buffers())]:
        modules = name.split(".")[:-1]
        assert sum(".".join(modules[: end + 1]) in placed for end in range(len(modules))) == 1, name


@pytest.mark.parametrize("name", FAMILY)
def test_counts_agree_with_what_was_published(name):
    """To the last digit given, which may be rounded up or down. The files' size is that of 16-bit weights."""
    checkpoint = FAMILY[name]
    assert (checkpoint.derived() == set()) == (checkpoint.confidence == "full")
    if checkpoint.published is None:
        pytest.skip("nothing was published about its size")
    number, unit = checkpoint.published.rstrip("MGB "), checkpoint.published[-2:]
    unit = {"GB": Decimal(10**9) / 2}.get(unit.strip(), Decimal(10 ** (6 if unit.endswith("M") else 9)))
    last_digit = Decimal(1).scaleb(Decimal(number).as_tuple().exponent)
    assert abs(sum(checkpoint.parameters) / unit - Decimal(number)) <= last_digit


# --- toy sizes --------------------------------------------------------------------------------------------------------

TOKENS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|start|>", "<|message|>", "<|return|>"]
COPIES = {  # a checkpoint of each kind; between them both towers and every template
    "Qwen2": "InternVL3-8B",
    "InternLM2": "InternVL2-26B",
    "Llama": "InternVL2-40B",
    "Phi3": "InternVL2-4B",
    "Qwen3": "InternVL3_5-8B",
    "Qwen3Moe": "InternVL3_5-30B-A3B",
    "GptOss": "InternVL3_5-GPT-OSS-20B-A4B-Preview",
}
GREEDY = {"max_new_tokens": 12, "do_sample": False}


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    """The shipped one, with the role marks of all templates."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.add_tokens(TOKENS, special_tokens=True)
    return tokenizer


def toy_copy(values, tokenizer) -> dict:
    """A published configuration at toy size; what is not a size or a token id stays as it is."""
    values = copy.deepcopy(values)
    vision, llm = values["vision_config"], values["llm_config"]
    vision.update(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=56)
    values["force_image_size"] = 56
    toy = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if llm["num_key_value_heads"] == llm["num_attention_heads"] else 2,
        "intermediate_size": 48,
        "head_dim": 16,
        "moe_intermediate_size": 24,
        "num_experts": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "layer_types": llm.get("layer_types", [])[:2],
        "vocab_size": len(tokenizer) + 3,
    }
    llm.update({key: value for key, value in toy.items() if key in llm})
    llm.update({key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")})
    if "long_factor" in (llm.get("rope_scaling") or {}):  # one for each pair of channels of a head, here four
        scaling = llm["rope_scaling"]
        scaling.update({key: scaling[key][::12] for key in ("short_factor", "long_factor")})
    return values


def write_published(folder, values) -> dict:
    """Writes `config.json` and `model.safetensors` in the published layout; returns the tensors."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in published_tensors(values).items():
        noise = torch.randn(shape, generator=generator)
        tensors[name] = noise * prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.2 * noise + (not name.endswith("bias"))
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return tensors


def load(folder):
    """The model of a folder through the package, with nothing missing, left over or of another shape."""
    model, info = transformers.AutoModel.from_pretrained(folder, torch_dtype=torch.float32, output_loading_info=True)
    assert type(model) is InternVLChatModel
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def assert_same_tensors(actual, expected):
    actual, expected = fused(actual), fused(expected)
    assert sorted(set(actual) ^ set(expected)) == []
    assert [name for name, tensor in expected.items() if not torch.equal(actual[name], tensor)] == []


def ask(model, tokenizer) -> list:
    """Answers to text, to an image, to two images and in a second round; one by one, as a batch and as streams."""
    rows = [
        (None, "Tell me a story.", [], None),
        (pixels(1, side=56), "What is this?", [1], None),
        (pixels(3, side=56, seed=5), "<image>\n<image>\nCompare them.", [2, 1], None),
        (pixels(1, side=56), "And now?", [1], [("<image>\nWhat is this?", "A dog.")]),
    ]
    single = [
        model.chat(tokenizer, tiles, question, GREEDY, history=history, num_patches_list=patches)
        for tiles, question, patches, history in rows
    ]
    assert len(set(single)) > 2, single  # also of random weights: what is asked matters
    tiles = torch.cat([tiles for tiles, *_ in rows if tiles is not None])
    questions, patches, histories = ([row[column] for row in rows] for column in (1, 2, 3))
    assert model.batch_chat(tokenizer, tiles, questions, GREEDY, num_patches_list=patches, history=histories) == single
    for (tiles, question, patches, history), answer in zip(rows, single):
        stream = model.stream_chat(tokenizer, tiles, question, GREEDY, history=history, num_patches_list=patches)
        assert "".join(stream) == answer
    return single


@pytest.mark.parametrize("kind", COPIES)
def test_a_toy_copy_loads_answers_and_saves(kind, tokenizer, tmp_path):
    """From files in the published layout to files in the published layout, with the same answers."""
    values = toy_copy(FAMILY[COPIES[kind]].config, tokenizer)
    assert values["llm_config"]["architectures"] == [f"{kind}ForCausalLM"]
    skip_unless_there(values)
    tensors = write_published(tmp_path / "published", values)
    model = load(tmp_path / "published")
    assert_same_tensors(model.state_dict(), tensors)
    answers = ask(model, tokenizer)
    model.save_pretrained(tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert sorted(set(stored) ^ set(tensors)) == []
    assert_same_tensors(stored, tensors)
    again = load(tmp_path / "saved")
    assert_same_tensors(again.state_dict(), tensors)
    assert ask(again, tokenizer) == answers
    with torch.no_grad():
        assert torch.equal(again(input_ids=text_ids(20)).logits, model(input_ids=text_ids(20)).logits)


@pytest.mark.parametrize("name", OWN_HEADS)
def test_a_head_of_its_own_is_kept(name, tokenizer, tmp_path):
    """Where the configuration says that it is tied to the table: the weights count, also after saving, and whatever
    ties or resizes later leaves them alone."""
    values = toy_copy(FAMILY[name].config, tokenizer)
    skip_unless_there(values)
    values["llm_config"]["tie_word_embeddings"] = True
    tensors = write_published(tmp_path / "published", values)
    for source, target in (("published", "first"), ("first", "second")):
        model = load(tmp_path / source)
        model.tie_weights()
        assert_same_tensors(model.state_dict(), tensors)
        assert model.config.tie_word_embeddings is model.config.llm_config.tie_word_embeddings is False
        model.save_pretrained(tmp_path / target)
        assert_same_tensors(load_file(tmp_path / target / "model.safetensors"), tensors)
    model.resize_token_embeddings(values["llm_config"]["vocab_size"] + 8)
    for part, key in (("output", "lm_head"), ("input", "model.embed_tokens")):
        weight = getattr(model, f"get_{part}_embeddings")().weight
        assert torch.equal(weight[:-8], tensors[f"language_model.{key}.weight"])
