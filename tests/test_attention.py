"""The forms of attention for a processor against torch's own, and through `chat` on the shipped checkpoint."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from internvl_chat import attention_internvl, load_image
from internvl_chat.attention_internvl import GROUPED, GROUPED_IS_KNOWN, attention_in_blocks, grouped_step

ROOT = attention_internvl.__file__.rsplit("/", 1)[0]


def drawn(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype, off", [(torch.float32, 1e-6), (torch.bfloat16, 0.02), (torch.float16, 0.002)])
@pytest.mark.parametrize("heads_at_once", [1, 4, 6, 100])  # 12 in all: whole blocks, 6 of them at last, one block
@pytest.mark.parametrize("key_layout", ["plain", "strided"])
def test_blocks_are_plain_attention(monkeypatch, dtype, off, heads_at_once, key_layout):
    query, key, value = drawn(*[(2, 6, 50, 16)] * 3, dtype=dtype)
    if key_layout == "strided":  # as the fused projection gives them
        query, key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (query, key, value))
    monkeypatch.setattr(attention_internvl, "_SCORES_BYTES", heads_at_once * 50 * 50 * query.element_size())
    expected = F.scaled_dot_product_attention(*(x.double() for x in (query, key, value)), scale=0.3).transpose(1, 2)
    torch.testing.assert_close(attention_in_blocks(query, key, value, 0.3).double(), expected, atol=off, rtol=off)


def test_blocks_where_autocast_mixes_dtypes(toy_model):
    """Normalised queries are float32 there, values bfloat16."""
    tower = toy_model(vision={"qk_normalization": True, "norm_type": "rms_norm"}).vision_model.eval()
    (pixels,) = drawn((2, 3, 56, 56))
    tower.config._attn_implementation = "eager"
    with torch.no_grad():
        expected = tower(pixel_values=pixels).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            actual = tower(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(actual.float(), expected, atol=0.2, rtol=0.2)


@pytest.mark.parametrize("key_heads", [1, 2, 6])
@pytest.mark.parametrize("mask", ["none", "padding", "bias of each head"])
def test_a_grouped_step_is_attention_with_repeated_keys(key_heads, mask):
    query, key, value, bias = drawn((2, 6, 1, 16), *[(2, key_heads, 9, 16)] * 2, (2, 6, 1, 9))
    if mask != "bias of each head":
        bias = None if mask == "none" else torch.arange(9).ge(torch.tensor([0, 4])[:, None])[:, None, None]
    repeated = [x.repeat_interleave(6 // key_heads, dim=1) for x in (key, value)]
    expected = F.scaled_dot_product_attention(query, *repeated, attn_mask=bias, scale=0.4).transpose(1, 2)
    torch.testing.assert_close(grouped_step(query, key, value, bias, 0.4), expected)


@pytest.mark.skipif(not GROUPED_IS_KNOWN, reason="this transformers has no register of masks")
@pytest.mark.parametrize(
    "asked, vision, llm",
    [
        ({}, "sdpa", GROUPED),
        ({"attn_implementation": "sdpa"}, "sdpa", "sdpa"),
        ({"attn_implementation": "eager"}, "eager", "eager"),
        ({"attn_implementation": {"vision_config": "eager"}}, "eager", GROUPED),
        ({"attn_implementation": {"llm_config": "sdpa"}}, "sdpa", "sdpa"),
    ],
)
def test_who_asks_for_a_backend_gets_it_and_answers_stay(monkeypatch, asked, vision, llm):
    steps = []
    monkeypatch.setattr(attention_internvl, "grouped_step", lambda *inputs: steps.append(1) or grouped_step(*inputs))
    model, tokenizer = AutoModel.from_pretrained(ROOT, **asked).eval(), AutoTokenizer.from_pretrained(ROOT)
    assert model.vision_model.config._attn_implementation == vision
    assert model.language_model.config._attn_implementation == llm
    pixels = load_image(f"{ROOT}/examples/image1.jpg", max_num=4)
    settings = {"max_new_tokens": 30, "do_sample": False}
    questions = ["<image>\nDescribe this image.", "Hello!"]  # of two lengths, so that there is padding
    answers = model.batch_chat(tokenizer, pixels, questions, settings, num_patches_list=[len(pixels), 0])
    assert bool(steps) == (llm == GROUPED)
    steps.clear()
    single = [model.chat(tokenizer, pixels, questions[0], settings), model.chat(tokenizer, None, "Hello!", settings)]
    assert answers == single and all(answers)
    assert bool(steps) == (llm == GROUPED)
    assert GROUPED not in model.config.to_json_string()
    if asked:
        reference = AutoModel.from_pretrained(ROOT).eval()
        assert reference.chat(tokenizer, pixels, questions[0], settings) == answers[0]
