"""Checkpoints into transformers' own layout and back: the same bytes, the same configuration, the same logits."""

import errno
import json
import os
import runpy
import shutil
import signal
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import transformers
from folders import tree
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from toy_inputs import IMAGE_ID, SEED, image_ids, pixels
from typer.testing import CliRunner

import internvl_chat
from internvl_chat import convert_internvl
from internvl_chat.cli import app
from internvl_chat.convert_internvl import convert
from internvl_chat.native_tensors_internvl import name_in_memory
from internvl_chat.tensor_files_internvl import bytes_of

if not hasattr(transformers, "InternVLForConditionalGeneration"):
    pytest.skip("this transformers has no native InternVL", allow_module_level=True)

SMALL = "20KB"  # of a file with tensors: every toy checkpoint has several
LONG_ROPE = {"type": "su", "short_factor": [1.05, 1.1, 1.25, 1.4], "long_factor": [1.03, 1.5, 9.0, 30.0]}
DYNAMIC = {"type": "dynamic", "factor": 2.0}

# What is different from the toy model of `conftest.py`, one for each kind of language model and of vision tower.
MODELS = {
    "Qwen2": {"dynamic_image_size": True, "use_thumbnail": True, "template": "Hermes-2"},
    "Qwen2, tied, dynamic rope beyond its length": {
        "text": {
            "tie_word_embeddings": True,
            "rope_scaling": {**DYNAMIC, "rope_type": "dynamic"},
            "max_position_embeddings": 12,
        }
    },
    "Qwen2, inner layer of the vision tower": {"select_layer": -2},
    "Llama, like 6B": {
        "llm": "Llama",
        "vision": {"qkv_bias": False, "qk_normalization": True, "norm_type": "rms_norm"},
    },
    "Phi3, long rope": {
        "llm": "Phi3",
        "text": {"rope_scaling": LONG_ROPE, "max_position_embeddings": 64, "original_max_position_embeddings": 16},
        "template": "phi3-chat",
    },
    "Qwen3, ratio 1/4, other tile size": {"llm": "Qwen3", "downsample_ratio": 0.25, "force_image_size": 64},
    "Qwen3Moe": {"llm": "Qwen3Moe", "vision": {"drop_path_rate": 0.1, "layer_norm_eps": 1e-5}},
    "GptOss": {"llm": "GptOss", "template": "internvl3_5_gpt_oss"},
    "InternLM2, dynamic rope beyond its length": {
        "llm": "InternLM2",
        "text": {"rope_scaling": DYNAMIC, "max_position_embeddings": 12},
        "template": "internlm2-chat",
    },
    "InternLM2, bias, tied, linear rope": {
        "llm": "InternLM2",
        "text": {"bias": True, "tie_word_embeddings": True, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "system_message": "Be brief.",
    },
}


@pytest.fixture(scope="module", params=MODELS, ids=str)
def pair(request, toy_model, tmp_path_factory):
    """(our model, its original folder, the native folder made from it)."""
    folder = tmp_path_factory.mktemp("pair")
    model = toy_model(**MODELS[request.param], seed=SEED)
    model.save_pretrained(folder / "original", max_shard_size=SMALL)
    convert(folder / "original", folder / "native", "native", max_shard_size=SMALL)
    return model, folder / "original", folder / "native"


def stored(folder) -> dict:
    """Every tensor of a folder, read by the library."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def as_bytes(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


def assert_same_tensors(one, other):
    one, other = stored(one), stored(other)
    assert one and one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and tensor.shape == other[name].shape, name
        assert torch.equal(as_bytes(tensor), as_bytes(other[name])), name


def content(folder, name="config.json"):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def rewrite(folder, name="config.json", **changes):
    """Other values in a JSON file; None takes one out, a dictionary changes values inside."""
    values = content(folder, name)
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    values = {key: value for key, value in values.items() if value is not None}
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


@torch.no_grad()
def logits(model, like=None, tiles=(2, 1)):
    """Logits of a prompt with images, for the tile size of `like`, which is our model (None: the same)."""
    like = like or model
    ids = image_ids(*tiles, tokens=like.num_image_token)
    pixel_values = pixels(sum(tiles), like.config.tile_size)
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixel_values).logits


def native_model(folder):
    """The native model with its weights, of which none is missing, left over or drawn anew."""
    is_moe = content(folder)["text_config"]["model_type"] == "qwen3_moe"
    if is_moe and transformers.__version__.startswith("5.0."):
        pytest.skip("transformers 5.0 does not read the experts of published files inside another model")
    model, info = transformers.InternVLForConditionalGeneration.from_pretrained(
        folder, torch_dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


# --- weights and configuration ----------------------------------------------------------------------------------------


def test_equal_logits(pair):
    model, _, folder = pair
    if model.config.select_layer != -1 and not hasattr(transformers, "TokenizersBackend"):
        pytest.skip("the native model of transformers 4 fails: it asks for an attribute that it does not have")
    native = native_model(folder)
    expected, actual = logits(model), logits(native, like=model)
    assert expected.std() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    tied = native.get_output_embeddings().weight.data_ptr() == native.get_input_embeddings().weight.data_ptr()
    assert tied == model.config.tie_word_embeddings
    assert native.config.image_seq_length == model.num_image_token and native.config.image_token_id == IMAGE_ID


def test_there_and_back(pair, tmp_path):
    _, original, native = pair
    assert len(list(native.glob("model-*.safetensors"))) > 2
    report = convert(native, tmp_path / "again", "original", max_shard_size="1GB")
    assert report.files == ("model.safetensors",) and (tmp_path / "again" / "model.safetensors").is_file()
    assert report.tensors == len(stored(original))
    assert report.size == sum(tensor.nbytes for tensor in stored(original).values())
    assert_same_tensors(original, tmp_path / "again")
    assert content(original) == content(tmp_path / "again")
    again = internvl_chat.InternVLChatModel.from_pretrained(tmp_path / "again")  # and the folder is whole
    assert type(again.language_model).__name__ == content(original)["llm_config"]["architectures"][0]
    assert (tmp_path / "again" / "modeling_internvl_chat.py").is_file()


def test_the_record_outlives_training_and_saving(pair, tmp_path):
    """A native model saved by transformers goes back to what it came from, with what has changed since."""
    model, original, folder = pair
    native = native_model(folder)
    native.resize_token_embeddings(104)
    native.model.multi_modal_projector.linear_1.bias.data += 1.0
    native.save_pretrained(tmp_path / "trained", max_shard_size=SMALL)
    convert(tmp_path / "trained", tmp_path / "again", "original")
    before, after = content(original), content(tmp_path / "again")
    assert after["llm_config"].pop("vocab_size") == 104 and before["llm_config"].pop("vocab_size") == 96
    assert {**after, "torch_dtype": None} == {**before, "torch_dtype": None}
    before, after = stored(original), stored(tmp_path / "again")
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert changed <= {f"language_model.{x}.weight" for x in ("model.embed_tokens", "model.tok_embeddings")} | {
        "language_model.lm_head.weight",
        "language_model.output.weight",
    }
    different = {name for name in set(before) - changed if not torch.equal(before[name], after[name])}
    assert different == {"mlp1.1.bias"}


@pytest.mark.parametrize("names", ["on disk", "in memory"])
def test_native_checkpoints_from_elsewhere(pair, tmp_path, names):
    """No record, and either of the two sets of names that `-hf` files have: our model, with the same logits."""
    model, _, folder = pair
    native = content(folder)
    del native["internvl_chat"]
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(native))
    tensors = {name if names == "on disk" else name_in_memory(name): x for name, x in stored(folder).items()}
    save_file(tensors, tmp_path / "hf" / "model.safetensors", metadata={"format": "pt"})
    report = convert(tmp_path / "hf", tmp_path / "assumed", "original", verify=False)
    kind = native["text_config"]["model_type"]
    assumed = {"phi3": "phi3-chat", "gpt_oss": "internvl3_5_gpt_oss"}.get(kind, "internvl2_5")
    assert content(tmp_path / "assumed")["template"] == assumed and any(repr(assumed) in note for note in report.notes)
    report = convert(tmp_path / "hf", tmp_path / "ours", "original", template="Hermes-2")
    assert not any("Hermes-2" in note for note in report.notes)
    ours = internvl_chat.InternVLChatModel.from_pretrained(tmp_path / "ours", torch_dtype=torch.float32).eval()
    torch.testing.assert_close(logits(ours), logits(model, like=ours), atol=1e-5, rtol=0)
    assert ours.config.template == "Hermes-2" and ours.img_context_token_id == IMAGE_ID
    assert ours.config.llm_config.model_type != "internlm2"


@pytest.mark.parametrize("equal", [False, True], ids=["own head", "copied head"])
def test_a_stored_head_where_the_configuration_says_tied(toy_model, tmp_path, equal):
    """InternVL2-1B: `tie_word_embeddings: true` and a head of its own in the file, which counts."""
    model = toy_model(seed=SEED)
    if equal:
        model.get_output_embeddings().weight.data.copy_(model.get_input_embeddings().weight.data)
    model.save_pretrained(tmp_path / "original")
    rewrite(tmp_path / "original", tie_word_embeddings=True, llm_config={"tie_word_embeddings": True})
    report = convert(tmp_path / "original", tmp_path / "native")
    assert any("head" in note for note in report.notes) == (not equal)
    assert content(tmp_path / "native")["tie_word_embeddings"] == equal
    torch.testing.assert_close(logits(native_model(tmp_path / "native"), like=model), logits(model))
    convert(tmp_path / "native", tmp_path / "again", "original")
    assert_same_tensors(tmp_path / "original", tmp_path / "again")
    assert content(tmp_path / "original") == content(tmp_path / "again")


def test_any_dtype_and_every_tensor_aligned(toy_model, tmp_path):
    model = toy_model("InternLM2", text={"vocab_size": 97})
    model.vision_model.to(torch.bfloat16)
    model.mlp1.to(torch.float16)
    model.language_model.double()
    model.save_pretrained(tmp_path / "original")
    convert(tmp_path / "original", tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "again", "original")
    assert_same_tensors(tmp_path / "original", tmp_path / "again")
    with open(tmp_path / "native" / "model.safetensors", "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    assert header.pop("__metadata__") == {"format": "pt"} and (8 + length) % 8 == 0
    widths = {"BF16": 2, "F16": 2, "F64": 8}
    assert {entry["dtype"] for entry in header.values()} == set(widths)
    assert all(entry["data_offsets"][0] % widths[entry["dtype"]] == 0 for entry in header.values())


def test_index_and_shards_are_as_transformers_writes_them(pair):
    _, _, folder = pair
    index = content(folder, "model.safetensors.index.json")
    tensors = stored(folder)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            assert file.metadata() == {"format": "pt"}
        assert names == {name for name, where in index["weight_map"].items() if where == path.name}
        assert len(names) == 1 or sum(tensors[name].nbytes for name in names) <= bytes_of(SMALL)
    assert index["weight_map"].keys() == tensors.keys()


# --- refusals and interruptions ---------------------------------------------------------------------------------------


@pytest.fixture
def original(toy_model, tmp_path):
    folder = tmp_path / "original"
    toy_model().save_pretrained(folder, max_shard_size=SMALL)
    return folder


def with_tensors(change):
    """A step that changes {name: tensor} of the folder and writes it as one file."""

    def step(folder):
        tensors = stored(folder)
        change(tensors)
        for path in folder.glob("model*.safetensors*"):
            path.unlink()
        save_file({name: x.contiguous() for name, x in tensors.items()}, folder / "model.safetensors")

    return step


def cut_short(folder):
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-7])


def without_shard(folder):
    sorted(folder.glob("*.safetensors"))[1].unlink()


def as_pickle(folder):
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


QKV = "vision_model.encoder.layers.1.attn.qkv.weight"
LORA = {"vision_model.base_model.model.x": torch.ones(1), "y": torch.ones(1)}
# What is done to the folder -> words of the message.
REFUSED = {
    "ps_version": (lambda f: rewrite(f, ps_version="v1"), ["ps_version='v1'", "v2"]),
    "no thumbnail": (lambda f: rewrite(f, dynamic_image_size=True), ["use_thumbnail=False"]),
    "adapters": (lambda f: rewrite(f, use_llm_lora=8), ["use_llm_lora=8", "merge"]),
    "quantised": (lambda f: rewrite(f, quantization_config={"bits": 4}), ["quantization_config"]),
    "epsilon": (
        lambda f: rewrite(f, vision_config={"qk_normalization": True, "layer_norm_eps": 1e-5}),
        ["layer_norm_eps=1e-05", "1e-06"],
    ),
    "no image token": (lambda f: rewrite(f, img_context_token_id=None), ["<IMG_CONTEXT>"]),
    "other family": (lambda f: rewrite(f, model_type="llava"), ["'llava'", "internvl_chat", "internvl"]),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), ["config.json", "JSON"]),
    "no object": (lambda f: (f / "config.json").write_text("[1]"), ["config.json", "list"]),
    "no configuration": (lambda f: (f / "config.json").unlink(), ["config.json"]),
    "missing tensor": (with_tensors(lambda t: t.pop(QKV)), [QKV, "missing"]),
    "unknown tensor": (with_tensors(lambda t: t.update(LORA)), ["vision_model.base_model.model.x and 1 more"]),
    "wrong shape": (
        with_tensors(lambda t: t.update({QKV: t[QKV][:-1]})),
        [QKV, "(95, 32)", "(96, 32)"],
    ),
    "no head": (with_tensors(lambda t: t.pop("language_model.lm_head.weight")), ["language_model.lm_head.weight"]),
    "cut short": (cut_short, ["tensor ", "-00002-of-", "cut short"]),
    "missing shard": (without_shard, ["-00002-of-"]),
    "no safetensors": (as_pickle, ["pytorch_model.bin", "safetensors"]),
    "not safetensors": (
        lambda f: sorted(f.glob("*.safetensors"))[0].write_bytes(b"hello there, no tensors"),
        ["00001"],
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_cannot_be_converted_is_told_before_anything_is_written(original, tmp_path, case):
    step, words = REFUSED[case]
    step(original)
    before = tree(tmp_path)
    with pytest.raises(ValueError) as error:
        convert(original, tmp_path / "deep" / "native")
    assert all(word in str(error.value) for word in words), error.value
    assert tree(tmp_path) == before and os.listdir(tmp_path) == ["original"]


NATIVE_REFUSED = {
    "vision_feature_layer": (lambda f: rewrite(f, vision_feature_layer=[-1, -2]), ["vision_feature_layer=[-1, -2]"]),
    "class token": (lambda f: rewrite(f, vision_feature_select_strategy="full"), ["'full'", "'default'"]),
    "mask token": (lambda f: rewrite(f, vision_config={"use_mask_token": True}), ["use_mask_token=True"]),
    "not square": (lambda f: rewrite(f, vision_config={"image_size": [32, 64]}), ["image_size=[32, 64]"]),
    "unknown LLM": (lambda f: rewrite(f, internvl_chat=None, text_config={"model_type": "gpt2"}), ["'gpt2'", "Qwen2"]),
    "half a tensor": (
        with_tensors(lambda t: t.pop("vision_tower.encoder.layer.1.attention.k_proj.weight")),
        ["vision_tower.encoder.layer.1.attention.k_proj.weight", "missing"],
    ),
    "two dtypes": (
        with_tensors(lambda t: t.update({(k := "vision_tower.encoder.layer.1.attention.k_proj.weight"): t[k].half()})),
        [QKV, "dtypes"],
    ),
}


@pytest.mark.parametrize("case", NATIVE_REFUSED, ids=str)
def test_native_folders_that_cannot_be_converted(original, tmp_path, case):
    native = tmp_path / "native"
    convert(original, native, max_shard_size=SMALL)
    step, words = NATIVE_REFUSED[case]
    step(native)
    before = tree(tmp_path)
    with pytest.raises(ValueError) as error:
        convert(native, tmp_path / "again", "original")
    assert all(word in str(error.value) for word in words), error.value
    assert tree(tmp_path) == before and sorted(os.listdir(tmp_path)) == ["native", "original"]


@pytest.mark.parametrize(
    "target, options, words",
    [
        ("full", {}, ["full", "not empty"]),
        ("full/file", {}, ["file", "folder"]),
        ("original", {}, ["original", "not empty"]),
        ("original/inside", {}, ["inside", "source"]),
        ("killed", {}, [".killed.converting", "killed"]),
        ("new", {"to": "gguf"}, ["'gguf'", "native, original"]),
        ("new", {"to": "original"}, ["original layout already"]),
        ("new", {"max_shard_size": "5 bananas"}, ["'5 bananas'", "5GB"]),
        ("new", {"max_shard_size": 0}, ["0"]),
        ("new", {"template": "Hermes-2"}, ["'Hermes-2'", "original"]),
    ],
)
def test_arguments_that_cannot_be_meant(original, tmp_path, target, options, words):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / ".killed.converting").mkdir()
    before = tree(tmp_path)
    with pytest.raises(ValueError) as error:
        convert(original, tmp_path / target, **options)
    assert all(word in str(error.value) for word in words), error.value
    assert tree(tmp_path) == before and not (tmp_path / "new").exists()


def test_an_empty_target_is_taken_and_unknown_templates_are_told(original, tmp_path):
    (tmp_path / "native").mkdir()
    convert(original, tmp_path / "native", max_shard_size=10**6)
    assert (tmp_path / "native").stat().st_mode == original.stat().st_mode  # not that of a private folder
    with pytest.raises(ValueError, match="'no such'"):
        convert(tmp_path / "native", tmp_path / "again", "original", template="no such")


def test_a_link_and_the_root_of_a_disk_as_target(original, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    convert(original, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "config.json").is_file()
    (tmp_path / "root").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "root")
    with pytest.raises(ValueError, match="root of a disk"):
        convert(original, tmp_path / "root")
    with pytest.raises(ValueError, match="downloaded first"):
        convert("OpenGVLab/InternVL3-2B", tmp_path / "new")


def test_the_disk_is_checked_first(original, tmp_path, monkeypatch):
    asked = []

    def disk_usage(path):
        asked.append(Path(path))
        return namedtuple("Usage", "total used free")(10**6, 0, 10**6)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(OSError, match="needs .* bytes, the disk has 1,000,000 left") as error:
        convert(original, tmp_path / "deep" / "native")
    assert error.value.errno == errno.ENOSPC and asked == [tmp_path]
    assert os.listdir(tmp_path) == ["original"]


def stop_when_copying(monkeypatch):
    def copyfile(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "copyfile", copyfile)


@pytest.mark.parametrize("when", ["writing", "checking", "copying"])
def test_an_interrupted_run_leaves_nothing(original, tmp_path, monkeypatch, when):
    (original / "LICENSE").write_text("MIT")
    before = tree(tmp_path)

    def progress(stage, done, total):
        seen = [path.name for path in tmp_path.iterdir()]
        assert len(seen) == 2 and "native" not in seen  # it grows under another name
        if stage == when and done > total / 2:
            raise KeyboardInterrupt

    if when == "copying":
        stop_when_copying(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        convert(original, tmp_path / "native", progress=progress)
    assert tree(tmp_path) == before and os.listdir(tmp_path) == ["original"]
    monkeypatch.undo()
    convert(original, tmp_path / "native")
    assert tree(original) == {name.split("/", 1)[1]: digest for name, digest in before.items()}
    assert (tmp_path / "native" / "LICENSE").read_text() == "MIT"


def test_progress_counts_every_byte(original, tmp_path):
    heard = []
    convert(original, tmp_path / "native", progress=lambda *numbers: heard.append(numbers))
    size = sum(tensor.nbytes for tensor in stored(original).values())
    for stage in ("writing", "checking"):
        counts = [done for name, done, total in heard if name == stage and total == size]
        assert counts == sorted(counts) and counts[-1] == size and len(counts) > 10
    heard.clear()
    convert(original, tmp_path / "quick", verify=False, progress=lambda *numbers: heard.append(numbers))
    assert {stage for stage, _, _ in heard} == {"writing"}


def test_a_tensor_that_was_not_written_well_is_named(original, tmp_path, monkeypatch):
    name = "vision_tower.encoder.layer.1.attention.k_proj.weight"

    def write_tensors(folder, tensors, *rest):
        paths = write(folder, tensors, *rest)
        path = folder / content(folder, "model.safetensors.index.json")["weight_map"][name]
        data = bytearray(path.read_bytes())
        start = 8 + int.from_bytes(data[:8], "little")
        data[start + json.loads(data[8:start])[name]["data_offsets"][1] - 1] ^= 1
        path.write_bytes(data)
        return paths

    write = convert_internvl.write_tensors
    monkeypatch.setattr(convert_internvl, "write_tensors", write_tensors)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        convert(original, tmp_path / "native", max_shard_size=SMALL)
    assert os.listdir(tmp_path) == ["original"]


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from Linux' /proc")
@pytest.mark.slow
def test_peak_memory(checkpoint, original, tmp_path):
    """Below twice the largest tensor and 1 GB, as promised; in fact a buffer more than a small checkpoint needs."""
    benchmark = runpy.run_path(str(checkpoint / "benchmarks" / "convert.py"))
    total, largest = benchmark["make_checkpoint"](tmp_path / "large", benchmark["config_of"](1), 500e6)
    assert total > 2e9 and largest > 700e6
    least, _ = benchmark["peak_of"]("convert", original, tmp_path / "small")
    for source, target, layout in (("large", "native", "native"), ("native", "again", "original")):
        peak, _ = benchmark["peak_of"]("convert", tmp_path / source, tmp_path / target, "--to", layout)
        assert peak < 2 * largest + 1e9
        assert peak - least < 60e6, f"{peak - least:,} bytes more than for a small checkpoint"


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["convert", "original", "native", "--to", "native", "--max-shard-size", SMALL])
    assert run.exit_code == 0 and "native: native, " in run.output and " bytes in " in run.output, run.output
    assert "Note: the source has no tokenizer" in run.output
    run = CliRunner().invoke(app, ["convert", "native", "again", "--to", "original", "--no-verify"])
    assert run.exit_code == 0 and "in 1 file\n" in run.output
    assert_same_tensors(original, tmp_path / "again")
    for arguments in (["native", "again"], ["nowhere", "x"], ["native", "x", "--to", "original", "--template", "none"]):
        run = CliRunner().invoke(app, ["convert", *arguments])
        assert run.exit_code == 2 and len(run.output.strip().splitlines()) == 1, run.output
        assert run.output.startswith("internvl-chat: ")
    assert not (tmp_path / "x").exists()


def test_the_command_shows_how_far_it_is_on_a_terminal(original, tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    run = CliRunner().invoke(app, ["convert", str(original), str(tmp_path / "native")])
    assert run.exit_code == 0 and "writing" in run.output and "checking" in run.output and "kB" in run.output
    monkeypatch.delenv("FORCE_COLOR")
    run = CliRunner().invoke(app, ["convert", str(original), str(tmp_path / "quiet")])
    assert "writing" not in run.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_a_terminated_command_leaves_nothing(original, tmp_path, monkeypatch, number):
    def write_tensors(folder, *rest):
        (folder / "half").write_text("")
        os.kill(os.getpid(), number)

    monkeypatch.setattr(convert_internvl, "write_tensors", write_tensors)
    # As in a terminal: under nohup or in a shell's background some are ignored.
    heard = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, heard)
    try:
        run = CliRunner().invoke(app, ["convert", str(original), str(tmp_path / "native")])
        assert run.exit_code == 130 and "interrupted; everything is as it was" in run.output
        assert os.listdir(tmp_path) == ["original"]
        assert signal.getsignal(number) == heard
    finally:
        signal.signal(number, before)


def test_nohup_holds(original, tmp_path, monkeypatch):
    """A signal that is ignored stays so."""

    def write_tensors(*args):
        os.kill(os.getpid(), signal.SIGHUP)
        return write(*args)

    write = convert_internvl.write_tensors
    monkeypatch.setattr(convert_internvl, "write_tensors", write_tensors)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = CliRunner().invoke(app, ["convert", str(original), str(tmp_path / "native")])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.exit_code == 0, run.output
