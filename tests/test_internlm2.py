"""InternLM2 against transformers' Llama, which computes the same from the same weights in another layout."""

import types

import pytest
import torch
import torch.nn.functional as F
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from internvl_chat import modeling_internlm2
from internvl_chat.configuration_internlm2 import InternLM2Config
from internvl_chat.modeling_internlm2 import InternLM2ForCausalLM, InternLM2Model, causal_mask, rotary_tables

TRAINED = 16  # max_position_embeddings: the longer prompts below are beyond it
TOY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TRAINED,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "pad_token_id": 2,
    "bos_token_id": 1,
    "eos_token_id": None,
    "tie_word_embeddings": False,
}
LINEAR, DYNAMIC = {"type": "linear", "factor": 2.0}, {"type": "dynamic", "factor": 3.0}


def relayout(state, config):
    """Llama's state dictionary under InternLM2's names, queries, keys and values in groups of one key head each."""
    groups, size = config.num_key_value_heads, config.head_dim
    names = {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
             "mlp.down_proj": "feed_forward.w2", "input_layernorm": "attention_norm",
             "post_attention_layernorm": "ffn_norm", "embed_tokens": "tok_embeddings", "lm_head": "output"}  # fmt: skip
    result = {}
    for name, tensor in state.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            parts = [state[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            parts = [part.reshape(groups, -1, size, *part.shape[1:]) for part in parts]
            tensor = torch.cat(parts, dim=1).flatten(0, 2)
            name = name.replace("self_attn.q_proj", "attention.wqkv")
        for old, new in names.items():
            name = name.replace(old, new)
        result[name] = tensor
    return result


def make_pair(draw_weights, bias=False, attn="sdpa", **changes):
    """A Llama and an InternLM2 with the same weights."""
    values = {**TOY, **changes}
    llama = LlamaForCausalLM(LlamaConfig(**values, attention_bias=bias, attn_implementation="eager"))
    draw_weights(llama.eval())
    config = InternLM2Config(**values, bias=bias, attn_implementation=attn)
    ours = InternLM2ForCausalLM(config).eval()
    ours.load_state_dict(relayout(llama.state_dict(), config), strict=True)
    return llama, ours


@pytest.fixture
def pair(draw_weights):
    return lambda **changes: make_pair(draw_weights, **changes)


@pytest.fixture
def model(draw_weights):
    return lambda **changes: make_pair(draw_weights, **changes)[1]


def prompt(*shape, seed=0):
    return torch.randint(3, TOY["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def greedy(model, ids=None, **kwargs):
    kwargs.setdefault("attention_mask", torch.ones_like(ids) if ids is not None else None)
    kwargs = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 2, **kwargs}
    return model.generate(**({} if ids is None else {"input_ids": ids}), **kwargs)


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=1e-5)


LEFT_PADDED = torch.tensor([[1] * 12, [0] * 4 + [1] * 8])

# --- the same as Llama ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "bias": True},
        {"attn": "eager", "bias": True},
        {"rope_scaling": LINEAR},
        {"rope_scaling": DYNAMIC},
        {"rope_scaling": DYNAMIC, "attn": "eager", "num_key_value_heads": 1},
        {"tie_word_embeddings": True},
        {"hidden_act": "gelu", "rms_norm_eps": 1e-3, "rope_theta": 1e6},
    ],
    ids=str,
)
def test_equals_llama(pair, changes):
    for length in (5, TRAINED + 8):
        llama, ours = pair(**changes)
        ids = prompt(2, length)
        with torch.no_grad():
            expected, actual = llama(ids, output_hidden_states=True), ours(ids, output_hidden_states=True)
        close(actual.logits, expected.logits)
        for mine, theirs in zip(actual.hidden_states, expected.hidden_states):
            close(mine, theirs)
    llama, ours = pair(**changes)  # fresh: Llama's tables remember the longest text that they have seen
    ids = prompt(2, TRAINED - 5)  # the answer grows beyond the trained length
    assert greedy(ours, ids).tolist() == greedy(llama, ids).tolist()


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_left_padding_equals_llama_and_the_row_alone(pair, attn):
    llama, ours = pair(attn=attn)
    ids = prompt(2, 12)
    positions = (LEFT_PADDED.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        actual = ours(ids, attention_mask=LEFT_PADDED).logits
        expected = llama(ids, attention_mask=LEFT_PADDED, position_ids=positions).logits
        alone = ours(ids[1:, 4:]).logits
    visible = LEFT_PADDED.bool()
    close(actual[visible], expected[visible])
    close(actual[1:, 4:], alone)
    assert actual.isfinite().all()
    batch = greedy(ours, ids, attention_mask=LEFT_PADDED)
    assert batch.tolist() == greedy(llama, ids, attention_mask=LEFT_PADDED).tolist()
    assert batch[1, 4:].tolist() == greedy(ours, ids[1:, 4:])[0].tolist()


def test_right_padding_leaves_the_text_alone(model):
    ours, ids = model(), prompt(1, 9)
    mask = torch.tensor([[1] * 6 + [0] * 3])
    with torch.no_grad():
        close(ours(ids, attention_mask=mask).logits[:, :6], ours(ids[:, :6]).logits)


def test_beams_equal_llama(pair):
    llama, ours = pair()
    ids = prompt(2, 12)
    kwargs = {"attention_mask": LEFT_PADDED, "num_beams": 3}
    assert greedy(ours, ids, **kwargs).tolist() == greedy(llama, ids, **kwargs).tolist()


def test_loss_and_gradients_equal_llama(pair):
    llama, ours = pair(bias=True)
    ids = prompt(2, 9)
    labels = ids.clone()
    labels[0, :4] = -100
    losses = [one(ids, labels=labels).loss for one in (llama, ours)]
    close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    expected = relayout({name: p.grad for name, p in llama.named_parameters()}, ours.config)
    for name, parameter in ours.named_parameters():
        close(parameter.grad, expected[name])
    counted = ours(ids, labels=labels, num_items_in_batch=7).loss
    close(counted * 7, losses[1] * (labels[:, 1:] != -100).sum())


def test_attention_weights_equal_llama(pair):
    llama, ours = pair()
    ids = prompt(1, 7)
    with torch.no_grad():
        expected, actual = (one(ids, output_attentions=True).attentions for one in (llama, ours))
    for mine, theirs in zip(actual, expected):
        close(mine, theirs)


# --- rotary positions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [3, TRAINED, TRAINED + 1, 5 * TRAINED])
def test_dynamic_base_is_the_published_formula(length):
    config = InternLM2Config(**{**TOY, "rope_scaling": DYNAMIC})
    size, factor = config.head_dim, DYNAMIC["factor"]
    base = TOY["rope_theta"]
    if length > TRAINED:
        base *= (factor * length / TRAINED - (factor - 1)) ** (size / (size - 2))
    angles = [[p * base ** (-2 * (i % (size // 2)) / size) for i in range(size)] for p in range(length)]
    angles = torch.tensor(angles, dtype=torch.float64)
    cos, sin = rotary_tables(config, torch.arange(length)[None], torch.float64)
    close(cos[0, 0], angles.cos())
    close(sin[0, 0], angles.sin())


def test_a_long_neighbour_does_not_change_a_row(model):
    """The published code scales the whole batch by its longest row."""
    ours = model(rope_scaling=DYNAMIC)
    ids, mask = prompt(2, TRAINED + 10), torch.ones(2, TRAINED + 10, dtype=torch.long)
    mask[1, :18] = 0
    assert greedy(ours, ids, attention_mask=mask)[1, 18:].tolist() == greedy(ours, ids[1:, 18:])[0].tolist()


def test_positions_may_be_fractions(model):
    ours, ids = model(), prompt(1, 6)
    with torch.no_grad():
        halves = ours(ids, position_ids=torch.arange(6)[None] / 2).logits
        linear = model(rope_scaling=LINEAR)(ids).logits
    close(halves, linear)


# --- masks, caches, last logits ---------------------------------------------------------------------------------------


def test_masks_of_four_dimensions(model):
    ids = prompt(2, 12)
    mask = causal_mask(LEFT_PADDED, torch.arange(12), 12)
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    for attn in ("sdpa", "eager"):
        ours = model(attn=attn)
        positions = (LEFT_PADDED.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            expected = ours(ids, attention_mask=LEFT_PADDED).logits
            for four in (mask, added, mask.long()):
                close(ours(ids, attention_mask=four, position_ids=positions).logits, expected)


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("cuts", [[11], [5, 6, 10], list(range(1, 12))], ids=str)
@pytest.mark.parametrize("as_tuples", [False, True], ids=["cache", "tuples"])
def test_text_in_parts_equals_text_at_once(model, attn, cuts, as_tuples):
    ours, ids = model(attn=attn), prompt(2, 12)
    past, parts = (() if as_tuples else None), []
    with torch.no_grad():
        for start, end in zip([0, *cuts], [*cuts, 12]):
            output = ours(ids[:, start:end], attention_mask=LEFT_PADDED[:, :end], past_key_values=past, use_cache=True)
            past = output.past_key_values
            parts.append(output.logits)
        expected = ours(ids, attention_mask=LEFT_PADDED).logits
    visible = LEFT_PADDED.bool()
    close(torch.cat(parts, dim=1)[visible], expected[visible])
    assert isinstance(past, tuple) == as_tuples
    if as_tuples:
        assert [tuple(key.shape) for key, _ in past] == [(2, 2, 12, 8)] * 2


def test_a_cache_of_tuples_is_left_as_it_was(model):
    ours, ids = model(), prompt(1, 8)
    with torch.no_grad():
        past = ours(ids[:, :5], past_key_values=(), use_cache=True).past_key_values
        again = [ours(ids[:, 5:], past_key_values=past).logits for _ in range(2)]
    close(again[0], again[1])
    assert past[0][0].shape[2] == 5


def static_cache(config, rows, length):
    cache_class = getattr(transformers, "StaticCache", None)
    if cache_class is None:
        pytest.skip("this transformers has no cache of fixed size")
    try:
        return cache_class(config=config, max_cache_len=length)
    except TypeError:  # older releases allocate at once
        cache = cache_class(config, rows, length, torch.device("cpu"), torch.float32)
    if isinstance(cache.key_cache, torch.Tensor):
        with pytest.raises(ValueError, match="single layer"):
            InternLM2Model(config)(prompt(1, 3), past_key_values=cache)
        pytest.skip("the cache of fixed size of this transformers is one layer's")
    return cache


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("scaling", [None, DYNAMIC], ids=str)
def test_static_cache(model, attn, scaling):
    ours, ids = model(attn=attn, rope_scaling=scaling), prompt(2, 12)
    cache = static_cache(ours.config, 2, 24)
    expected = greedy(ours, ids, attention_mask=LEFT_PADDED)
    assert greedy(ours, ids, attention_mask=LEFT_PADDED, past_key_values=cache).tolist() == expected.tolist()
    actual = greedy(ours, ids, attention_mask=LEFT_PADDED, cache_implementation="static")
    assert actual.tolist() == expected.tolist()


def test_a_decoding_step_compiles_to_one_graph(model):
    """transformers compiles the forward pass of a cache of fixed size; a graph that breaks or is made anew at each
    token would be slower than none."""
    ours, ids = model(rope_scaling=DYNAMIC), prompt(2, 12)
    cache = static_cache(ours.config, 2, 32)
    mask = F.pad(LEFT_PADDED, (0, 20))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    step, counters["unique_graphs"] = torch.compile(ours.forward, backend="eager", fullgraph=True), 0
    with torch.no_grad():
        ours(ids, attention_mask=mask, past_key_values=cache)
        for column in range(12, 16):
            mask = mask.index_fill(1, torch.tensor([column]), 1)
            new = prompt(2, 1, seed=column)
            ids = torch.cat((ids, new), dim=1)
            actual = step(input_ids=new, attention_mask=mask, past_key_values=cache).logits
            if column < TRAINED:  # beyond, the keys in the cache keep the scaling of their time
                expected = ours(ids, attention_mask=mask[:, : column + 1], logits_to_keep=1).logits
                close(actual, expected)
    assert counters["unique_graphs"] == 1


def test_generating_from_embeddings_and_from_a_cache(model):
    ours, ids = model(), prompt(2, 12)
    embeddings = ours.get_input_embeddings()(ids)
    expected = greedy(ours, ids, attention_mask=LEFT_PADDED)[:, -10:].tolist()

    def cache():
        with torch.no_grad():
            return ours(ids[:, :7], attention_mask=LEFT_PADDED[:, :7], use_cache=True).past_key_values

    for given in (
        {"inputs_embeds": embeddings},
        {"ids": ids, "past_key_values": cache()},
        {"inputs_embeds": embeddings, "past_key_values": cache()},
        {"ids": ids, "use_cache": False},
        {"ids": ids, "position_ids": (LEFT_PADDED.cumsum(-1) - 1).clamp(min=0)},
    ):
        assert greedy(ours, attention_mask=LEFT_PADDED, **given)[:, -10:].tolist() == expected, list(given)


def test_only_the_last_logits_are_computed_while_generating(model):
    ours, ids = model(), prompt(1, 12)
    seen = set()
    ours.output.register_forward_hook(lambda module, inputs, output: seen.add(output.shape[1]))
    greedy(ours, inputs_embeds=ours.get_input_embeddings()(ids), attention_mask=torch.ones_like(ids))
    assert seen == {1}


@pytest.mark.parametrize(
    "keyword, kept",
    [
        ({"logits_to_keep": 1}, [8]),
        ({"logits_to_keep": 3}, [6, 7, 8]),
        ({"num_logits_to_keep": 2}, [7, 8]),
        ({"logits_to_keep": torch.tensor([0, 5])}, [0, 5]),
        ({"logits_to_keep": 0}, list(range(9))),
    ],
    ids=str,
)
def test_logits_to_keep(model, keyword, kept):
    ours, ids = model(), prompt(2, 9)
    with torch.no_grad():
        logits = ours(ids, **keyword).logits
        close(logits, ours(ids).logits[:, kept])
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_half_precision(model, attn):
    """As weights, and as automatic casting, which turns only some of the tensors into bfloat16."""
    ours, ids = model(attn=attn), prompt(2, 12)
    with torch.no_grad():
        expected = ours(ids, attention_mask=LEFT_PADDED).logits
        with torch.autocast("cpu", torch.bfloat16):
            cast = ours(ids, attention_mask=LEFT_PADDED, use_cache=True)
        half = ours.to(torch.bfloat16)(ids, attention_mask=LEFT_PADDED).logits
    assert half.dtype == cast.logits.dtype == torch.float32
    close(half, expected, atol=0.1)
    close(cast.logits, expected, atol=0.1)


def test_tuples_instead_of_outputs(model):
    ours, ids = model(), prompt(1, 5)
    with torch.no_grad():
        logits, cache = ours(ids, return_dict=False, use_cache=True)
        (states,) = ours.model(ids, return_dict=False, use_cache=False)
        close(logits, ours.output(states))
    assert cache.get_seq_length() == 5


# --- flash attention: the arguments that we hand over, with a stand-in for the package --------------------------------


def _attend_rows(query, key, value, causal):
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    mask = torch.ones(len(query), len(key), dtype=torch.bool).tril(len(key) - len(query))  # aligned to the last key
    scores = torch.einsum("qhd,khd->hqk", query, key) * query.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask if causal else torch.zeros_like(mask), -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value)


def _flash_attn_func(q, k, v, causal):
    return torch.stack([_attend_rows(*row, causal) for row in zip(q, k, v)])


def _flash_attn_varlen_func(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal):
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert max_seqlen_q >= cu_seqlens_q.diff().max() and max_seqlen_k >= cu_seqlens_k.diff().max()
    assert cu_seqlens_q[-1] == len(q) and cu_seqlens_k[-1] == len(k) == len(v)
    bounds = [list(zip(cu, cu[1:])) for cu in (cu_seqlens_q.tolist(), cu_seqlens_k.tolist())]
    return torch.cat([_attend_rows(q[a:b], k[c:d], v[c:d], causal) for (a, b), (c, d) in zip(*bounds)])


@pytest.fixture
def flash_on_cpu(monkeypatch):
    package = types.SimpleNamespace(flash_attn_func=_flash_attn_func, flash_attn_varlen_func=_flash_attn_varlen_func)
    found = {"flash_attn": package}
    monkeypatch.setattr(modeling_internlm2, "importlib", types.SimpleNamespace(import_module=found.__getitem__))
    backend = (modeling_internlm2.ATTENTION["flash_attention_2"], True)
    monkeypatch.setattr(modeling_internlm2, "attention_backend", lambda name, states: backend)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_flash_attention_equals_sdpa(model, flash_on_cpu, monkeypatch, padded, static):
    ours, ids = model(), prompt(2, 12)
    mask = LEFT_PADDED if padded else torch.ones_like(LEFT_PADDED)
    kwargs = {"past_key_values": static_cache(ours.config, 2, 24)} if static else {}
    ours.config._attn_implementation = "flash_attention_2"  # generate looks here for the kind of mask
    actual = greedy(ours, ids, attention_mask=mask, **kwargs)
    with torch.no_grad():
        logits = ours(ids, attention_mask=mask).logits
    monkeypatch.undo()
    ours.config._attn_implementation = "sdpa"
    assert actual.tolist() == greedy(ours, ids, attention_mask=mask).tolist()
    with torch.no_grad():
        close(logits[mask.bool()], ours(ids, attention_mask=mask).logits[mask.bool()])


def test_a_registered_flash_attention_goes_first(monkeypatch):
    """transformers registers the package's attention, and others of its kind, since it has a registry."""
    half = types.SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16)
    calls = []

    def registered(module, query, key, value, mask, scaling, dropout):
        calls.append((query.shape, key.shape, mask, scaling, dropout))
        return "context", None

    monkeypatch.setattr(modeling_internlm2, "external_attention", {"flash_attention_3": registered}.get)
    attend, is_flash = modeling_internlm2.attention_backend("flash_attention_3", half)
    query, key = torch.zeros(1, 4, 3, 8), torch.zeros(1, 2, 3, 8)
    assert is_flash and attend(types.SimpleNamespace(head_dim=8), query, key, key, None) == ("context", None)
    assert calls == [(query.shape, key.shape, None, 8**-0.5, 0.0)]
    own = modeling_internlm2.ATTENTION["flash_attention_2"]
    assert modeling_internlm2.attention_backend("flash_attention_2", half) == (own, True)


def test_sdpa_stands_in_for_flash_attention_on_the_cpu(model):
    ours, ids = model(), prompt(1, 6)
    expected = greedy(ours, ids).tolist()
    ours.config._attn_implementation = "flash_attention_2"
    assert greedy(ours, ids).tolist() == expected


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({}, ["input_ids", "inputs_embeds"]),
        ({"input_ids": prompt(1, 3), "inputs_embeds": torch.zeros(1, 3, 32)}, ["input_ids", "inputs_embeds"]),
        ({"input_ids": prompt(1, 3), "attention_mask": torch.ones(1, 5)}, ["(1, 5)", "(batch, 3)", "3 new"]),
        ({"input_ids": prompt(1, 3), "attention_mask": torch.ones(1, 1, 3)}, ["(1, 1, 3)"]),
        ({"input_ids": prompt(1, 3), "labels": prompt(1, 3), "logits_to_keep": 1}, ["logits_to_keep", "1"]),
    ],
    ids=range(5),
)
def test_bad_calls(model, arguments, words):
    with pytest.raises(ValueError) as error:
        model()(**arguments)
    assert all(word in str(error.value) for word in words), error.value


def test_unknown_names_are_reported_with_the_choices(model):
    ours = model()
    ours.config._attn_implementation_internal = "fast"
    with pytest.raises(ValueError, match="'fast'.*eager, sdpa, flash_attention_2"):
        ours(prompt(1, 3))
    with pytest.raises(ValueError, match="'sillu'.*silu"):
        InternLM2ForCausalLM(InternLM2Config(**TOY, hidden_act="sillu"))
