"""Rounds that compute only what is new, against the same rounds without reuse; equal tiles encoded once."""

import copy
import gc
import json
import pickle
import threading
import tracemalloc
from itertools import takewhile

import pytest
import torch
import transformers
from PIL import Image, ImageDraw
from toy_inputs import SEED, pixels

from internvl_chat import history_internvl
from internvl_chat.compat_internvl import cache_to_tuples, goes_on_beside_padding, logits_to_keep_keyword
from internvl_chat.features_internvl import distinct, tile_keys
from internvl_chat.history_internvl import ChatHistory, RoundMemory, memory_of

GREEDY = dict(max_new_tokens=10, do_sample=False)
IMAGE = "<image>\nDescribe the image."


def picture(color, size=(448, 448)):
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((110, 110, 340, 340), fill=color)
    return image


@pytest.fixture(scope="module")
def model(shipped_model):
    return shipped_model


@pytest.fixture(scope="module")
def tokenizer(shipped_tokenizer):
    return shipped_tokenizer


@pytest.fixture(scope="module")
def red(model):
    return model.load_image(picture("red"))


@pytest.fixture(scope="module")
def blue(model):
    return model.load_image(picture("blue", size=(900, 448)), max_num=2)  # two tiles and the thumbnail


@pytest.fixture(scope="module")
def toy(toy_model):
    """A toy model that the shipped tokenizer fits, with tiles of 32 pixels and 4 tokens."""

    def make(llm="Qwen2", text=None, **top):
        text = {"vocab_size": 1024, "max_position_embeddings": 2048, **(text or {})}
        return toy_model(llm, text=text, seed=SEED, template="internvl2_5", **{"img_context_token_id": 3, **top})

    return make


class Spy:
    """What a model computes: tiles through the vision tower, columns of each prefill, ids of each answer, and of how
    many columns at a time the logits."""

    def __init__(self, model):
        self.tiles, self.columns, self.ids, self.logits = 0, [], [], set()
        parts = (model.vision_model, self._see), (model.language_model, self._read)
        self._hooks = [part.register_forward_pre_hook(hook, with_kwargs=True) for part, hook in parts]
        self._hooks.append(model.get_output_embeddings().register_forward_hook(self._judge))
        self._model, self._generate = model, model.generate_new_tokens
        model.generate_new_tokens = self._spied

    def _see(self, module, args, kwargs):
        self.tiles += len(kwargs["pixel_values"])

    def _read(self, module, args, kwargs):
        if kwargs.get("inputs_embeds") is not None:
            self.columns.append(kwargs["inputs_embeds"].shape[1])

    def _judge(self, module, args, output):
        self.logits.add(output.shape[1])

    def _spied(self, **kwargs):
        output = self._generate(**kwargs)
        self.prompt = kwargs["input_ids"].tolist()
        self.ids.append(getattr(output, "sequences", output).tolist())
        return output

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        del self._model.generate_new_tokens
        for hook in self._hooks:
            hook.remove()


def chat(model, tokenizer, pixel_values, question, history, patches, **options):
    """`chat`, returning the answer and the history."""
    return model.chat(tokenizer, pixel_values, question, GREEDY, history, True, patches, **{"reuse": True, **options})


def stream(model, tokenizer, pixel_values, question, history, patches, **options):
    answer = model.stream_chat(tokenizer, pixel_values, question, GREEDY, history, patches, **options)
    return "".join(answer), answer.history


def batch(model, tokenizer, pixel_values, question, history, patches, **options):
    """The conversation as the second row of a batch, between a new one and one that goes on from its first round."""
    answers, histories = model.batch_chat(
        tokenizer,
        pixel_values,
        ["Hello", question, "Thank you."],
        GREEDY,
        [[], patches or [], []],
        [None, history, history and history[:1]],
        True,
        **options,
    )
    return answers[1], histories[1]


# --- what rounds compute ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [chat, stream, batch])
def test_rounds_compute_what_is_new(model, tokenizer, red, blue, ask, monkeypatch):
    """Five rounds with pictures that come later: same ids as without reuse, new tokens and new tiles only."""
    monkeypatch.setattr(history_internvl, "_COLUMNS_A_PASS", 10**9)  # no row of a batch begins alone
    rounds = [
        ("Hello, who are you?", None, None, 0),
        (IMAGE, red, [1], 1),
        ("How many shapes are there?", red, [1], 0),
        (f"Image-2: {IMAGE}", torch.cat((red, blue)), [1, 3], 3),
        ("Thank you.", torch.cat((red, blue)), [1, 3], 0),
    ]
    history, known = None, []
    for question, pixel_values, patches, new_tiles in rounds:
        with Spy(model) as plain:
            expected, _ = ask(model, tokenizer, pixel_values, question, history, patches, reuse=False)
        with Spy(model) as spy:
            answer, history = ask(model, tokenizer, pixel_values, question, history, patches)
        assert answer == expected and spy.ids == plain.ids
        assert plain.tiles == sum(patches or []) and spy.tiles == new_tiles
        row = 1 if ask is batch else 0
        length = model.count_tokens(tokenizer, pixel_values, question, history[:-1], patches)
        prompt = spy.prompt[row][-length:]
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, known)))
        assert common > 0 or len(history) == 1
        new = [length - common]
        if ask is batch:  # as many columns as the row with the most new tokens has
            new.append(model.count_tokens(tokenizer, None, "Hello"))
            if len(history) == 1:
                new.append(model.count_tokens(tokenizer, None, "Thank you."))
        if ask is batch and not goes_on_beside_padding():
            new = [len(spy.prompt[0])]
        assert spy.columns == [max(new)] and plain.columns == [len(spy.prompt[0])]
        known = prompt + spy.ids[0][row][:-1]
    assert len(history) == len(rounds)


@pytest.mark.parametrize("llm", ["Qwen2", "InternLM2", "Llama", "Phi3", "Qwen3"])
def test_every_language_model(toy, tokenizer, llm):
    """Random weights, so that answers are hard to guess. What is kept is what a plain forward pass computes."""
    model, images, history, answers = toy(llm), pixels(5), None, []
    for count, question, new_tiles in ((2, IMAGE, 2), (2, "What?", 0), (5, f"Another: {IMAGE}", 3), (5, "Why not?", 0)):
        arguments = images[:count], question, history, [2, 3][: 1 + (count > 2)]
        expected, _ = chat(model, tokenizer, *arguments, reuse=False)
        with Spy(model) as spy:
            answer, history = chat(model, tokenizer, *arguments)
        assert (answer, spy.tiles) == (expected, new_tiles)
        assert spy.logits == {1} or not logits_to_keep_keyword(type(model.language_model).forward)
        answers.append(answer)
    assert len(set(answers)) > 1

    memory = memory_of(history)
    with torch.no_grad():
        embeddings = model.merge_embeddings(torch.tensor([memory.run.ids]), model.extract_feature(images))
        output = model.language_model(inputs_embeds=embeddings, use_cache=True)
    full = cache_to_tuples(output.past_key_values)
    assert len(full) == len(memory.layers) == 2
    for kept, computed in zip(memory.layers, full):
        for part in (0, 1):
            torch.testing.assert_close(kept[part], computed[part], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("llm", ["Qwen2", "InternLM2", "Phi3"])
def test_ragged_batches(toy, tokenizer, llm):
    """Two rounds of a batch of conversations of all kinds, then one round of each alone."""
    model, images = toy(llm), pixels(6)
    tiles = [slice(0, 1), slice(5, 6), slice(1, 5), slice(0, 0)]  # of each conversation, in the end
    patches = [[1], [1], [1, 2, 1], []]

    def three_rounds(**options):
        questions = [IMAGE, "Hello", f"<image><image>{IMAGE}", "Hi there, and many more words in this row than others."]
        first, histories = model.batch_chat(
            tokenizer, images[:5], questions, GREEDY, [[1], [], [1, 2, 1], None], None, True, **options
        )
        pixel_values = torch.cat([images[own] for own in tiles])
        second, histories = model.batch_chat(
            tokenizer, pixel_values, ["And?", IMAGE, "Which?", "Why?"], GREEDY, patches, histories, True, **options
        )
        rows = [(images[own] if counts else None, counts) for own, counts in zip(tiles, patches)]
        third = [
            chat(model, tokenizer, own, "Thank you.", history, counts, **options)[0]
            for (own, counts), history in zip(rows, histories)
        ]
        return first, second, third

    with Spy(model) as plain:
        expected = three_rounds(reuse=False)
    with Spy(model) as spy:
        assert three_rounds() == expected
    assert spy.ids == plain.ids
    assert (plain.tiles, spy.tiles) == (5 + 6 + 6, 6)
    if goes_on_beside_padding():
        assert all(2 * new < full for new, full in zip(spy.columns[1:], plain.columns[1:])), (
            spy.columns,
            plain.columns,
        )


@pytest.mark.parametrize("llm", ["Qwen2", "InternLM2", "Phi3"])
def test_a_batch_computes_little_padding(toy, tokenizer, llm, monkeypatch):
    """Long rows begin alone where that saves columns, in a first round and beside a row that goes on."""
    model, images = toy(llm), pixels(4)
    questions, patches = (
        [IMAGE, "Hello", "Hello, and more words than the others have.", IMAGE],
        [[3], [], [], [1]],
    )
    singles = [
        chat(model, tokenizer, own, question, None, counts)[0]
        for own, question, counts in zip((images[:3], None, None, images[3:]), questions, patches)
    ]

    def two_rounds():
        answers, histories = model.batch_chat(tokenizer, images, questions, GREEDY, patches, None, True)
        again = model.batch_chat(
            tokenizer, images, ["And?", *questions[1:]], GREEDY, patches, [histories[0], None, None, None]
        )
        return answers, again

    with Spy(model) as padded:
        expected = two_rounds()
    monkeypatch.setattr(history_internvl, "_COLUMNS_A_PASS", 0)
    with Spy(model) as spy:
        assert two_rounds() == expected
    assert expected[0] == singles and spy.ids == padded.ids and spy.tiles == padded.tiles
    if goes_on_beside_padding():
        assert len(spy.columns) > len(padded.columns)


# --- what does not fit is computed anew -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def held(model, tokenizer, red, blue):
    """A conversation of three rounds about two pictures, its histories after each, and what a fourth round computes."""
    both = torch.cat((red, blue))
    histories = [None]
    for question in (f"<image>{IMAGE}", "How many shapes are there?", "What is the background color?"):
        histories.append(chat(model, tokenizer, both, question, histories[-1], [1, 3])[1])
    return both, histories[1:]


def swapped(both, history):
    return torch.cat((both[1:], both[:1])), history, [3, 1]


def second_changed(both, history):
    both = both.clone()
    both[2, 0, 0, 0] += 1e-3
    return both, history, [1, 3]


def edited(both, history):
    history = history.copy()
    history[0] = (history[0][0], "There are twenty.")
    return both, history, [1, 3]


def shortened(both, history):
    history = copy.copy(history)
    del history[-1]
    return both, history, [1, 3]


@pytest.mark.parametrize(
    "change, options, tiles, columns",
    [
        (lambda both, history: (both, history, [1, 3]), {}, 0, "few"),
        (lambda both, history: (both.clone(), history, (1, 3)), {}, 0, "few"),
        (lambda both, history: (both, history[:2], [1, 3]), {}, 0, "few"),
        (shortened, {}, 0, "few"),
        (edited, {}, 0, "some"),
        (second_changed, {}, 1, "some"),
        (swapped, {}, 0, "all"),
        (lambda both, history: (both, history, [1, 3]), {"system_message": "Be brief."}, 0, "all"),
        (lambda both, history: (both.double(), history, [1, 3]), {}, 4, "all"),
        (lambda both, history: (both, list(history), [1, 3]), {}, 4, "all"),
        (lambda both, history: (both, json.loads(json.dumps(history)), [1, 3]), {}, 4, "all"),
        (lambda both, history: (both, pickle.loads(pickle.dumps(history)), [1, 3]), {}, 4, "all"),
        (lambda both, history: (both, copy.deepcopy(history), [1, 3]), {}, 4, "all"),
        (lambda both, history: (both, history, [1, 3]), {"reuse": False}, 4, "all"),
    ],
    ids="same clone slice shortened edited pixel swapped system dtype list json pickle deepcopy off".split(),
)
def test_what_does_not_fit_is_computed_anew(model, tokenizer, held, change, options, tiles, columns):
    both, histories = held
    pixel_values, history, patches = change(both, histories[-1])
    before = (list(history), [part.clone() for pair in memory_of(histories[-1]).layers for part in pair])
    plain_options = {**options, "reuse": False}
    expected, _ = chat(model, tokenizer, pixel_values, "Thank you.", list(history), patches, **plain_options)
    with Spy(model) as spy:
        answer, longer = chat(model, tokenizer, pixel_values, "Thank you.", history, patches, **options)
    assert answer == expected and spy.tiles == tiles
    length = len(spy.prompt[0])
    assert {"few": spy.columns[0] < 60, "some": 60 < spy.columns[0] < length, "all": spy.columns[0] > length - 40}[
        columns
    ], (spy.columns, length)
    assert longer[:-1] == [tuple(pair) for pair in history] and (memory_of(longer) is None) == (
        options.get("reuse") is False
    )
    assert history == before[0]
    assert all(map(torch.equal, before[1], [part for pair in memory_of(histories[-1]).layers for part in pair]))


def other_model(model):
    return copy.deepcopy(model)


def trained(model):
    torch.nn.init.normal_(model.language_model.get_input_embeddings().weight)
    return model


def converted(model):
    return model.to(torch.float64)


def set_differently(model):
    model.ps_version = "v1"
    return model


@pytest.mark.parametrize("change", [other_model, trained, converted, set_differently])
def test_another_model_or_other_weights(toy, tokenizer, change):
    images = pixels(2)
    model = toy()
    _, history = chat(model, tokenizer, images, IMAGE, None, None)
    asked = change(model)
    expected, _ = chat(asked, tokenizer, images, "Why?", list(history), None)
    with Spy(asked) as spy:
        answer, _ = chat(asked, tokenizer, images, "Why?", history, None)
    assert answer == expected and spy.tiles == 2 and spy.columns == [len(spy.prompt[0])]


@pytest.mark.parametrize(
    "llm, text",
    [
        ("GptOss", {}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 0}),
        ("InternLM2", {"rope_scaling": {"type": "dynamic", "factor": 8.0}, "max_position_embeddings": 64}),
        ("Llama", {"rope_scaling": {"type": "dynamic", "factor": 8.0}, "max_position_embeddings": 64}),
    ],
    ids=["gpt-oss", "window", "dynamic", "dynamic-llama"],
)
def test_caches_that_do_not_serve_a_longer_prompt(toy, tokenizer, llm, text):
    """Windows that drop tokens, and rotary embeddings that change with the length: the whole prompt goes in, with the
    features of the tiles, which are kept."""
    model, images = toy(llm, text), pixels(2)
    _, history = chat(model, tokenizer, images, IMAGE, None, None)
    expected, _ = chat(model, tokenizer, images, "Why?" * 9, list(history), None)
    with Spy(model) as spy:
        answer, _ = chat(model, tokenizer, images, "Why?" * 9, history, None)
    assert answer == expected and spy.columns == [len(spy.prompt[0])] and spy.tiles == 0


def test_rotary_embeddings_below_their_limit(toy, tokenizer):
    model = toy("InternLM2", {"rope_scaling": {"type": "dynamic", "factor": 2.0}})
    _, history = chat(model, tokenizer, None, "Hello", None, None)
    expected, _ = chat(model, tokenizer, None, "Why?", list(history), None)
    with Spy(model) as spy:
        assert chat(model, tokenizer, None, "Why?", history, None)[0] == expected
    assert spy.columns[0] < len(spy.prompt[0])


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"repetition_penalty": 1.7},
        {"seed": 3},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_ways_to_generate(toy, tokenizer, settings):
    """Beams, caches of fixed size and none at all take the whole prompt with the tiles encoded before; penalties and
    sampling go on from the cache."""
    model, images = toy(), pixels(2)
    _, history = chat(model, tokenizer, images, IMAGE, None, None)
    names = ("_supports_static_cache", "_can_compile_fullgraph")
    if "cache_implementation" in settings and not any(getattr(model.language_model, name, False) for name in names):
        pytest.skip("this transformers has no static cache for this language model")
    settings = dict(settings)
    seed = settings.pop("seed", None)
    settings = {"max_new_tokens": 12, "do_sample": seed is not None, **settings}

    def ask(history):
        torch.manual_seed(seed or 0)
        with Spy(model) as spy:
            answer, longer = model.chat(tokenizer, images, "Why?", settings, history, True)
        return answer, longer, spy

    expected, _, plain = ask(list(history))
    answer, longer, spy = ask(history)
    assert (answer, spy.ids) == (expected, plain.ids)
    goes_on = not {"num_beams", "cache_implementation", "use_cache"} & set(settings)
    assert spy.tiles == 0 and (spy.columns[0] < 40) == goes_on
    assert bool(memory_of(longer).layers) == goes_on
    if "cache_implementation" in settings:
        assert spy.ids[0][0] == ask_greedily(model, tokenizer, images, history)


def ask_greedily(model, tokenizer, images, history):
    with Spy(model) as spy:
        model.chat(tokenizer, images, "Why?", {"max_new_tokens": 12, "do_sample": False}, history)
    return spy.ids[0][0]


# --- histories do not touch each other --------------------------------------------------------------------------------


def test_one_history_continued_many_times_at_once(model, tokenizer, held):
    """Four threads, two questions each from histories of all ages; then once more, one after the other."""
    both, histories = held
    questions = [(f"Is there a {word} circle?", age) for word in ("red", "blue", "green", "black") for age in (0, 2)]
    plain = [chat(model, tokenizer, both, text, list(histories[age]), [1, 3])[0] for text, age in questions]

    def answers(some):
        return [chat(model, tokenizer, both, text, histories[age], [1, 3])[0] for text, age in some]

    found = {}
    threads = [
        threading.Thread(target=lambda start=start: found.update({start: answers(questions[start : start + 2])}))
        for start in range(0, 8, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer for start in range(0, 8, 2) for answer in found[start]] == plain
    assert answers(questions) == plain


class Broken:
    """A stopping criterion that fails at the third token."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores, **kwargs):
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("broken")
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_errors_and_early_ends_leave_histories_as_they_are(model, tokenizer, held):
    both, histories = held
    history = histories[-1]
    question = "Describe the image."
    expected, _ = chat(model, tokenizer, both, question, list(history), [1, 3])
    before = [part.clone() for pair in memory_of(history).layers for part in pair]
    settings = {**GREEDY, "stopping_criteria": transformers.StoppingCriteriaList([Broken()])}
    with pytest.raises(RuntimeError, match="broken"):
        model.chat(tokenizer, both, question, settings, history, True, [1, 3])
    settings = {**GREEDY, "stopping_criteria": transformers.StoppingCriteriaList([Broken()])}
    failing = model.stream_chat(tokenizer, both, question, settings, history, [1, 3])
    with pytest.raises(RuntimeError, match="broken"):
        list(failing)
    assert failing.history[:-1] == history and memory_of(failing.history) is None
    with model.stream_chat(tokenizer, both, question, GREEDY, history, [1, 3]) as left:
        next(left)
    assert all(map(torch.equal, before, [part for pair in memory_of(history).layers for part in pair]))
    assert chat(model, tokenizer, both, question, history, [1, 3])[0] == expected
    expected, _ = chat(model, tokenizer, both, "Thank you.", list(left.history), [1, 3])
    with Spy(model) as spy:
        assert chat(model, tokenizer, both, "Thank you.", left.history, [1, 3])[0] == expected
    assert spy.tiles == 0 and spy.columns[0] < 60


def test_a_history_is_a_list(model, tokenizer):
    answer, history = chat(model, tokenizer, None, "Hello", None, None)
    assert history == [("Hello", answer)] and isinstance(history, list) and repr(history) == repr([("Hello", answer)])
    assert json.loads(json.dumps(history)) == [["Hello", answer]]
    assert memory_of(history) is memory_of(history.copy()) is memory_of(copy.copy(history)) is memory_of(history[:0])
    for other in (pickle.loads(pickle.dumps(history)), copy.deepcopy(history)):
        assert type(other) is ChatHistory and other == history and memory_of(other) is None
    assert memory_of([("Hello", answer)]) is memory_of(None) is None


def held_bytes():
    """Bytes of all tensors that Python holds, each storage once, and the number of memories."""
    gc.collect()
    objects = gc.get_objects()
    tensors = [thing for thing in objects if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values()), sum(type(thing) is RoundMemory for thing in objects)


@pytest.mark.slow
def test_memory_goes_with_the_history(toy, tokenizer):
    """200 rounds on 20 conversations, each begun anew every fifth round, singly, in batches and as streams."""
    model = toy()
    histories, sizes, images = [None] * 20, [], pixels(40)
    before = held_bytes()[1]  # of other tests' fixtures
    tracemalloc.start()
    try:
        for turn in range(10):
            if turn % 5 == 0:
                histories = [None] * 20
            question = IMAGE if turn % 5 == 0 else "And?"
            ask = (chat, stream)[turn % 2]
            for index in range(10):
                own = images[2 * index : 2 * index + 2]
                histories[index] = ask(model, tokenizer, own, question, histories[index], None)[1]
            _, histories[10:] = model.batch_chat(
                tokenizer, images[20:], [question] * 10, GREEDY, [2] * 10, histories[10:], True
            )
            if turn % 5 == 4:
                sizes.append((*held_bytes(), tracemalloc.get_traced_memory()[0]))
        del histories
        nothing = held_bytes()
    finally:
        tracemalloc.stop()
    (first, count, python), (last, last_count, last_python) = sizes
    assert count == last_count == before + 20
    assert last <= 1.02 * first and last_python - python < 500_000, sizes
    assert nothing[1] == before and nothing[0] < first


# --- equal tiles ------------------------------------------------------------------------------------------------------


def test_equal_tiles_are_encoded_once(toy, tokenizer):
    model, images = toy(), pixels(3)
    blank = torch.zeros(1, 3, 32, 32)
    frames = torch.cat((blank, images[:1], blank, images, blank, images[:1]))  # 4 different ones among 8
    with torch.enable_grad():
        expected = model.extract_feature(frames)
    question = "".join(f"Frame{index}: <image>\n" for index in range(8)) + "What happens?"
    for size in (None, 1, 3):
        with Spy(model) as spy, torch.no_grad():
            torch.testing.assert_close(model.extract_feature(frames, size), expected.detach(), atol=1e-5, rtol=1e-5)
        assert spy.tiles == 4
    with Spy(model) as spy:
        answer = model.chat(tokenizer, frames, question, GREEDY, num_patches_list=[1] * 8)
        questions, rows = [question, IMAGE], [[1] * 8, [1]]
        both = model.batch_chat(tokenizer, torch.cat((frames, blank)), questions, GREEDY, rows)
    assert spy.tiles == 4 + 4 and both[0] == answer
    with torch.enable_grad(), Spy(model) as spy:  # training sees every tile
        model.extract_feature(frames)
    assert spy.tiles == 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_keys_of_tiles(dtype):
    tiles = (100 * pixels(6)).to(dtype)
    tiles[3] = tiles[1]
    tiles[4], tiles[5] = tiles[2], tiles[2]
    tiles[5, 2, 31, 31] += 1
    keys = tile_keys(tiles)
    assert keys[3] == keys[1] and keys[4] == keys[2] and len(set(keys)) == 4
    assert keys == tile_keys(tiles.clone()) == tile_keys(tiles.to(memory_format=torch.channels_last))
    assert tile_keys(tiles.flip(0)) == keys[::-1]
    assert distinct(tile_keys(tiles, lasting=False))[1] == distinct(keys)[1] == [0, 1, 2, 1, 2, 3]
    assert len(set(tile_keys(tiles[:3], lasting=False))) == 3
    assert set(keys).isdisjoint(tile_keys(tiles.transpose(2, 3))) and set(keys).isdisjoint(tile_keys(tiles.half()))
