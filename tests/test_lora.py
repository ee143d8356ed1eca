"""LoRA adapters: where they go, and the way from training over saving and loading to merged weights without peft."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_inputs import SEED, image_ids, pixels, text_ids

import internvl_chat
from internvl_chat import InternVLChatForConditionalGeneration, InternVLChatModel

try:
    import peft
except ImportError as error:  # missing, or too new for this transformers
    pytest.skip(f"peft: {error}", allow_module_level=True)

LLMS = ["Qwen2", "Llama", "Qwen3", "InternLM2", "Phi3", "Qwen3Moe", "GptOss"]
# The published lists; the last two are ours: attention only.
SPLIT = "self_attn.{q,k,v,o}_proj mlp.{gate,up,down}_proj"
TARGETS = {
    "Qwen2": SPLIT,
    "Llama": SPLIT,
    "Qwen3": SPLIT,
    "InternLM2": "attention.wqkv attention.wo feed_forward.{w1,w2,w3}",
    "Phi3": "mlp.{down,gate_up}_proj self_attn.{o,qkv}_proj",
    "Qwen3Moe": "self_attn.{q,k,v,o}_proj",
    "GptOss": "self_attn.{q,k,v,o}_proj",
}
VISION = "attn.{qkv,proj} mlp.{fc1,fc2}"


@pytest.fixture(autouse=True)
def same_adapters_each_time():
    """Fresh adapters and dropout are drawn at random; what follows them word by word must not be."""
    torch.manual_seed(0)


def expanded(pattern):
    """ "a.{b,c}_d e" -> ["a.b_d", "a.c_d", "e"]"""
    names = []
    for part in pattern.split():
        before, _, rest = part.partition("{")
        inside, _, after = rest.partition("}")
        names += [before + choice + after for choice in inside.split(",")]
    return names


def batch():
    ids = torch.cat((image_ids(2), torch.cat((image_ids(1), text_ids(4)), dim=1)))
    return {"pixel_values": pixels(3), "input_ids": ids, "labels": ids.clone()}


def train(model, steps=3, **inputs):
    """Steps with a rate at which the answers change; returns the losses."""
    inputs = inputs or batch()
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


@torch.no_grad()
def logits(model):
    return model(**{name: value for name, value in batch().items() if name != "labels"}).logits


def answer(model):
    return model.generate(pixels(2), image_ids(2), max_new_tokens=8, do_sample=False, pad_token_id=0).tolist()


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("llm", LLMS)
def test_adapters_go_where_the_published_ones_are(toy_model, llm):
    model = toy_model(llm, seed=SEED)
    before, tokens = logits(model), answer(model)
    model.wrap_backbone_lora(4)
    model.wrap_llm_lora(r=2, lora_alpha=5, lora_dropout=0.5)

    prefixes = {"vision_model.base_model.model.encoder.layers": (3, VISION)}
    prefixes["language_model.base_model.model.model.layers"] = (2, TARGETS[llm])
    expected = {
        f"{prefix}.{layer}.{target}"
        for prefix, (count, pattern) in prefixes.items()
        for layer in range(count)
        for target in expanded(pattern)
    }
    adapted = {name[: -len(".lora_A.default.weight")] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert adapted == expected
    assert trainable(model) == {name for name, _ in model.named_parameters() if ".lora_" in name or "mlp1" in name}
    modules = dict(model.named_modules())
    for name in adapted:
        layer = modules[name]
        rank, scaling = (4, 2.0) if name.startswith("vision") else (2, 2.5)
        assert layer.lora_A["default"].weight.shape[0] == rank and layer.scaling["default"] == scaling
    assert (model.config.use_backbone_lora, model.config.use_llm_lora) == (4, 2)
    assert torch.equal(logits(model), before), "an adapter starts at zero, and without dropout in evaluation"
    assert answer(model) == tokens


@pytest.mark.parametrize("llm, tied", [*((llm, False) for llm in LLMS), ("Qwen2", True), ("InternLM2", True)])
def test_train_save_load_merge_and_load_without_peft(toy_model, llm, tied, tmp_path, monkeypatch):
    model = toy_model(llm, text={"tie_word_embeddings": tied}, tie_word_embeddings=tied, seed=SEED)
    untrained, weights = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    model.wrap_backbone_lora(4, lora_alpha=16)
    model.wrap_llm_lora(4)
    model.mlp1.requires_grad_(False)
    losses = train(model)
    assert losses[-1] < losses[0]
    kept = {
        name.replace("base_model.model.", "").replace("base_layer.", ""): value
        for name, value in model.state_dict().items()
        if ".lora_" not in name
    }
    assert kept.keys() == weights.keys() and all(torch.equal(kept[name], weights[name]) for name in weights)
    trained, tokens = logits(model), answer(model)
    assert not torch.allclose(trained, untrained, atol=0.1)

    model.save_pretrained(tmp_path / "adapted")
    values = json.loads((tmp_path / "adapted" / "config.json").read_text())
    assert (values["use_backbone_lora"], values["use_llm_lora"]) == (4, 4)
    again, info = InternVLChatModel.from_pretrained(tmp_path / "adapted", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    for keywords in (dict(low_cpu_mem_usage=True), dict(device_map="cpu")):
        light = InternVLChatModel.from_pretrained(tmp_path / "adapted", torch_dtype=torch.float32, **keywords)
        assert torch.equal(logits(light.eval()), trained), keywords
    again.eval()
    assert torch.equal(logits(again), trained) and answer(again) == tokens
    assert trainable(again) == {name for name, _ in again.named_parameters() if ".lora_" in name or "mlp1" in name}
    train(again, 1)  # and the training goes on

    model.merge_lora()
    assert (model.config.use_backbone_lora, model.config.use_llm_lora) == (0, 0)
    assert model.state_dict().keys() == weights.keys()
    torch.testing.assert_close(logits(model), trained, atol=1e-4, rtol=1e-4)
    assert answer(model) == tokens
    model.save_pretrained(tmp_path / "merged")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)  # importing it fails
        plain, info = InternVLChatModel.from_pretrained(tmp_path / "merged", output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        assert torch.equal(logits(plain.eval()), logits(model)) and answer(plain) == tokens
    head, table = plain.get_output_embeddings().weight, plain.get_input_embeddings().weight
    assert (head is table) == tied


@pytest.mark.parametrize("llm", ["Qwen2", "InternLM2"])
def test_loads_what_the_published_training_code_saves(toy_model, llm, tmp_path):
    """Its files hold peft's names, its configuration the rank alone; the scaling is always 2. Against weights to which
    2 · B · A was added by hand."""
    model = toy_model(llm, seed=SEED)
    generator = torch.Generator().manual_seed(5)
    ends = tuple(f".{target}.weight" for target in (*expanded(TARGETS[llm]), *expanded(VISION)))
    saved, merged = {}, {}
    for name, value in model.state_dict().items():
        tower, _, rest = name.partition(".")
        if tower == "mlp1":
            saved[name] = merged[name] = value
            continue
        rest = f"{tower}.base_model.model.{rest}"
        layer, _, kind = rest.rpartition(".")
        if not name.rpartition(".")[0].endswith(tuple(end[: -len(".weight")] for end in ends)):
            saved[rest] = merged[name] = value
            continue
        saved[f"{layer}.base_layer.{kind}"] = merged[name] = value
        if kind == "weight":
            a = 0.2 * torch.randn(3, value.shape[1], generator=generator)
            b = 0.2 * torch.randn(value.shape[0], 3, generator=generator)
            saved[f"{layer}.lora_A.default.weight"], saved[f"{layer}.lora_B.default.weight"] = a, b
            merged[name] = value + 2 * b @ a
    model.save_pretrained(tmp_path)
    save_file(
        {name: value.contiguous() for name, value in saved.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    values = json.loads((tmp_path / "config.json").read_text())
    values.update(use_backbone_lora=3, use_llm_lora=3)
    (tmp_path / "config.json").write_text(json.dumps(values))

    loaded, info = InternVLChatModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    model.load_state_dict(merged)
    torch.testing.assert_close(logits(loaded.eval()), logits(model), atol=1e-4, rtol=1e-4)

    # The published way to merge: by peft, tower by tower.
    for tower in ("vision_model", "language_model"):
        getattr(loaded, tower).merge_and_unload()
        setattr(loaded, tower, getattr(loaded, tower).model)
    loaded.config.use_backbone_lora = loaded.config.use_llm_lora = 0
    loaded.save_pretrained(tmp_path / "merged")
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert stored.keys() == merged.keys()
    for name, value in merged.items():
        torch.testing.assert_close(stored[name], value, atol=1e-6, rtol=1e-5)


def test_what_departs_from_the_defaults_is_saved(toy_model, tmp_path):
    model = toy_model(seed=SEED)
    model.wrap_llm_lora(2, lora_alpha=3, lora_dropout=0.25)
    model.wrap_backbone_lora(2)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["llm_lora"] == {"lora_alpha": 3, "lora_dropout": 0.25} and "backbone_lora" not in values
    again = InternVLChatModel.from_pretrained(tmp_path)
    layer = again.language_model.get_base_model().model.layers[0].mlp.down_proj
    assert layer.scaling["default"] == 1.5 and layer.lora_dropout["default"].p == 0.25
    again.merge_lora()
    assert not hasattr(again.config, "llm_lora")
    again.merge_lora()  # nothing left to merge


def test_adapters_of_the_shipped_model_and_its_answers(checkpoint, shipped_tokenizer, tmp_path):
    """The whole way with `chat`: trained on one sentence, the model answers the same saved, loaded, merged."""
    model = InternVLChatModel.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    image = model.load_image(checkpoint / "examples" / "image1.jpg", max_num=1)
    settings = dict(max_new_tokens=12, do_sample=False)

    def answers(model):
        questions = ("<image>\nWhat is in the picture?", "<image>\nDescribe the image.")
        chats = [model.chat(shipped_tokenizer, image, question, settings) for question in questions]
        batch = model.batch_chat(
            shipped_tokenizer, torch.cat((image, image)), list(questions), settings, num_patches_list=[len(image)] * 2
        )
        return chats + list(batch) + ["".join(model.stream_chat(shipped_tokenizer, None, "Hello!", settings))]

    untrained = answers(model)
    model.wrap_backbone_lora(2)
    model.wrap_llm_lora(2)
    assert answers(model) == untrained
    ids = shipped_tokenizer("The answer is a red circle on a blue square.", return_tensors="pt")["input_ids"]
    train(model, 12, input_ids=ids, labels=ids)
    trained = answers(model)
    assert trained != untrained
    model.save_pretrained(tmp_path / "adapted")
    assert answers(InternVLChatModel.from_pretrained(tmp_path / "adapted", torch_dtype=torch.float32).eval()) == trained
    model.merge_lora()
    assert answers(model) == trained
    model.save_pretrained(tmp_path / "merged")
    assert answers(InternVLChatModel.from_pretrained(tmp_path / "merged", torch_dtype=torch.float32).eval()) == trained


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_reaches_every_adapter(toy_model, use_reentrant):
    """The reentrant kind gives no gradients at all where no input of a checkpointed layer requires one."""

    def gradients(checkpointing):
        model = toy_model(seed=SEED)
        model.wrap_backbone_lora(2, lora_dropout=0.0)
        model.wrap_llm_lora(2, lora_dropout=0.0)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(6))
            elif ".lora_A." in name:
                torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(7))
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model(**batch(), use_cache=False).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if ".lora_" in name}

    expected, actual = gradients(False), gradients(True)
    assert all(gradient is not None and gradient.any() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_standard_generate_with_adapters(toy_model):
    """The class behind `AutoModelForImageTextToText` returns the prompt and the same new tokens."""
    model = toy_model(model_class=InternVLChatForConditionalGeneration, seed=SEED)
    model.wrap_backbone_lora(2)
    model.wrap_llm_lora(2)
    train(model)
    ids = image_ids(2)
    settings = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
    whole = model.generate(input_ids=ids, pixel_values=pixels(2), attention_mask=torch.ones_like(ids), **settings)
    assert whole[:, : ids.shape[1]].equal(ids)
    assert whole[:, ids.shape[1] :].tolist() == InternVLChatModel.generate(model, pixels(2), ids, **settings).tolist()


def test_peft_around_the_whole_model(toy_model, tmp_path):
    """Plain peft, without our methods: adapters alone are saved, loaded onto the plain model, merged."""
    model = toy_model(seed=SEED)
    model.save_pretrained(tmp_path / "plain")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "qkv"], modules_to_save=["mlp1"])
    adapted = peft.get_peft_model(model, config)
    losses = train(adapted)
    assert losses[-1] < losses[0]
    trained, tokens = logits(adapted), answer(adapted.base_model.model)
    adapted.save_pretrained(tmp_path / "adapter")

    plain = InternVLChatModel.from_pretrained(tmp_path / "plain").eval()
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert torch.equal(logits(again), trained)
    merged = again.merge_and_unload()
    assert type(merged) is InternVLChatModel
    merged.save_pretrained(tmp_path / "merged")
    final = InternVLChatModel.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(final), trained, atol=1e-4, rtol=1e-4)
    assert answer(final) == tokens


@pytest.mark.parametrize("rank", [0, -1, True, 2.0, "4", None])
def test_a_rank_that_is_none_is_refused(toy_model, rank):
    for wrap in ("wrap_llm_lora", "wrap_backbone_lora"):
        with pytest.raises(ValueError, match="at least 1, got"):
            getattr(toy_model(), wrap)(rank)


def test_errors(toy_model, tmp_path, monkeypatch):
    model = toy_model()
    model.save_pretrained(tmp_path / "plain")
    for field in ("use_llm_lora", "use_backbone_lora"):
        with pytest.raises(ValueError, match=f"do not have the LoRA adapters that {field}=4 says"):
            InternVLChatModel.from_pretrained(tmp_path / "plain", **{field: 4})
    model.wrap_llm_lora(2)
    with pytest.raises(ValueError, match="language_model has LoRA adapters already"):
        model.wrap_llm_lora(2)
    model.save_pretrained(tmp_path / "adapted")
    with pytest.raises(ValueError, match="language_model have LoRA adapters: load them with use_llm_lora="):
        InternVLChatModel.from_pretrained(tmp_path / "adapted", use_llm_lora=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"internvl_chat\[lora\]"):
        toy_model().wrap_llm_lora(2)
    assert "lora =" in (Path(internvl_chat.__file__).parent / "setup.cfg").read_text()
