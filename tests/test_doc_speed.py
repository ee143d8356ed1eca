"""docs/speed.md is true: its Python blocks run, in order, and say what it says."""

import shutil

import pytest
import torch
import transformers
from doc_pages import blocks, run_python

PAGE = "docs/speed.md"

if not hasattr(transformers.PreTrainedModel, "set_attn_implementation"):
    pytest.skip("this transformers cannot switch the backend of a part", allow_module_level=True)


def test_the_page(checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    names = run_python((checkpoint / PAGE).read_text(encoding="utf-8"), PAGE)
    first = names["pixel_values"][: names["counts"][0]]
    torch.testing.assert_close(names["nearly"], first, atol=2.5 / 255 / 0.224, rtol=0)
    assert len(names["history"]) == 2 and len(names["answers"]) == 3 and names["answer"]
    assert names["model"].vision_model.config._attn_implementation == "sdpa"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_the_tower_compiles(checkpoint, shipped_tokenizer):
    model = transformers.AutoModel.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    pixels = model.load_image(checkpoint / "examples" / "wide.png", max_num=6)
    question, settings = "<image>\nDescribe the image.", {"max_new_tokens": 32, "do_sample": False}
    before = model.chat(shipped_tokenizer, pixels, question, settings)
    features = model.extract_feature(pixels)
    (block,) = blocks((checkpoint / PAGE).read_text(encoding="utf-8"), "py")
    exec(block, {"model": model})
    with torch.no_grad():
        torch.testing.assert_close(model.extract_feature(pixels), features, atol=1e-4, rtol=1e-4)
    assert model.chat(shipped_tokenizer, pixels, question, settings) == before
