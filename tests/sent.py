"""What `chat` and `batch_chat` hand to the model, without the model's work."""

import copy

import torch


def watched(model, new_ids=0):
    """`(model, seen)`: a copy of a model that shares its weights and answers `new_ids` at once; after a question `seen`
    has `ids` and `mask` (rows, length), and `pixels` (tiles, 3, size, size) in the order of their places, or None."""
    seen, encoded = {}, []

    def encode(pixel_values, vision_batch_size=None):  # the feature of a tile is its number
        first = len(encoded)
        encoded.extend(pixel_values)
        return torch.arange(first, len(encoded))[:, None, None].expand(-1, model.num_image_token, 1)

    def generate(input_ids=None, attention_mask=None, visual_features=None, **rest):
        seen.update(ids=input_ids, mask=attention_mask, pixels=None)
        if visual_features is not None:
            numbers = visual_features[:: model.num_image_token, 0].tolist()
            seen["pixels"] = torch.stack([encoded[number] for number in numbers])
        return torch.full((len(input_ids), 1), new_ids)

    other = copy.copy(model)
    other.extract_feature, other.generate_new_tokens = encode, generate
    other._ahead = lambda prefill, features, image_id: prefill.memories_given  # whole prompts are looked at
    return other, seen
