"""Loss and gradients of the whole model at toy size, against formulas written out by hand."""

import pytest
import torch
from toy_inputs import IMAGE_ID, SEED, TOKENS, image_ids, pixels, text_ids


@pytest.fixture(scope="module")
def model(toy_model):
    """One toy model for the tests that leave it as it is."""
    return toy_model(seed=SEED)


def cross_entropies(logits, labels):
    """-log p of each next label, (batch, length - 1), by the definition; 0 where the label is -100."""
    rows = []
    for row_logits, row_labels in zip(logits.double(), labels):
        row = []
        for scores, label in zip(row_logits[:-1], row_labels[1:].tolist()):
            row.append(scores.new_zeros(()) if label == -100 else scores.exp().sum().log() - scores[label])
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def training_batch():
    ids = torch.cat((image_ids(2), torch.cat((image_ids(1), text_ids(TOKENS)), dim=1)))
    labels = torch.where(ids == IMAGE_ID, -100, ids)
    labels[0, :3] = -100
    return {"pixel_values": pixels(3), "input_ids": ids, "labels": labels}


@torch.no_grad()
def test_loss_by_hand(model, training_batch):
    output = model(**training_batch)
    labels = training_batch["labels"]
    losses, count = cross_entropies(output.logits, labels), (labels[:, 1:] != -100).sum()
    assert output.loss.dtype == torch.float32 and 0 < count < labels[:, 1:].numel()
    torch.testing.assert_close(output.loss.double(), losses.sum() / count, atol=1e-5, rtol=1e-5)
    divided = model(**training_batch, num_items_in_batch=40).loss
    torch.testing.assert_close(divided.double(), losses.sum() / 40, atol=1e-5, rtol=1e-5)
    divided = model(**training_batch, num_items_in_batch=torch.tensor(40)).loss
    torch.testing.assert_close(divided.double(), losses.sum() / 40, atol=1e-5, rtol=1e-5)


def weights_for(labels):
    weights = torch.rand(labels.shape, generator=torch.Generator().manual_seed(4))
    return weights * (labels != -100)


@torch.no_grad()
def test_weighted_loss_by_hand(model, training_batch):
    """Published: sum over shifted labels of weight × cross entropy, divided by the sum of the shifted weights."""
    labels = training_batch["labels"]
    weights = weights_for(labels)
    losses = cross_entropies(model(**training_batch).logits, labels)
    expected = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
    for given in (weights, weights.tolist(), weights.double()):
        loss = model(**training_batch, loss_weight=given).loss
        torch.testing.assert_close(loss.double(), expected.double(), atol=1e-5, rtol=1e-5)
    even = model(**training_batch, loss_weight=(labels != -100).float()).loss
    torch.testing.assert_close(even, model(**training_batch).loss, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_weighted_loss_averaged_over_processes(model, training_batch, tmp_path):
    """`loss_reduction_all_gather` with the backend of machines without GPUs."""
    weights = weights_for(training_batch["labels"])
    expected = model(**training_batch, loss_weight=weights).loss
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        loss = model(**training_batch, loss_weight=weights, loss_reduction_all_gather=True).loss
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(loss, expected)


@torch.no_grad()
def test_loss_in_half_precision_is_computed_in_float32(toy_model, training_batch):
    model = toy_model().bfloat16()
    output = model(**training_batch)
    assert output.loss.dtype == torch.float32
    losses = cross_entropies(output.logits, training_batch["labels"])
    expected = losses.sum() / (training_batch["labels"][:, 1:] != -100).sum()
    torch.testing.assert_close(output.loss.double(), expected, atol=1e-4, rtol=1e-4)


def gradients(model, batch, **more):
    model.zero_grad()
    model(**batch, **more).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_reach_every_parameter(toy_model, training_batch, weighted):
    model = toy_model().train()
    more = {"loss_weight": weights_for(training_batch["labels"])} if weighted else {}
    found = gradients(model, training_batch, **more)
    for name, _ in model.named_parameters():
        assert name in found and found[name].isfinite().all() and found[name].any(), name


def test_gradient_of_features_by_difference(toy_model):
    """Backward through tower, shuffle and projector agrees with a small step in one direction, in float64."""
    model = toy_model().double()
    images, direction = pixels(1).double().requires_grad_(True), pixels(1, seed=8).double()
    features = model.extract_feature(images)
    weights = torch.randn(features.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    (features * weights).sum().backward()
    with torch.no_grad():
        change = model.extract_feature(images + 1e-5 * direction) - model.extract_feature(images - 1e-5 * direction)
    expected = (change * weights).sum().item() / 2e-5
    assert abs(expected) > 0.1
    assert (images.grad * direction).sum().item() == pytest.approx(expected, rel=1e-6)


def test_text_rows_with_a_dummy_tile_still_give_vision_gradients(toy_model):
    """Distributed training needs every parameter in the graph, also where a batch is text with an unused tile."""
    model = toy_model().train()
    batch = {"pixel_values": pixels(1), "input_ids": text_ids(), "labels": text_ids()}
    found = gradients(model, batch, image_flags=torch.tensor([0]))
    assert set(found) == {name for name, _ in model.named_parameters()}
    assert not found["mlp1.1.weight"].any()


def test_gradient_checkpointing_gives_equal_gradients(toy_model, training_batch):
    expected = gradients(toy_model().train(), training_batch)
    model = toy_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    entered = []
    model.vision_model.encoder.layers[1].norm1.register_forward_hook(lambda *_: entered.append("vision"))
    model.language_model.model.layers[1].input_layernorm.register_forward_hook(lambda *_: entered.append("llm"))
    actual = gradients(model, training_batch, use_cache=False)
    assert sorted(entered) == ["llm", "llm", "vision", "vision"], "both towers run their layers again on the way back"
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
