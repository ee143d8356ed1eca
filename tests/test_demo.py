"""The web demo without a browser: limits, answers, drawings, texts; the page is built where Gradio is installed."""

import string

import numpy as np
import pytest
import torch
from PIL import Image

from internvl_chat.demo_internvl import (
    DemoError,
    DemoSession,
    Limits,
    as_markdown,
    draw_boxes,
    draw_grid,
    find_boxes,
)
from internvl_chat.demo_texts_internvl import TEXTS, preferred

EXAMPLES = "examples"
SHORT = {"max_new_tokens": 8}


@pytest.fixture
def session(shipped_model, shipped_tokenizer):
    return DemoSession(shipped_model, shipped_tokenizer, Limits())


@pytest.fixture(scope="module")
def picture(checkpoint):
    return (checkpoint / EXAMPLES / "image1.jpg", "image1.jpg")


@pytest.fixture(scope="module")
def wide(checkpoint):
    return (checkpoint / EXAMPLES / "wide.png", "wide.png")


@pytest.fixture(scope="module")
def clip(checkpoint):
    return (checkpoint / EXAMPLES / "moving_circle.mp4", "moving_circle.mp4")


def answer(session, question, files=(), **options):
    pieces = list(session.ask(question, list(files), **{**SHORT, **options}))
    return pieces[-1]


# --- answers ----------------------------------------------------------------------------------------------------------


def test_rounds_are_those_of_chat(session, shipped_model, shipped_tokenizer, picture, wide):
    """An image in the first round, another in the second: the same answers as from `chat` with the same history."""
    settings = {**SHORT, "do_sample": False}
    one, two = shipped_model.load_image(picture[0]), shipped_model.load_image(wide[0], max_num=12)
    first, history = shipped_model.chat(shipped_tokenizer, one, "<image>\nWhat is this?", settings, return_history=True)
    second = shipped_model.chat(
        shipped_tokenizer,
        torch.cat([one, two]),
        "Image-2: <image>\nAnd this?",
        settings,
        history=history,
        num_patches_list=[len(one), len(two)],
    )
    assert answer(session, "What is this?", [picture]) == first
    assert answer(session, "And this?", [wide]) == second
    assert [asked for asked, _ in session.history] == ["<image>\nWhat is this?", "Image-2: <image>\nAnd this?"]
    assert session.tiles == len(one) + len(two)


def test_pieces_grow(session):
    pieces = list(session.ask("Hello, who are you?", [], max_new_tokens=12))
    assert len(pieces) > 3
    assert all(later.startswith(earlier) for earlier, later in zip(pieces, pieces[1:]))
    assert session.history == [("Hello, who are you?", pieces[-1])] and session.answer_length > 3


def test_stop_keeps_what_was_said(session):
    pieces = session.ask("Hello, who are you?", [], max_new_tokens=64)
    first = next(pieces)
    session.stop()
    rest = list(pieces)
    assert session.stopped and len(rest) <= 1
    assert session.history[0][1].startswith(first)


def test_a_visitor_who_leaves_ends_the_answer(session):
    pieces = session.ask("Hello, who are you?", [], max_new_tokens=64)
    next(pieces)
    pieces.close()
    assert len(session.history) == 1  # what was seen stays


def test_a_new_conversation_in_the_middle_of_an_answer(session, picture):
    pieces = session.ask("What is this?", [picture], max_new_tokens=64)
    next(pieces)
    session.reset()
    list(pieces)
    assert (session.media, session.views, session.history) == ([], [], [])


@pytest.mark.parametrize("error, told", [("CUDA out of memory", "fewer tiles"), ("boom", "The answer failed: boom")])
def test_an_answer_that_fails(session, picture, monkeypatch, error, told):
    def generate(*_, **__):
        raise RuntimeError(error)

    monkeypatch.setattr(session.model, "generate_new_tokens", generate, raising=True)
    with pytest.raises(DemoError, match=told):
        list(session.ask("What is this?", [picture]))
    assert (session.media, session.views, session.history) == ([], [], [])


def test_video_and_system_message(session, clip):
    answer(session, "What is moving?", [clip], num_segments=3, system="Be short.")
    assert session.history[0][0].startswith("Frame1: <image>\nFrame2: <image>\nFrame3: <image>\n")
    assert session.tiles == 3 and session.system == "Be short."


def refused(session, question="What?", files=(), **options):
    """The message; the session must be as it was before."""
    before = session.media[:], session.views[:], list(session.history)
    with pytest.raises(DemoError) as caught:
        session.ask(question, list(files), **options)
    assert (session.media, session.views, session.history) == before
    assert caught.value.told("zh") != caught.value.told("en") == str(caught.value)
    return str(caught.value)


def test_what_is_refused(session, picture, clip, tmp_path):
    answer(session, "What is this?", [picture])
    broken, fake = tmp_path / "broken.png", tmp_path / "fake.mp4"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    fake.write_text("no video")
    for path in (broken, fake):
        message = refused(session, files=[picture, (path, path.name)])
        assert path.name in message and str(tmp_path) not in message
    assert "empty" in refused(session, " ")
    assert "3 <image> placeholders" in refused(session, "<image> and <image>", [picture])
    session.limits = Limits(files=2)
    assert "at most 2 files" in refused(session, files=[picture, picture])
    session.limits = Limits(upload_bytes=1024)
    assert "limit is 0.000977 MiB" in refused(session, files=[clip])
    session.limits = Limits(frames=64)
    long = refused(session, files=[clip, clip, clip], num_segments=64)
    assert f"the model takes {session.context_length:,}" in long


def test_new_conversation(session, picture):
    answer(session, "What is this?", [picture])
    session.reset()
    assert (session.media, session.views, session.history) == ([], [], [])
    assert answer(session, "Hello, who are you?")


# --- what is drawn ----------------------------------------------------------------------------------------------------

BOXES = [
    ("no box", []),
    ("<ref>dog</ref><box>[[100, 200, 300, 400]]</box>", [("dog", (100, 200, 300, 400))]),
    ("A <ref> red car </ref><box>[[1,2,3,4],[5,6,7,8]]</box>!", [("red car", (1, 2, 3, 4)), ("red car", (5, 6, 7, 8))]),
    ("<box>[10, 20, 30, 40]</box>", [("", (10, 20, 30, 40))]),
    ("<ref>a</ref><box>[[300, 400, 100, 200]]</box>", [("a", (100, 200, 300, 400))]),
    ("<ref>a</ref><box>[[-5, 0, 1200, 999.5]]</box>", [("a", (0, 0, 1000, 999.5))]),
    ("<ref>a</ref><box>[[1, 2, 3]]</box>", []),
    ("<ref>a</ref><box>[[1, 2, 3, x]]</box>", []),
    (
        "<ref>a</ref><box>[[1, 2, 3, 4]]</box> and <ref>b</ref><box>[[5, 6, 7, 8]]</box>",
        [("a", (1, 2, 3, 4)), ("b", (5, 6, 7, 8))],
    ),
]


@pytest.mark.parametrize("said, boxes", BOXES)
def test_find_boxes(said, boxes):
    assert find_boxes(said) == boxes


def test_boxes_are_drawn_where_they_are():
    white = Image.new("RGB", (400, 200), "white")
    drawn = np.asarray(draw_boxes(white, [("", (250, 250, 750, 750))]))
    changed = np.argwhere((drawn != 255).any(-1))
    assert abs(changed.min(0) - (50, 100)).max() <= 1 and abs(changed.max(0) - (150, 300)).max() <= 1
    assert (drawn[100, 200] == 255).all() and np.asarray(white).min() == 255  # the inside, and what was passed
    assert draw_boxes(white, [("名字 ✓", (0, 0, 1000, 1000))]).size == white.size


def test_grid_has_the_borders_of_its_tiles():
    drawn = np.asarray(draw_grid(Image.new("RGB", (300, 100), "white"), 3, 1))
    side = drawn.shape[0]
    assert drawn.shape == (side, 3 * side, 3)
    columns = np.flatnonzero((drawn[side // 2] != 255).any(-1))
    assert {0, side - 1, side, 2 * side, 3 * side - 1} <= set(columns) and side // 2 not in columns


def test_tilings_tell_the_tiles_of_the_conversation_and_of_new_files(session, picture, wide, clip):
    answer(session, "What is this?", [picture])
    shown = session.tilings("en", 12, [wide, clip])
    captions = [caption for _, caption in shown]
    assert captions[0].startswith("image1.jpg: 448 × 448 pixels, 1 × 1 tiles: ")
    tokens = 3 * session.model.num_image_token
    assert captions[1] == f"wide.png: 896 × 448 pixels, 2 × 1 tiles and the whole image as one more: {tokens} tokens"
    assert len(captions) == 2 + 8 and "frame 8 of 8" in captions[-1]
    assert len(session.media) == 1  # only shown
    assert "1 × 1 块" in session.tilings("zh", 1, [wide])[1][1]


def test_boxes_belong_to_the_last_image(session, picture, clip):
    said = "<ref>a</ref><box>[[1, 2, 3, 4]]</box>"
    assert session.drawn_boxes(said) is None
    answer(session, "What is this?", [picture, clip], num_segments=2)
    assert session.drawn_boxes(said).size == (448, 448)
    assert session.drawn_boxes("no box") is None


@pytest.mark.parametrize(
    "said, shown",
    [
        ("a < b & c", "a &lt; b &amp; c"),
        ("<b>bold</b>", "&lt;b>bold&lt;/b>"),
        ("`a < b` < c", "`a < b` &lt; c"),
        ("```\n<p>\n``` <p>", "```\n<p>\n``` &lt;p>"),
        ("The <ref>cat</ref><box>[[1, 2, 3, 4]]</box>", "The **cat** `[[1, 2, 3, 4]]`"),
        ("**bold**\n- item", "**bold**\n- item"),
    ],
)
def test_answers_as_markdown(said, shown):
    assert as_markdown(said) == shown


# --- texts and the page -----------------------------------------------------------------------------------------------


def test_texts_have_the_same_keys_and_values_in_both_languages():
    def fields(text):
        return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)

    assert TEXTS["en"].keys() == TEXTS["zh"].keys()
    for key, english in TEXTS["en"].items():
        assert fields(english) == fields(TEXTS["zh"][key]), key


@pytest.mark.parametrize(
    "header, language",
    [
        (None, "en"),
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("de-DE,de;q=0.9,ZH-tw;q=0.8", "zh"),
        ("en,zh", "en"),
    ],
)
def test_language_of_the_browser(header, language):
    assert preferred(header) == language


def test_the_page_asks_nobody_else(shipped_model, shipped_tokenizer, monkeypatch):
    """The page is made without a connection; no function of it is offered as an API but the ones it uses itself."""
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    pytest.importorskip("gradio.blocks")  # a folder called gradio, such as the one for uploads, is no gradio
    from internvl_chat.demo_page_internvl import build_page

    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected"))
    page = build_page(shipped_model, shipped_tokenizer)
    assert not page.analytics_enabled
    assert "http" not in str([part["props"] for part in page.config["components"]])
    assert all(event["api_visibility"] == "private" for event in page.config["dependencies"] if event["backend_fn"])
