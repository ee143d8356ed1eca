"""Media into the processor: where they come from, how they are cut and counted, what a call and a folder may say."""

import base64
import copy
import http.server
import io
import json
import pickle
import re
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import CLIP, FRAMES, ONE, ROOT, WIDE, assistant, frames_of, prepared, user
from PIL import Image

import internvl_chat
from internvl_chat import InternVLChatImageProcessor, InternVLChatProcessor, InternVLChatVideoProcessor
from internvl_chat.chat_template_internvl import jinja_template
from internvl_chat.image_processing_internvl import PROCESSOR_FILES
from internvl_chat.preprocessing_internvl import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture(scope="module")
def processor():
    return InternVLChatProcessor.from_pretrained(ROOT)


# --- sources of media -------------------------------------------------------------------------------------------------


def png(path) -> bytes:
    buffer = io.BytesIO()
    Image.open(path).save(buffer, "PNG")
    return buffer.getvalue()


def data_url(content: bytes, kind) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


IMAGE_PARTS = {
    "path": lambda: {"type": "image", "path": WIDE},
    "url": lambda: {"type": "image", "url": WIDE},
    "Path": lambda: {"type": "image", "image": Path(WIDE)},
    "PIL": lambda: {"type": "image", "image": Image.open(WIDE)},
    "array": lambda: {"type": "image", "image": np.asarray(Image.open(WIDE).convert("RGB"))},
    "tensor": lambda: {
        "type": "image",
        "image": torch.tensor(np.asarray(Image.open(WIDE).convert("RGB"))).permute(2, 0, 1),
    },
    "bytes": lambda: {"type": "image", "image": png(WIDE)},
    "data URL": lambda: {"type": "image", "url": data_url(png(WIDE), "image/png")},
    "base64": lambda: {"type": "image", "base64": base64.b64encode(png(WIDE)).decode()},
    "OpenAI": lambda: {"type": "image_url", "image_url": {"url": data_url(png(WIDE), "image/png"), "detail": "high"}},
    "OpenAI, short": lambda: {"type": "image_url", "image_url": WIDE},
}


@pytest.mark.parametrize("name", IMAGE_PARTS)
def test_sources_of_images(processor, name):
    part = IMAGE_PARTS[name]()
    inputs = prepared(processor, [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}])
    assert torch.equal(inputs["pixel_values"], internvl_chat.load_image(WIDE))
    assert inputs["input_ids"].tolist() == prepared(processor, [user(WIDE, "What?")])["input_ids"].tolist()


VIDEO_PARTS = {
    "path": lambda: {"type": "video", "path": CLIP},
    "Path": lambda: {"type": "video", "video": Path(CLIP)},
    "bytes": lambda: {"type": "video", "video": Path(CLIP).read_bytes()},
    "data URL": lambda: {"type": "video", "url": data_url(Path(CLIP).read_bytes(), "video/mp4")},
    "OpenAI": lambda: {"type": "video_url", "video_url": {"url": CLIP}},
    "pictures": lambda: {"type": "video", "video": frames_of(CLIP)},
    "array": lambda: {"type": "video", "video": np.stack([np.asarray(frame) for frame in frames_of(CLIP)])},
    "tensor": lambda: {
        "type": "video",
        "video": torch.stack([torch.tensor(np.asarray(frame)).permute(2, 0, 1) for frame in frames_of(CLIP)]),
    },
    "VideoFrames": lambda: {"type": "video", "video": internvl_chat.read_frames(CLIP, num_segments=FRAMES)},
}


@pytest.mark.parametrize("name", VIDEO_PARTS)
def test_sources_of_videos(processor, name):
    part = VIDEO_PARTS[name]()
    inputs = prepared(processor, [{"role": "user", "content": [part, "What?"]}], num_frames=FRAMES)
    assert torch.equal(inputs["pixel_values"], internvl_chat.load_video(CLIP, num_segments=FRAMES)[0])


def test_frames_by_their_paths(processor, tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(FRAMES)]
    for path, frame in zip(paths, frames_of(CLIP)):
        frame.save(path)
    inputs = prepared(processor, [{"role": "user", "content": [{"type": "video", "video": paths}, "What?"]}])
    assert torch.equal(inputs["pixel_values"], internvl_chat.load_video(CLIP, num_segments=FRAMES)[0])


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, dict(num_segments=32)),
        ({"num_frames": 5}, dict(num_segments=5)),
        ({"fps": 2}, dict(fps=2)),
        ({"fps": 2.0, "do_sample_frames": True}, dict(fps=2)),
        ({"do_sample_frames": False}, dict(fps=10**6)),
        ({"videos_kwargs": {"num_frames": 2, "max_patches": 4}}, dict(num_segments=2, max_num=4)),
        ({"processor_kwargs": {"num_frames": 2}}, dict(num_segments=2)),
        ({"processor_kwargs": {"videos_kwargs": {"num_frames": 2}}}, dict(num_segments=2)),
    ],
)
def test_choice_of_frames(processor, options, expected):
    pixels, patches = internvl_chat.load_video(CLIP, **expected)
    inputs = prepared(processor, [user(CLIP, "What?")], **options)
    assert torch.equal(inputs["pixel_values"], pixels)
    frames = re.findall(r"Frame(\d+): ", processor.decode(inputs["input_ids"][0]))
    assert frames == [str(index + 1) for index in range(len(patches))]
    if options == {"do_sample_frames": False}:
        assert len(patches) == internvl_chat.read_frames(CLIP).total_frames


def test_frames_given_as_such(processor):
    frames = frames_of(CLIP, 6)
    whole = processor.video_processor(frames, return_tensors="pt")["pixel_values_videos"]
    assert whole.shape == (1, 6, 3, 448, 448)
    spread = internvl_chat.get_index(None, 1, 5, num_segments=2)
    for options, chosen in [({"num_frames": 2}, spread), ({"num_frames": 2, "do_sample_frames": False}, range(6))]:
        some = processor.video_processor(frames, return_tensors="pt", **options)["pixel_values_videos"]
        assert torch.equal(some[0], whole[0][list(chosen)])
    with pytest.raises(ValueError, match="no times"):
        processor.video_processor(frames, fps=2)
    with pytest.raises(ValueError, match="exclude each other"):
        processor.video_processor(CLIP, fps=2, num_frames=2)
    with pytest.raises(ValueError, match="num_frames must be at least 1"):
        processor.video_processor(frames, num_frames=0)
    still = InternVLChatVideoProcessor(do_sample_frames=False, fps=1)
    for options, expected in [({}, 10**6), ({"num_frames": 2}, None), ({"fps": 2}, 2)]:
        some = still(CLIP, return_tensors="pt", **options)["pixel_values_videos"][0]
        assert torch.equal(some, internvl_chat.load_video(CLIP, num_segments=2, fps=expected)[0])
    two = processor.video_processor([CLIP, frames], num_frames=6)["pixel_values_videos"]
    assert torch.equal(two[0], two[1])


class Answer(http.server.BaseHTTPRequestHandler):
    content = b""

    def do_GET(self):
        self.send_response(200 if self.path == "/picture" else 404)
        self.end_headers()
        if self.path == "/picture":
            self.wfile.write(self.content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Answer,), {"content": png(WIDE)})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def test_the_web_is_asked_only_with_leave(processor, server, tmp_path):
    messages = [{"role": "user", "content": [{"type": "image", "url": f"{server}/picture"}, "What?"]}]
    with pytest.raises(internvl_chat.ImageLoadError, match="allow_urls=True"):
        prepared(processor, messages)
    expected = internvl_chat.load_image(WIDE)
    assert torch.equal(prepared(processor, messages, allow_urls=True)["pixel_values"], expected)
    willing = copy.copy(processor)
    willing.allow_urls = True
    assert torch.equal(prepared(willing, messages)["pixel_values"], expected)
    with pytest.raises(internvl_chat.ImageLoadError, match="allow_urls"):
        prepared(willing, messages, allow_urls=False)
    with pytest.raises(internvl_chat.ImageLoadError, match="cannot download.*404"):
        prepared(processor, [{"role": "user", "content": [{"type": "image", "url": f"{server}/x"}]}], allow_urls=True)
    # a checkpoint cannot switch it on
    willing.save_pretrained(tmp_path)
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "allow_urls": True}))
    assert InternVLChatProcessor.from_pretrained(tmp_path).allow_urls is False
    assert InternVLChatProcessor.from_pretrained(tmp_path, allow_urls=True).allow_urls is True


def test_a_download_has_a_limit(processor, server, monkeypatch):
    monkeypatch.setattr("internvl_chat.messages_internvl.DOWNLOAD_BYTES", 100)
    messages = [{"role": "user", "content": [{"type": "image", "url": f"{server}/picture"}]}]
    with pytest.raises(internvl_chat.ImageLoadError, match="larger than 100 bytes"):
        prepared(processor, messages, allow_urls=True)


# --- geometry, against transformers' own InternVL ---------------------------------------------------------------------

GotOcr2 = getattr(transformers, "GotOcr2ImageProcessor", None)
NativeProcessor = getattr(transformers, "InternVLProcessor", None)
LIMITS = [(1, 12), (1, 1), (2, 6), (3, 3)]


def native_images(**settings):
    return GotOcr2(
        size={"height": 448, "width": 448},
        crop_to_patches=True,
        image_mean=list(IMAGENET_MEAN),
        image_std=list(IMAGENET_STD),
        **settings,
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from(LIMITS), st.booleans())
def test_counted_tiles_are_the_tiles_cut(processor, height, width, limits, thumbnail):
    options = dict(min_patches=limits[0], max_patches=limits[1], use_thumbnail=thumbnail)
    counts = processor._get_num_multimodal_tokens(image_sizes=[(height, width)], **options)
    side = dict(size=16)  # small tiles, and a picture in proportion, are cut fast
    options.update(side)
    small = Image.new("L", (width, height)).resize((max(1, width // 8), max(1, height // 8)))
    of_small = processor.image_processor.get_number_of_image_patches(small.height, small.width, options)
    assert of_small == len(processor.image_processor.tiles(small, **options))
    patches = counts["num_image_patches"][0]
    assert counts["num_image_tokens"] == [2 + patches * processor.image_seq_length]
    if GotOcr2 is not None:  # its own count is one too many for a single tile in 4.53
        canvas = sys.modules[GotOcr2.__module__].get_optimal_tiled_canvas
        columns, rows = canvas((height, width), (448, 448), *limits)
        assert patches == columns * rows + (thumbnail and columns * rows > 1)


@pytest.mark.parametrize("path", [ONE, WIDE, CLIP])
def test_counted_tokens_are_the_tokens_of_the_prompt(processor, path):
    if path == CLIP:
        frames = frames_of(CLIP)
        sizes, messages = [(frame.height, frame.width) for frame in frames], [user(CLIP, "What?")]
    else:
        sizes, messages = [Image.open(path).size[::-1]], [user(path, "What?")]
    options = {"max_patches": 1} if path == CLIP else {}
    counts = processor._get_num_multimodal_tokens(image_sizes=sizes, **options)
    inputs = prepared(processor, messages, num_frames=FRAMES, return_mm_token_type_ids=True)
    assert inputs["mm_token_type_ids"].sum() == sum(counts["num_image_tokens"])
    ids, kinds = inputs["input_ids"][0], inputs["mm_token_type_ids"][0]
    assert {int(number) for number in ids[kinds == 1]} == set(processor.image_token_ids)
    assert len(inputs["pixel_values"]) == sum(counts["num_image_patches"])


def test_no_sizes_no_counts(processor):
    assert not any((getattr(processor._get_num_multimodal_tokens(), "__dict__", None) or {}).values())
    assert processor._get_num_multimodal_tokens(image_sizes=[])["num_image_tokens"] == []


@pytest.fixture(scope="module")
def native(processor):
    """transformers' own processor over the same tokenizer, tile size, mean and template."""
    if NativeProcessor is None or not hasattr(transformers, "InternVLVideoProcessor"):
        pytest.skip("this transformers has no InternVLVideoProcessor")
    tokenizer = copy.deepcopy(processor.tokenizer)
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    for name, token in {**names, "video_token": "<video>"}.items():
        object.__setattr__(tokenizer, name, token)
        object.__setattr__(tokenizer, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    images = native_images(min_patches=1, max_patches=12)
    same = {"size": images.size, "image_mean": images.image_mean, "image_std": images.image_std}
    videos = transformers.InternVLVideoProcessor(**same)
    template = processor.chat_template.replace("<image>", "<IMG_CONTEXT>")
    return NativeProcessor(images, tokenizer, videos, processor.image_seq_length, chat_template=template)


@pytest.fixture
def noise(tmp_path):
    """A picture in which every pixel shows how it was resized."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return str(tmp_path / "noise.png")


@pytest.mark.parametrize("parts", [("noise", "Describe."), (WIDE, "a", "noise", "b"), ("Hello",), (CLIP, ONE, "What?")])
def test_equals_transformers_own_processor(processor, native, noise, parts):
    """Same ids; pixels up to its resize, which rounds to whole levels of brightness: it is off by up to two."""
    messages = [user(*(noise if part == "noise" else part for part in parts))]
    for part in messages[0]["content"]:
        if part["type"] == "video":  # it decodes by other means: the same frames for both
            part["video"] = np.stack([np.asarray(frame) for frame in frames_of(part.pop("url"))])
    ours = prepared(processor, copy.deepcopy(messages))
    prompt = native.apply_chat_template(messages, add_generation_prompt=True)
    videos = [part["video"] for part in messages[0]["content"] if part["type"] == "video"]
    images = [Image.open(part["url"]).convert("RGB") for part in messages[0]["content"] if part["type"] == "image"]
    theirs = native(text=[prompt], images=images or None, videos=videos or None, return_tensors="pt")
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert ("pixel_values" in ours) == ("pixel_values" in theirs)
    if "pixel_values" in theirs:
        assert ours["pixel_values"].shape == theirs["pixel_values"].shape
        levels = (ours["pixel_values"] - theirs["pixel_values"]).abs() * torch.tensor(IMAGENET_STD)[:, None, None] * 255
        assert levels.max() < 2.01
        assert (levels > 0.5).float().mean() < 0.01


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, width, left",
    [
        ({"padding": True}, 6, True),
        ({"padding": "longest"}, 6, True),
        ({"padding": True, "padding_side": "right"}, 6, False),
        ({"padding": "max_length", "max_length": 9}, 9, True),
        ({"padding": True, "pad_to_multiple_of": 4}, 8, True),
        ({"text_kwargs": {"padding": True, "return_tensors": "pt"}}, 6, True),
        ({"padding": True, "truncation": True, "max_length": 4}, 4, True),
        ({"padding": True, "truncation": True}, 6, True),
    ],
)
def test_padding(processor, options, width, left):
    tokenizer = processor.tokenizer
    texts, lengths = ["<|im_end|>", "<|im_end|>" * 6], [1, 6]
    inputs = processor(text=texts, return_tensors="pt", **options)
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (2, width)
    ones = [min(length, width) for length in lengths]
    expected = [[0] * (width - n) + [1] * n if left else [1] * n + [0] * (width - n) for n in ones]
    assert inputs["attention_mask"].tolist() == expected
    assert (inputs["input_ids"][inputs["attention_mask"] == 0] == tokenizer.pad_token_id).all()
    assert (inputs["input_ids"][inputs["attention_mask"] == 1] == tokenizer.eos_token_id).all()


def test_forms_of_the_result(processor):
    lists = processor(text=["a", "a b c d e f"])
    assert isinstance(lists["input_ids"], list) and len({len(row) for row in lists["input_ids"]}) == 2
    arrays = processor(text="<image>", images=ONE, return_tensors="np")
    assert all(isinstance(value, np.ndarray) for value in arrays.values())
    alone = processor(text="a", return_attention_mask=False)
    assert set(alone) == {"input_ids"}
    moved = processor(text="<image>", images=ONE, return_tensors="pt").to("cpu", dtype=torch.bfloat16)
    assert moved["pixel_values"].dtype == torch.bfloat16 and moved["input_ids"].dtype == torch.int64
    pixels = processor(images=[WIDE, ONE], return_tensors="pt")
    assert pixels["num_patches"].tolist() == [3, 1] and len(pixels["pixel_values"]) == 4
    ids = processor.apply_chat_template([user("a")], tokenize=True)
    assert ids == [processor.tokenizer(processor.apply_chat_template([user("a")]))["input_ids"]]


@pytest.mark.parametrize(
    "options, tiles",
    [({}, 3), ({"max_patches": 1}, 1), ({"crop_to_patches": False}, 1), ({"use_thumbnail": False}, 2),
     ({"images_kwargs": {"max_patches": 1}}, 1), ({"min_patches": 3, "max_patches": 3}, 4)],
)  # fmt: skip
def test_options_of_the_image_part(processor, options, tiles):
    inputs = prepared(processor, [user(WIDE, "What?")], **options)
    assert len(inputs["pixel_values"]) == tiles
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(processor.image_token_id) == tiles * processor.image_seq_length


WRONG = {
    "more images than places": (partial(dict, text="<image>", images=[ONE, ONE]), ValueError, "1 places.*given were 2"),
    "no image": (partial(dict, text="<image>"), ValueError, "1 places for a image|1 places.*given were 0"),
    "no place": (partial(dict, text="a", images=ONE), ValueError, "0 places.*given were 1"),
    "no video": (partial(dict, text="<video>"), ValueError, "1 places for a video"),
    "wrong row": (
        partial(dict, text=["<image>", "a"], images=[[], [ONE]], padding=True),
        ValueError,
        r"\[1, 0\] places.*\[0, 1\]",
    ),
    "no tensor": (partial(dict, text=["a", "a b c d"], return_tensors="pt"), ValueError, "padding=True"),
    "no length": (partial(dict, text="a", padding="max_length"), ValueError, "needs max_length"),
    "cut image": (
        partial(dict, text="<image>", images=ONE, truncation=True, max_length=10),
        ValueError,
        "9 image tokens where its images have",
    ),
    "raw pixels": (
        partial(dict, text="<image>", images=ONE, do_normalize=False),
        TypeError,
        "no option do_normalize",
    ),
    "unknown text option": (partial(dict, text="a", text_kwargs={"pading": True}), TypeError, "no option pading"),
    "unknown option": (partial(dict, text="a", num_frame=3), TypeError, "no option num_frame; options: .*num_frames"),
    "unknown image option": (
        partial(dict, text="<image>", images=ONE, images_kwargs={"max_num": 3}),
        TypeError,
        "no option max_num; options: size",
    ),
    "text that is none": (partial(dict, text=[["a"]]), TypeError, "list of strings"),
    "no text": (partial(dict, videos=CLIP), ValueError, "expected text"),
    "missing file": (partial(dict, text="<image>", images="nowhere.png"), FileNotFoundError, "nowhere"),
    "broken data URL": (
        partial(dict, text="<image>", images="data:image/png;base64,?"),
        internvl_chat.ImageLoadError,
        "base64",
    ),
    "other data URL": (partial(dict, text="<image>", images="data:a/b,c"), internvl_chat.ImageLoadError, "data URL"),
    "web": (partial(dict, text="<video>", videos="https://x/y.mp4"), internvl_chat.VideoLoadError, "allow_urls"),
    "other scheme": (partial(dict, text="<image>", images="file:///etc/passwd"), internvl_chat.ImageLoadError, "URL"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_errors_of_a_call(processor, name):
    arguments, error, message = WRONG[name]
    with pytest.raises(error, match=message):
        processor(**arguments())


@pytest.mark.parametrize(
    "messages, error, message",
    [
        ("Hello", TypeError, "list of messages"),
        ([], ValueError, "at least one message"),
        (["Hello"], TypeError, r"messages\[0\] must be a dictionary"),
        ([{"content": "a"}], ValueError, "no role"),
        ([{"role": "user", "content": [{"type": "image"}]}], ValueError, "image.*none of the keys image, url"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "a"}]}], Exception, "audio.*not known"),
        ([{"role": "observer", "content": "a"}], Exception, "observer.*choices: system, user, assistant, tool"),
    ],
)
def test_errors_of_messages(processor, messages, error, message):
    with pytest.raises(error, match=message):
        processor.apply_chat_template(messages, tokenize=True)


def test_a_processor_without_template_or_tokenizer(processor):
    with pytest.raises(ValueError, match="tokenizer"):
        InternVLChatProcessor()
    bare = InternVLChatProcessor(tokenizer=processor.tokenizer)
    with pytest.raises(ValueError, match="chat template"):
        bare.apply_chat_template([user("a")])
    with pytest.raises(ValueError, match="square"):
        InternVLChatImageProcessor(size={"height": 448, "width": 224})


# --- loading and saving -----------------------------------------------------------------------------------------------


def test_round_trip(processor, tmp_path):
    changed = InternVLChatProcessor.from_pretrained(ROOT, max_patches=4, num_frames=5)
    changed.chat_template = "{# own #}" + processor.chat_template
    paths = changed.save_pretrained(tmp_path / "saved")
    assert all(Path(path).is_file() for path in paths)
    again = InternVLChatProcessor.from_pretrained(tmp_path / "saved")
    assert again.image_processor.to_dict() == changed.image_processor.to_dict()
    assert again.video_processor.to_dict() == changed.video_processor.to_dict()
    assert again.to_dict() == changed.to_dict() and again.chat_template == changed.chat_template
    assert (again.image_processor.max_patches, again.video_processor.num_frames) == (4, 5)
    messages = [user(ONE, "What?"), assistant("A"), user(CLIP, "And?")]
    for copied in (again, copy.deepcopy(changed), pickle.loads(pickle.dumps(changed))):
        for name, value in prepared(changed, messages).items():
            assert torch.equal(prepared(copied, messages)[name], value)
    assert "InternVLChatImageProcessor" in repr(again)
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names >= {*PROCESSOR_FILES, "processor_config.json", "preprocessor_config.json", "chat_template.jinja"}
    again.save_pretrained(tmp_path / "saved")  # over the folder that it came from
    assert InternVLChatProcessor.from_pretrained(tmp_path / "saved").to_dict() == changed.to_dict()


def test_parts_alone(processor, tmp_path):
    processor.image_processor.save_pretrained(tmp_path)
    processor.video_processor.save_pretrained(tmp_path)
    images = InternVLChatImageProcessor.from_pretrained(tmp_path, max_patches=2)
    assert images.to_dict() == {**processor.image_processor.to_dict(), "max_patches": 2}
    assert InternVLChatVideoProcessor.from_pretrained(tmp_path).to_dict() == processor.video_processor.to_dict()
    made, unused = InternVLChatProcessor.from_pretrained(ROOT, return_unused_kwargs=True)
    assert made.to_dict() == processor.to_dict() and unused == {}
    _, unused = InternVLChatImageProcessor.from_pretrained(tmp_path, colour="red", return_unused_kwargs=True)
    assert unused == {"colour": "red"}
    clip = transformers.CLIPImageProcessor.from_pretrained(tmp_path)  # published files name this class
    assert clip(Image.open(ONE), return_tensors="pt")["pixel_values"].shape == (1, 3, 448, 448)


def test_a_published_folder_needs_no_processor_files(processor, shipped_model, tmp_path):
    """Published checkpoints have a `preprocessor_config.json` of CLIP, and no processor."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    values = json.loads((ROOT / "config.json").read_text(encoding="utf-8"))
    values.update(max_dynamic_patch=6, use_thumbnail=False, template="Hermes-2", system_message=None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    published = {
        "crop_size": 448,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.1] * 3,
        "size": 448,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    made = InternVLChatProcessor.from_pretrained(tmp_path)
    assert (made.image_processor.max_patches, made.image_processor.use_thumbnail) == (6, False)
    assert made.image_processor.image_mean == processor.image_processor.image_mean  # as `chat` has it
    assert made.image_seq_length == shipped_model.num_image_token
    assert made.chat_template == jinja_template(internvl_chat.get_conv_template("Hermes-2"))
    for part in (InternVLChatProcessor, InternVLChatImageProcessor, InternVLChatVideoProcessor):
        with pytest.raises(OSError, match="config.json"):
            part.from_pretrained(tmp_path / "nowhere" if part is None else str(ROOT / "examples"))


def test_the_files_named_are_the_files_needed():
    def imports(name):
        return {f"{found}.py" for found in re.findall(r"^from \.(\w+) import", (ROOT / name).read_text(), re.MULTILINE)}

    needed, new = set(), {"processing_internvl.py"}
    while new:
        needed |= new
        new = {name for found in new for name in imports(found)} - needed
    assert needed == set(PROCESSOR_FILES)
