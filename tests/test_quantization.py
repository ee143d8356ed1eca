"""Loading in 8 and 4 bits with bitsandbytes: what is quantised, what is spared, how far the answers stay the same."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import transformers
from toy_inputs import SEED, image_ids, pixels
from transformers import AutoModel, BitsAndBytesConfig

sys.path.append(str(Path(__file__).resolve().parent.parent))

from internvl_chat import InternVLChatModel  # noqa: E402
from internvl_chat.compat_internvl import quantization_keywords  # noqa: E402
from training import evaluate  # noqa: E402

if importlib.util.find_spec("bitsandbytes") is None:
    pytest.skip("no bitsandbytes", allow_module_level=True)

LLMS = ["Qwen2", "Llama", "Qwen3", "InternLM2", "Phi3", "Qwen3Moe", "GptOss"]
SPARED = ["vision_model", "mlp1", "lm_head", "output"]
NF4 = dict(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
WAYS = {
    "load_in_8bit": lambda: dict(load_in_8bit=True),
    "load_in_4bit": lambda: dict(load_in_4bit=True),
    "8-bit configuration": lambda: dict(quantization_config=BitsAndBytesConfig(load_in_8bit=True)),
    "4-bit configuration": lambda: dict(quantization_config=BitsAndBytesConfig(**NF4)),
    "dictionary": lambda: dict(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
}


@pytest.fixture(scope="module")
def quantizes(tmp_path_factory):
    """Skips where this transformers cannot quantise a model of its own on this machine, as 4.51 without a GPU;
    5.0 and later have no excuse."""
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    try:
        transformers.LlamaForCausalLM.from_pretrained(folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    except Exception as error:
        if hasattr(transformers, "TokenizersBackend"):
            raise
        pytest.skip(f"transformers {transformers.__version__} does not quantise here: {error!r:.100}")


# --- keywords ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_every_way_spares_vision_projector_and_head(way):
    given = {"torch_dtype": torch.bfloat16, **WAYS[way]()}
    before = {**given}
    config = given.get("quantization_config")
    values = None if config is None else dict(config) if isinstance(config, dict) else config.to_dict()
    keywords = quantization_keywords(given, SPARED)
    assert given == before and keywords["torch_dtype"] is torch.bfloat16
    assert not {"load_in_8bit", "load_in_4bit"} & set(keywords)
    if config is not None:
        assert (config if isinstance(config, dict) else config.to_dict()) == values, "the caller's is left as it was"
    made = keywords["quantization_config"]
    made = made if isinstance(made, dict) else made.to_dict()
    assert made["llm_int8_skip_modules"] == SPARED
    assert bool(made.get("load_in_8bit")) == ("4" not in way) and bool(made.get("load_in_4bit")) == ("4" in way)
    if way == "4-bit configuration":
        assert made["bnb_4bit_quant_type"] == "nf4" and made["bnb_4bit_use_double_quant"]


def test_a_choice_of_the_caller_stands():
    for config in (
        BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["mlp1"]),
        {"load_in_8bit": True, "llm_int8_skip_modules": ["mlp1"]},
        {"quant_method": "gptq", "bits": 4},
    ):
        made = quantization_keywords({"quantization_config": config}, SPARED)["quantization_config"]
        if isinstance(config, dict):
            assert made == config
        else:
            assert made.to_dict() == config.to_dict()
    assert quantization_keywords({"load_in_8bit": False, "load_in_4bit": False}, SPARED) == {}
    assert quantization_keywords({"quantization_config": None}, SPARED) == {"quantization_config": None}


def test_other_quantization_libraries_get_the_names_too():
    if not hasattr(transformers, "QuantoConfig"):
        pytest.skip("this transformers has no QuantoConfig")
    config = transformers.QuantoConfig(weights="int8")
    made = quantization_keywords({"quantization_config": config}, SPARED)["quantization_config"]
    assert made.modules_to_not_convert == SPARED
    assert config.modules_to_not_convert is None


def test_errors(checkpoint, monkeypatch):
    several = "one of load_in_8bit, load_in_4bit and quantization_config"
    for keywords in (
        dict(load_in_8bit=True, load_in_4bit=True),
        dict(load_in_4bit=True, quantization_config=BitsAndBytesConfig(load_in_4bit=True)),
        dict(load_in_8bit=True, quantization_config={"load_in_8bit": True}),
    ):
        with pytest.raises(ValueError, match=several):
            AutoModel.from_pretrained(checkpoint, **keywords)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"internvl_chat\[quantization\]"):
        AutoModel.from_pretrained(checkpoint, load_in_8bit=True)


# --- loading ----------------------------------------------------------------------------------------------------------


def linear_layers(model):
    """{name: class name} of the linear layers, quantised or not."""
    return {name: type(part).__name__ for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)}


@torch.no_grad()
def last_logits(model):
    ids = image_ids(2).to(model.get_input_embeddings().weight.device)
    return model(pixel_values=pixels(2), input_ids=ids).logits[0].float().cpu()


# Every language model one way, and every way with one of transformers' models and with ours.
CASES = [(llm, "load_in_8bit") for llm in LLMS]
CASES += [(llm, way) for llm in ("Qwen2", "InternLM2") for way in WAYS if way != "load_in_8bit"]


@pytest.mark.parametrize("llm, way", CASES)
def test_only_the_language_model_is_quantized(quantizes, toy_model, tmp_path, llm, way):
    model = toy_model(llm, text={"hidden_size": 64, "intermediate_size": 128}, seed=SEED).bfloat16()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, **WAYS[way]())
    kind = "Linear4bit" if "4" in way else "Linear8bitLt"
    head = "language_model.output" if llm == "InternLM2" else "language_model.lm_head"
    expected = {
        name: kind if name.startswith("language_model.") and name != head else "Linear" for name in linear_layers(model)
    }
    assert linear_layers(loaded) == expected and kind in expected.values()

    values, stored = loaded.state_dict(), model.state_dict()
    for name, value in stored.items():
        if expected.get(name.rpartition(".")[0]) != kind:
            assert torch.equal(values[name].cpu(), value), f"{name} is not what was saved"
    # Random weights have no outliers: what is left is the noise of rounding 256 or 16 values a row or block.
    exact, actual = last_logits(model), last_logits(loaded.eval())
    error = ((actual - exact).norm() / exact.norm()).item()
    assert 0 < error < (0.25 if "4" in way else 0.05), error


@pytest.mark.parametrize("way", ["load_in_8bit", "load_in_4bit"])
def test_a_quantized_model_saves_and_loads(quantizes, toy_model, tmp_path, way):
    toy_model(text={"hidden_size": 64, "intermediate_size": 128}, seed=SEED).bfloat16().save_pretrained(tmp_path / "a")
    model = InternVLChatModel.from_pretrained(tmp_path / "a", torch_dtype=torch.bfloat16, **WAYS[way]()).eval()
    model.save_pretrained(tmp_path / "b")
    # The file's configuration says how it is quantised. Without the dtype 4.x takes float16 for the rest.
    again = InternVLChatModel.from_pretrained(tmp_path / "b", torch_dtype=torch.bfloat16).eval()
    assert linear_layers(again) == linear_layers(model)
    assert torch.equal(last_logits(again), last_logits(model))


@pytest.fixture(scope="module")
def adapts():
    """Skips where peft is missing, or too new for this transformers."""
    try:
        importlib.import_module("peft")
    except ImportError as error:
        pytest.skip(f"peft: {error}")


@pytest.mark.parametrize("way", ["load_in_8bit", "load_in_4bit"])
def test_adapters_on_a_quantized_language_model(quantizes, adapts, toy_model, tmp_path, way):
    """Training as in QLoRA: the quantised weights stay, the adapters move; saved, loaded, merged."""
    toy_model(text={"hidden_size": 64, "intermediate_size": 128}, seed=SEED).save_pretrained(tmp_path / "plain")
    kind, bits = torch.float32, WAYS[way]()
    model = InternVLChatModel.from_pretrained(tmp_path / "plain", torch_dtype=kind, **bits)
    before = last_logits(model.train())
    torch.manual_seed(0)
    model.wrap_llm_lora(4, lora_dropout=0.0)
    layer = model.language_model.get_base_model().model.layers[0].self_attn.q_proj
    packed = layer.base_layer.weight.clone()
    ids = image_ids(2).to(packed.device)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(4):
        loss = model.train()(pixel_values=pixels(2), input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and layer.lora_B["default"].weight.any()
    assert layer.base_layer.weight.dtype == packed.dtype and torch.equal(layer.base_layer.weight, packed)

    model.save_pretrained(tmp_path / "adapted")
    again = InternVLChatModel.from_pretrained(tmp_path / "adapted", torch_dtype=kind).eval()
    assert linear_layers(again) == linear_layers(model)
    assert {type(part) for part in again.modules()} == {type(part) for part in model.modules()}
    learnt = last_logits(model.eval())
    assert torch.equal(last_logits(again), learnt)
    again.merge_lora()
    # Rounded once more; without the adapters, or with them in the wrong place, it would be as far away as before.
    change, error = (learnt - before).norm().item(), (last_logits(again) - learnt).norm().item()
    assert error < (0.3 if "4" in way else 0.05) * change, (error, change)


@pytest.mark.parametrize("way", ["load_in_8bit", "load_in_4bit"])
def test_a_model_with_adapters_loads_quantized(quantizes, adapts, toy_model, tmp_path, way):
    """The adapters stay in full precision: with the others' weights in 16 bits, only what is around them is rounded."""
    model = toy_model(text={"hidden_size": 64, "intermediate_size": 128}, seed=SEED)
    model.wrap_llm_lora(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(6))
    model.save_pretrained(tmp_path)
    loaded = InternVLChatModel.from_pretrained(tmp_path, torch_dtype=torch.float32, **WAYS[way]()).eval()
    values, stored = loaded.state_dict(), model.state_dict()
    names = [name for name in stored if ".lora_" in name]
    assert names and all(torch.equal(values[name].cpu(), stored[name]) for name in names)
    exact = last_logits(model)
    assert (last_logits(loaded) - exact).norm() < (0.25 if "4" in way else 0.05) * exact.norm()


# --- answers of the shipped checkpoint --------------------------------------------------------------------------------

ROWS = ("color", "shape", "background", "where (nine places)", "count 1-4")


@pytest.fixture(scope="module")
def asked(checkpoint, shipped_tokenizer):
    """(questions about new pictures, 40 in all, and the answers in bfloat16)."""
    items = evaluate.gather("new", 8, ROWS)
    model = AutoModel.from_pretrained(checkpoint, torch_dtype=torch.bfloat16).eval()
    found = evaluate.ask(model, shipped_tokenizer, items)
    assert len(set(found)) > len(found) / 4, "answers that are all the same would agree with anything"
    return items, found


# Well below what `python -m benchmarks.quantization` measures; see benchmarks/RESULTS.md.
@pytest.mark.parametrize("way, share", [("load_in_8bit", 0.85), ("load_in_4bit", 0.7), ("4-bit configuration", 0.7)])
def test_answers_stay_close_to_bfloat16(quantizes, checkpoint, shipped_tokenizer, asked, way, share):
    model = AutoModel.from_pretrained(
        checkpoint, torch_dtype=torch.bfloat16, low_cpu_mem_usage=True, use_flash_attn=True, **WAYS[way]()
    ).eval()
    items, exact = asked
    pairs = list(zip(exact, evaluate.ask(model, shipped_tokenizer, items)))
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    assert len(differing) <= (1 - share) * len(pairs), differing


def test_a_chat_goes_on_and_streams(quantizes, checkpoint, shipped_tokenizer):
    """The other two ways to answer, on the model card's 8-bit line."""
    model = AutoModel.from_pretrained(
        checkpoint, torch_dtype=torch.bfloat16, load_in_8bit=True, low_cpu_mem_usage=True, trust_remote_code=True
    ).eval()
    image = model.load_image(checkpoint / "examples" / "image1.jpg", max_num=1)
    settings = dict(max_new_tokens=16, do_sample=False)
    first, history = model.chat(shipped_tokenizer, image, "<image>\nDescribe it.", settings, return_history=True)
    second = model.chat(shipped_tokenizer, image, "What color is it?", settings, history=list(history))
    assert first and second
    assert "".join(model.stream_chat(shipped_tokenizer, image, "<image>\nDescribe it.", settings)) == first


def test_the_extra_that_the_error_names_exists(checkpoint):
    assert "\nquantization =\n    bitsandbytes" in (Path(checkpoint) / "setup.cfg").read_text()
