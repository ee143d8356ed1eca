"""Conversations over the pictures and the video of `examples/`, as messages for a processor."""

from pathlib import Path

import internvl_chat

ROOT = Path(__file__).resolve().parent.parent
ONE, OTHER, WIDE = (str(ROOT / "examples" / name) for name in ("image1.jpg", "image2.jpg", "wide.png"))
CLIP = str(ROOT / "examples" / "moving_circle.mp4")
FRAMES = 3  # of the video, where a test does not say otherwise


def prepared(processor, messages, **options):
    options = {"add_generation_prompt": True, "return_tensors": "pt", **options}
    return processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)


def user(*parts):
    """A user's message of texts and of paths of pictures and videos."""
    kinds = {".jpg": "image", ".png": "image", ".mp4": "video"}
    content = []
    for part in parts:
        kind = kinds.get(Path(part).suffix)
        content.append({"type": kind, "url": str(part)} if kind else {"type": "text", "text": part})
    return {"role": "user", "content": content}


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def frames_of(path, count=FRAMES) -> list:
    return internvl_chat.read_frames(path, num_segments=count).frames
