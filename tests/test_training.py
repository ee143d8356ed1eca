"""Training the shipped checkpoint: what the model is shown, its tokenizer, interrupted runs, how it is measured."""

import os
import random
import re
import signal
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from sent import watched

sys.path.append(str(Path(__file__).resolve().parent.parent))

from internvl_chat.preprocessing_internvl import images_to_pixel_values, load_image  # noqa: E402
from training import evaluate, export, make_tokenizer, train  # noqa: E402
from training.data import Batches, attention_mask, encode, num_patches, pixels  # noqa: E402
from training.examples import KINDS, draw_example  # noqa: E402
from training.model import fit_symbols, fresh_model, normalized  # noqa: E402
from training.recipe import PRESETS, Preset, Stage, config_values  # noqa: E402
from training.world import (  # noqa: E402
    draw_scene,
    render,
)

TOY = PRESETS["toy"]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer.save(make_tokenizer.train(), folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder):
    return transformers.AutoTokenizer.from_pretrained(tokenizer_folder)


# -------------------------------------------------------------------------------------------------- what is shown


def test_same_seed_same_data(tokenizer):
    """Examples, pixels and batches are a function of the seed, whoever makes them."""
    for kind in KINDS:
        one, other = (draw_example("seed", kind) for _ in range(2))
        assert one == other and one != draw_example("another seed", kind)
        assert all(np.array_equal(a, b) for a, b in zip(pixels(one), pixels(other)))
    stage = TOY.stages[2]
    direct = Batches(stage, tokenizer, 1)
    workers = torch.utils.data.DataLoader(Batches(stage, tokenizer, 1), batch_size=None, num_workers=2)
    for index, batch in zip(range(3), workers):
        expected = direct[index]
        assert batch.keys() == expected.keys()
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
    assert not torch.equal(direct[0]["tiles"][0], Batches(stage, tokenizer, 2)[0]["tiles"][0])


def test_prompts_and_pixels_are_those_of_chat(shipped_model, shipped_tokenizer):
    """The ids and the tiles that training lays out are those which `chat` sends for the same conversation."""
    model, sent = watched(shipped_model)
    for kind in KINDS:
        example = draw_example("prompt", kind)
        patches = num_patches(example)
        tiles = [np.asarray(tile) for tile in pixels(example)]
        for dialogue in example.dialogues[:3]:
            encoded = encode(shipped_tokenizer, dialogue, patches)
            *earlier, last = dialogue
            images = [load_image(render(scene), max_num=example.max_num) for scene in example.scenes]
            model.chat(
                shipped_tokenizer,
                torch.cat(images) if images else None,
                last.question,
                history=[(turn.question, turn.answer) for turn in earlier],
                num_patches_list=patches or None,
            )
            assert encoded.ids[: encoded.answers[-1][0]] == sent["ids"][0].tolist()
            if images:
                shown = normalized(torch.from_numpy(np.stack(tiles)))
                assert torch.allclose(shown, sent["pixels"], atol=1e-5)


def test_normalisation_on_the_device_is_that_of_the_library():
    images = [render(draw_scene(random.Random(index), lines=1)) for index in range(3)]
    tiles = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    assert torch.allclose(normalized(tiles), images_to_pixel_values(images), atol=1e-5)


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_the_largest_pictures_have_room(preset, tokenizer):
    """Twelve tiles, a thumbnail and questions about them fit into a row: else training would never show them."""
    joint = replace(PRESETS[preset].stages[2], mixture=dict(tiles=1), rows=1, tiles=13)
    batches = (Batches(joint, tokenizer, 1)[index] for index in range(8))
    assert any(len(batch["tiles"]) == 13 and len(batch["tasks"]) > 1 for batch in batches)


def test_measuring_sees_each_of_equal_tiles(tokenizer):
    """The model encodes equal tiles once where no gradients are wanted; their labels are of each."""
    model = fresh_model(TOY.size, tokenizer, seed=1).eval()
    tiles = torch.from_numpy(np.stack([np.asarray(render(draw_scene(random.Random(1))))] * 3))
    with torch.no_grad():
        patches, features = model._see(normalized(tiles))
    assert len(patches) == len(features) == 3
    with torch.enable_grad():
        torch.testing.assert_close(model._see(normalized(tiles))[1].detach(), features)


@pytest.mark.parametrize("kind", list(KINDS))
def test_labels_cover_exactly_the_answers_and_their_end_marks(kind, tokenizer):
    stage = Stage("joint", 4, 1e-3, 2, 1408, 32, {kind: 1}, questions=4)
    batches = Batches(stage, tokenizer, 1)
    batch = batches[0]
    learnt, spoken = {}, [[] for _ in batch["tasks"]]
    for question, label in zip(
        batch["questions"][batch["labels"] >= 0].tolist(), batch["labels"][batch["labels"] >= 0].tolist()
    ):
        learnt.setdefault(question, []).append(label)
    assert not (batch["questions"][batch["labels"] < 0] >= 0).any()
    texts = [tokenizer.decode(learnt[question]) for question in sorted(learnt)]
    # Every conversation, read along its own branch, is the prompt of that conversation; its answers are the labels.
    wanted = []
    for row in range(stage.rows):
        for segment in range(1, int(batch["segments"][row].max()) + 1):
            inside = batch["segments"][row] == segment
            branches = batch["branches"][row][inside]
            for branch in range(1, int(branches.max()) + 1):
                own = inside & ((batch["branches"][row] == 0) | (batch["branches"][row] == branch))
                assert batch["position_ids"][row][own].tolist() == list(range(int(own.sum())))
                text = tokenizer.decode(batch["input_ids"][row][own].tolist())
                assert text.startswith("<|im_start|>system\nYou are a tiny") and text.endswith("<|im_end|>\n")
                wanted += [answer + "<|im_end|>" for answer in re.findall(r"assistant\n(.*?)<\|im_end\|>", text, re.S)]
    assert sorted(texts) == sorted(wanted) and len(texts) == len(batch["tasks"]) == len(spoken)
    weights = batch["loss_weight"]
    assert ((weights > 0) == (batch["labels"] >= 0)).all()


def test_conversations_do_not_see_one_another(tokenizer):
    """The tree of conversations gives each one the logits that it has alone."""
    torch.manual_seed(0)
    model = fresh_model(TOY.size, tokenizer, 0).eval()
    stage = Stage("symbols", 4, 1e-3, 3, 512, 32, dict(single=2, later=1, text=1, pair=1), questions=3)
    model.enter(stage)
    batch = Batches(stage, tokenizer, 1)[1]
    named = {name: value for name, value in batch.items() if name not in ("questions", "tasks")}
    with torch.no_grad():
        tree = model(**named)["logits"]
        features = model.symbols(batch["dense"])[batch["tile_order"]].flatten(0, 1)
        embeddings = model.merge_embeddings(batch["input_ids"], features)
    compared = 0
    for row in range(stage.rows):
        for segment in range(1, int(batch["segments"][row].max()) + 1):
            inside = batch["segments"][row] == segment
            for branch in range(1, int(batch["branches"][row][inside].max()) + 1):
                own = inside & ((batch["branches"][row] == 0) | (batch["branches"][row] == branch))
                with torch.no_grad():
                    alone = model.language_model(inputs_embeds=embeddings[row][own][None]).logits[0]
                assert torch.allclose(tree[row][own], alone, atol=1e-4)
                compared += 1
    assert compared >= 8


def test_attention_mask_by_hand():
    mask = attention_mask(torch.tensor([[1, 1, 1, 1, 2, 0]]), torch.tensor([[0, 1, 1, 2, 0, 0]]))
    seen = [[0], [0, 1], [0, 1, 2], [0, 3], [4], [5]]
    assert [row.nonzero().flatten().tolist() for row in mask[0, 0]] == seen


# ------------------------------------------------------------------------------------------------------- tokenizer


def test_tokenizer_files(tokenizer_folder, tokenizer):
    slow = transformers.AutoTokenizer.from_pretrained(tokenizer_folder, use_fast=False)
    expected_files = {"tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"}
    expected_files |= {"tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in tokenizer_folder.iterdir()} == expected_files
    assert len(tokenizer) == len(slow) == make_tokenizer.VOCABULARY
    for number, token in enumerate(make_tokenizer.SPECIAL_TOKENS):
        assert tokenizer(token)["input_ids"] == slow(token)["input_ids"] == [number]
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert len(tokenizer("20471")["input_ids"]) == 5
    # Printed words are read letter by letter.
    for word in ("HELLO", "ZEBRA", "QXJKV"):
        assert [tokenizer.decode([number]) for number in tokenizer(word)["input_ids"]] == list(word)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60))
def test_any_text_comes_back_in_canonical_form(text):
    tokenizer = _tokenizer_of_texts()
    ids = tokenizer(text)["input_ids"]
    back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert back == unicodedata.normalize("NFC", text)


_made = {}


def _tokenizer_of_texts():
    if not _made:
        _made["tokenizer"] = make_tokenizer.train()
        _made["backend"] = transformers.PreTrainedTokenizerFast(tokenizer_object=_made["tokenizer"])
    return _made["backend"]


# ------------------------------------------------------------------------------------------------------------ runs


@pytest.fixture
def short_preset(monkeypatch):
    """A preset of one short stage, and a function that runs it into a folder."""
    stage = Stage("symbols", 20, 3e-3, 4, 384, 64, dict(single=4, text=1), warmup=3, questions=3)
    monkeypatch.setitem(PRESETS, "toy", Preset(TOY.size, (stage,), check_every=0, save_every=5, workers=0))

    def run(folder, *options):
        code = train.main(["--preset", "toy", "--output", str(folder), "--quiet", "--no-gate", *options])
        log = [line for line in (folder / "log.jsonl").read_text().splitlines()]
        return code, log

    return run


def _weights(folder):
    return load_file(folder / "1-symbols" / "final" / "model.safetensors")


def test_an_interrupted_run_goes_on_where_it_was(short_preset, tmp_path, monkeypatch):
    """Stopped by SIGTERM and by its time limit, a run ends with the weights of one that was not. The loss falls."""
    seen, original = [], Batches.__getitem__

    def watched(self, index):
        if self.split == "train":
            seen.append(index)
            if kill_at == index:
                os.kill(os.getpid(), signal.SIGTERM)
        return original(self, index)

    monkeypatch.setattr(Batches, "__getitem__", watched)
    kill_at = None
    code, log = short_preset(tmp_path / "whole")
    assert code == 0
    losses = [float(re.search(r'"loss": ([\d.]+)', line)[1]) for line in log if '"loss"' in line]
    assert len(losses) == 4 and losses[-1] < 0.75 * losses[0]

    kill_at = 7
    handler = signal.getsignal(signal.SIGTERM)
    assert short_preset(tmp_path / "parts")[0] == 0
    assert signal.getsignal(signal.SIGTERM) == handler
    stopped = sorted(int(path.name.split("-")[1]) for path in (tmp_path / "parts" / "1-symbols").glob("checkpoint-*"))
    assert 5 <= stopped[-1] < 20 and not (tmp_path / "parts" / "1-symbols" / "final").exists()
    kill_at = None
    (tmp_path / "parts" / "1-symbols" / "checkpoint-19").mkdir()  # a save that was cut off: not to be used
    assert short_preset(tmp_path / "parts", "--max-minutes", "1e-6")[0] == 0  # one more step
    del seen[:]
    assert short_preset(tmp_path / "parts")[0] == 0
    assert [index for index in seen if index][0] == stopped[-1] + 1 and seen[-1] == 19
    whole, parts = _weights(tmp_path / "whole"), _weights(tmp_path / "parts")
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


def test_workers_are_out_of_reach_of_signals_to_the_group(short_preset, tmp_path, monkeypatch):
    """SIGTERM to the whole process group ended the workers, and with them the trainer while it saved."""
    original = Batches.__getitem__

    def noted(self, index):
        if torch.utils.data.get_worker_info() is not None:
            default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            (tmp_path / f"worker-{index}").write_text(f"{os.getpgrp()} {default}")
        return original(self, index)

    monkeypatch.setattr(Batches, "__getitem__", noted)
    assert short_preset(tmp_path / "run", "--workers", "1", "--max-minutes", "1e-6")[0] == 0
    group, default = (tmp_path / "worker-0").read_text().split()
    assert int(group) != os.getpgrp() and default == "True"


def test_all_stages_run_and_the_export_chats(tokenizer_folder, tmp_path, monkeypatch):
    """Symbols, vision, joint, a few steps each; the exported folder loads and answers."""
    stages = tuple(replace(stage, steps=3, rows=stage.rows and 2) for stage in TOY.stages)
    monkeypatch.setitem(PRESETS, "toy", Preset(TOY.size, stages, check_every=2, save_every=3, workers=0))
    run, output = tmp_path / "run", tmp_path / "bundle"
    command = ["--preset", "toy", "--output", str(run), "--quiet"]
    assert train.main(command) == 1  # three steps do not pass the gate
    assert (run / "1-symbols" / "checkpoint-3").is_dir() and not (run / "2-vision").exists()
    assert train.main([*command, "--no-gate"]) == 0
    export.main(["--run", str(run), "--output", str(output)])
    model = transformers.AutoModel.from_pretrained(output)
    tokenizer = transformers.AutoTokenizer.from_pretrained(output)
    assert model.dtype == torch.bfloat16 and not [name for name, _ in model.named_parameters() if "symbols" in name]
    trained = load_file(run / "3-joint" / "final" / "model.safetensors")
    assert torch.equal(model.mlp1[1].weight, trained["mlp1.1.weight"].to(torch.bfloat16))
    picture = load_image(render(draw_scene(random.Random(1))))
    assert isinstance(model.chat(tokenizer, picture, "What is it?", dict(max_new_tokens=4)), str)
    scored = [line for line in (run / "log.jsonl").read_text().splitlines() if "scores" in line]
    assert len(scored) == 7 and '"describe"' in scored[0] and '"part"' in scored[3]
    # An export can be trained further, without the stages before.
    again = ["--preset", "toy", "--output", str(tmp_path / "again"), "--quiet", "--max-minutes", "1e-6"]
    again += ["--init", str(output), "--first", "joint"]
    assert train.main(again) == 0
    assert [path.name for path in sorted((tmp_path / "again").glob("[0-9]-*/*"))] == ["checkpoint-1"]
    assert train.main([*again, "--land"]) == 0  # ends when the time is over
    assert (tmp_path / "again" / "3-joint" / "final").is_dir()


def test_symbols_can_be_fitted_to_a_trained_tower(tokenizer):
    """They come close to what the tower says of new pictures, the same in each process that fits them."""
    batches = Batches(replace(TOY.stages[1], tiles=16), tokenizer, 1)
    fitted = []
    for _ in range(2):
        model = fresh_model(TOY.size, tokenizer, 1).eval()
        model.enter(TOY.stages[0])
        fit_symbols(model, tokenizer, (batches[index] for index in range(8)), steps=150)
        fitted.append(model.symbols)
    assert torch.equal(fitted[0].table.weight, fitted[1].table.weight)
    assert not any(parameter.requires_grad for parameter in fitted[0].parameters())
    new = batches[9]
    with torch.no_grad():
        features = model._see(normalized(new["tiles"]))[1]
        missed = (model.symbols(new["dense"]) - features).var() / features.var()
        unfitted = fresh_model(TOY.size, tokenizer, 1).symbols(new["dense"])
    assert missed < 0.6 and missed < 0.5 * (unfitted - features).var() / features.var()


def test_the_first_two_stages_can_run_side_by_side(tmp_path, monkeypatch):
    """Neither needs the other: whatever comes first, what they have learnt is the same."""
    stages = tuple(replace(stage, steps=2, rows=stage.rows and 2) for stage in TOY.stages)
    monkeypatch.setitem(PRESETS, "toy", Preset(TOY.size, stages, check_every=0, save_every=2, workers=0))
    command = ["--preset", "toy", "--quiet", "--no-gate", "--output"]
    assert train.main([*command, str(tmp_path / "one")]) == 0
    for stage in ("vision", "symbols"):
        assert train.main([*command, str(tmp_path / "other"), "--only", stage]) == 0
    assert not (tmp_path / "other" / "3-joint").exists()
    assert train.main([*command, str(tmp_path / "other")]) == 0
    one, other = (load_file(tmp_path / name / "3-joint" / "final" / "model.safetensors") for name in ("one", "other"))
    assert one.keys() == other.keys() and all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_the_final_models_are_small_enough(tokenizer):
    """At most 30 MB in bfloat16, at least four vision layers, for every preset that is shipped."""
    for name in ("gpu", "cpu"):
        size = PRESETS[name].size
        values = config_values(size, tokenizer)
        assert size.vision_layers >= 4 and values["force_image_size"] == values["vision_config"]["image_size"]
        model = fresh_model(size, tokenizer, 0)
        kept = sum(p.numel() for n, p in model.named_parameters() if not n.startswith(export.EXTRA_PARTS))
        assert 2 * kept <= export.LARGEST


def test_fewer_workers_where_shared_memory_is_small(monkeypatch):
    batch = {"tiles": torch.zeros(10, 448, 448, 3, dtype=torch.uint8)}
    size = batch["tiles"].numel()
    for free, workers in ((1000 * size, 8), (12 * size, 3), (0, 1)):
        monkeypatch.setattr(train.shutil, "disk_usage", lambda path, free=free: type("Usage", (), {"free": free}))
        assert train.fitting_workers(8, batch) == workers
    assert train.fitting_workers(0, batch) == 0


# ------------------------------------------------------------------------------------------------------ evaluation


class Oracle:
    """Stands in for a model: knows the right answers, and checks what it is asked."""

    def __init__(self, items):
        self.known = {}  # (pictures shown so far, earlier rounds, question) -> answer
        for _, example, dialogue, _ in items:
            past, prints = (), [self._print(render(scene)) for scene in example.scenes]
            for turn in dialogue:
                placeholders = "".join(said for said, _ in (*past, (turn.question, ""))).count("<image>")
                shown = tuple(prints if example.combined else prints[:placeholders])
                self.known[shown, past, turn.question] = turn.answer
                past = (*past, (turn.question, turn.answer))

    @staticmethod
    def _print(picture):
        return hash(np.asarray(picture).tobytes())

    def load_image(self, picture, max_num):
        return torch.full((1, 1), self._print(picture))

    def batch_chat(self, tokenizer, pixel_values, questions, settings, num_patches_list, history):
        prints, answers = [] if pixel_values is None else pixel_values.flatten().tolist(), []
        assert sum(map(sum, num_patches_list)) == len(prints)
        for question, patches, past in zip(questions, num_patches_list, history):
            own, prints = prints[: sum(patches)], prints[sum(patches) :]
            asked = "".join(said for said, _ in (*past, (question, ""))).count("<image>")
            assert asked == len(patches)
            answers.append(self.known.get((tuple(own), tuple(past), question), "I do not know."))
        return answers


def test_evaluation_scores_right_answers_and_their_control():
    """Someone who knows everything gets full marks, in every row, and fails on pictures that are not the right ones."""
    rows = [
        row for row in evaluate.ROWS if row not in ("large image", "large image: text", "small shapes", "small text")
    ]
    items = evaluate.gather("new", 3, rows)
    assert {row for row, *_ in items} == set(rows)
    oracle = Oracle(items)
    marks = evaluate.score(items, evaluate.ask(oracle, None, items, batch_size=4))
    assert marks == {row: (3, 3) for row in rows}
    pictured = [item for item in items if item[1].scenes]
    control = evaluate.score(pictured, evaluate.ask(oracle, None, pictured, shuffled=True))
    assert sum(right for right, _ in control.values()) <= 0.2 * sum(asked for _, asked in control.values())


@pytest.mark.parametrize(
    "task, answer, wanted, right",
    [
        ("color", "The ring is red.", "The ring is red.", True),
        ("color", "The ring is red", "The ring is red.", False),
        ("ground", "<ref>a</ref><box>[[0,0,100,100]]</box>", "<ref>a</ref><box>[[0,0,100,100]]</box>", True),
        ("ground", "<ref>a</ref><box>[[0,0,100,51]]</box>", "<ref>a</ref><box>[[0,0,100,100]]</box>", True),
        ("ground", "<ref>a</ref><box>[[0,0,100,49]]</box>", "<ref>a</ref><box>[[0,0,100,100]]</box>", False),
        ("ground", "<ref>b</ref><box>[[0,0,100,100]]</box>", "<ref>a</ref><box>[[0,0,100,100]]</box>", False),
        ("ground", "<ref>a</ref><box>[[100,100,0,0]]</box>", "<ref>a</ref><box>[[0,0,100,100]]</box>", False),
        ("ground", "red", "<ref>a</ref><box>[[0,0,100,100]]</box>", False),
    ],
)
def test_what_counts_as_right(task, answer, wanted, right):
    assert evaluate.is_right(task, answer, wanted) is right


def test_evaluation_of_the_shipped_checkpoint(shipped_model, shipped_tokenizer):
    """Through the model's own doors: each column has its rows, numbers add up, the table prints."""
    rows = ["color", "second round", "two images: which", "small talk"]
    results = evaluate.evaluate(shipped_model, shipped_tokenizer, number=2, rows=rows)
    assert set(results["new"]) == set(rows) and set(results["shuffled"]) == set(rows) - {"small talk"}
    assert all(0 <= right <= asked == 2 for column in results.values() for right, asked in column.values())
    printed = evaluate.table(results)
    assert printed.count("\n") == 1 + len(rows) and "| color |" in printed
