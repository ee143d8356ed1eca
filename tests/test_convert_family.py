"""Every published checkpoint at its real size, names and shapes only: all of it has a place in the native layout, and
the native model made from the converted configuration has these tensors and no others."""

import json

import pytest
import torch
import transformers
from published_configs import FAMILY
from published_tensors import fused, published_tensors

from internvl_chat.native_config_internvl import RECORD, native_config, original_config, read_original
from internvl_chat.native_tensors_internvl import name_in_memory, name_on_disk, native_pieces

if not hasattr(transformers, "InternVLForConditionalGeneration"):
    pytest.skip("this transformers has no native InternVL", allow_module_level=True)

# One for each language model and vision tower; the others differ in size.
BUILT = (
    *("InternVL2-1B", "InternVL2-2B", "InternVL2-4B", "InternVL2-26B", "InternVL2-40B", "InternVL2-Llama3-76B"),
    *("InternVL3-9B", "InternVL3_5-1B", "InternVL3_5-30B-A3B", "InternVL3_5-GPT-OSS-20B-A4B-Preview"),
)


def read(name):
    values = FAMILY[name].config
    architecture = values["llm_config"]["architectures"][0]
    if architecture != "InternLM2ForCausalLM" and not hasattr(transformers, architecture):
        pytest.skip(f"this transformers has no {architecture}")
    return values, read_original(values)


def native_shapes(values, config) -> dict:
    """{native name: shape}, once it is known that each row of each tensor goes to one place."""
    llm, shapes = config.llm_config, {}
    is_internlm2 = llm.architectures[0] == "InternLM2ForCausalLM"
    heads = (llm.num_attention_heads, llm.num_key_value_heads) if is_internlm2 else None
    for name, shape in published_tensors(values).items():
        ranges = []
        for target, rows in native_pieces(name, shape, heads):
            assert target not in shapes and name_on_disk(target) == target
            assert name_on_disk(name_in_memory(target)) == target
            shapes[target] = (sum(end - first for first, end in rows), *shape[1:])
            ranges += rows
        ranges.sort()
        assert ranges[0][0] == 0 and ranges[-1][1] == shape[0]
        assert all(before[1] == after[0] for before, after in zip(ranges, ranges[1:]))
    return shapes


@pytest.mark.parametrize("name", FAMILY)
def test_every_tensor_has_a_place_and_the_configuration_comes_back(name):
    values, config = read(name)
    native_shapes(values, config)
    native = json.loads(json.dumps(native_config(config, 92546, tied=False)))
    native[RECORD] = {"config": values}
    assert original_config(native) == values


@pytest.mark.parametrize("name", BUILT)
def test_the_native_model_has_these_tensors(name):
    values, config = read(name)
    if "A3B" in name and transformers.__version__.startswith("4."):
        pytest.skip("each of the 128 experts of a layer is a module there, which takes minutes to build")
    native = transformers.InternVLConfig.from_dict(json.loads(json.dumps(native_config(config, 92546, tied=False))))
    with torch.device("meta"):
        model = transformers.InternVLForConditionalGeneration(native)
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    shapes = fused(native_shapes(values, config))
    assert {name_in_memory(key): shape for key, shape in shapes.items()} == expected
    assert native.image_seq_length == config.num_image_token == 256
