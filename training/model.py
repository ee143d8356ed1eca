"""The model in training: `InternVLChatModel` and two parts that only training needs and `export` leaves out.

`symbols` stands in for the vision tower in the first stage: it says in one vector what a cell of the picture shows.
`dense_head` reads the same from the vision tower's output.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from internvl_chat import InternVLChatConfig, InternVLChatModel
from internvl_chat.preprocessing_internvl import IMAGENET_MEAN, IMAGENET_STD

from .data import attention_mask
from .phrases import ORDINALS
from .recipe import config_values
from .world import BACKGROUNDS, CELLS, CHARACTERS, COLORS, FIELD_NAMES, FIELD_SIZES, SHAPES

# Loss of each group of dense labels, and within it the weight of "nothing there", which most cells say.
_GROUPS = {
    "shape": (1.0, 0.2),
    "color": (1.0, 0.2),
    "row": (0.5, 0.2),
    "column": (0.5, 0.2),
    "box": (0.5, 0.0),
    "part": (1.0, 0.3),
    "tint": (1.0, 0.3),
    "character": (1.0, 0.1),
    "order": (0.5, 0.1),
    "line": (0.3, 0.1),
    "background": (0.3, 1.0),
}
EXTRA_PARTS = ("symbols.", "dense_head.")
_SEEING = ("vision_model.", "mlp1.", "dense_head.")
# What a stage trains. The symbols stay what they were: so the first two stages do not depend on each other.
TRAINED = {"symbols": ("language_model.",), "vision": _SEEING, "joint": (*_SEEING, "language_model.")}


def normalized(tiles, dtype=torch.float32) -> torch.Tensor:
    """(tiles, 448, 448, 3) uint8 to the vision tower's input, as `preprocessing_internvl` does it, up to rounding."""
    mean = torch.tensor(IMAGENET_MEAN, device=tiles.device)
    std = torch.tensor(IMAGENET_STD, device=tiles.device)
    scaled = tiles.to(torch.float32).mul_(1 / 255).sub_(mean).div_(std)
    return scaled.to(dtype).permute(0, 3, 1, 2)  # (tiles, 3, 448, 448)


class Symbols(nn.Module):
    """Dense labels to the vectors of visual tokens: the sum of one embedding a field, and of the cell's place."""

    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(sum(FIELD_SIZES), width)
        self.place = nn.Parameter(torch.zeros(CELLS * CELLS, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, dense):
        starts = torch.tensor((0, *FIELD_SIZES[:-1]), device=dense.device).cumsum(0)
        return self.norm(self.table(dense.long() + starts).sum(2) + self.place)  # (tiles, 49, width)


class LearningModel(InternVLChatModel):
    """`InternVLChatModel` with the parts above. `stage` ("symbols", "vision" or "joint") says what it learns.

    Attributes:
        stage: see `recipe.Stage.name`.
        vision_loss: weight of the dense labels' loss in stage "joint".
        parts: the losses of the last forward pass by name, detached, for the log.
        dense_scores: (tiles, 49, sum of `FIELD_SIZES`), what `dense_head` said in it.
    """

    def __init__(self, config):
        super().__init__(config)
        self.symbols = Symbols(config.llm_config.hidden_size)
        merged = round(1 / config.downsample_ratio) ** 2 * config.vision_config.hidden_size
        self.dense_head = nn.Sequential(nn.LayerNorm(merged), nn.Linear(merged, sum(FIELD_SIZES)))
        self.stage, self.vision_loss, self.parts, self.dense_scores = "joint", 0.0, {}, None

    def enter(self, stage):
        """Prepares for a stage of the recipe: what is learnt, and what is left as it is."""
        self.stage, self.vision_loss = stage.name, stage.vision_loss
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(TRAINED[stage.name]))

    def forward(
        self,
        input_ids=None,
        labels=None,
        loss_weight=None,
        position_ids=None,
        segments=None,
        branches=None,
        tile_order=None,
        tiles=None,
        dense=None,
    ):
        """The loss of a batch of `data.Batches`, as `{"loss": ..., "logits": ...}`; logits where there is text."""
        losses, features, logits = {}, None, None
        if self.stage == "symbols":
            features = None if dense is None else self.symbols(dense)
        elif tiles is not None:
            patches, features = self._see(normalized(tiles))
            scores = self.dense_head(patches)
            losses["dense"], self.dense_scores = dense_loss(scores, dense), scores.detach()
            if self.stage == "vision":
                target = self.symbols(dense).detach()
                losses["match"] = F.mse_loss(features.float(), target.float()) / target.float().var()
        if input_ids is not None:
            embeddings = self.merge_embeddings(input_ids, None if features is None else features[tile_order])
            output = super().forward(
                inputs_embeds=embeddings,
                attention_mask=attention_mask(segments, branches),
                position_ids=position_ids,
                labels=labels,
                loss_weight=loss_weight,
                use_cache=False,
            )
            losses["text"], logits = output.loss, output.logits
        weights = {"text": 1.0, "match": 1.0, "dense": self.vision_loss if self.stage == "joint" else 1.0}
        self.parts = {name: loss.detach() for name, loss in losses.items()}
        total = sum(weights[name] * loss for name, loss in losses.items())
        return {"loss": total} if logits is None else {"loss": total, "logits": logits}

    def _see(self, pixel_values):
        """`(merged patches, tokens)`: the model's own path from pixels to tokens, with a look at what enters `mlp1`."""
        seen = []
        hook = self.mlp1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            # Not `extract_feature`: without gradients that encodes equal tiles once, and the labels are of each.
            features = self._project(self._for_vision(pixel_values))
        finally:
            hook.remove()
        return seen[0], features


def dense_loss(scores, dense) -> torch.Tensor:
    """Cross entropy of (tiles, 49, sum of sizes) scores against the dense labels, a weighted sum over their groups."""
    total = 0.0
    for name, size, group, labels in dense_groups(scores, dense):
        weight, nothing = _GROUPS[name]
        classes = torch.ones(size, device=scores.device)
        classes[0] = nothing
        entropy = F.cross_entropy(group.float().flatten(0, -2), labels.flatten(), classes, reduction="sum")
        total = total + weight * entropy / classes[labels].sum().clamp(min=1.0)
    return total


def dense_groups(scores, dense):
    """`(name, classes, scores, labels)` of each group: scores (..., fields, classes), labels (..., fields)."""
    parts, start = scores.split(FIELD_SIZES, dim=-1), 0
    for name in _GROUPS:
        count = FIELD_NAMES.count(name)
        grouped = torch.stack(parts[start : start + count], dim=-2)
        yield name, FIELD_SIZES[start], grouped, dense[..., start : start + count].long()
        start += count


# ------------------------------------------------------------------------------------------------------ beginnings


def fresh_model(size, tokenizer, seed) -> LearningModel:
    """A model of that size with first weights that are a function of `seed`."""
    torch.manual_seed(seed)
    model = LearningModel(InternVLChatConfig(**config_values(size, tokenizer)))
    with torch.no_grad():
        embeddings = model.vision_model.embeddings
        embeddings.class_embedding.normal_(0.0, 0.02)
        embeddings.position_embedding.copy_(_position_table(embeddings.position_embedding.shape))
        embeddings.patch_embedding.weight.copy_(_patch_filters(embeddings.patch_embedding.weight.shape))
        _name_symbols(model, tokenizer)
        _let_like_find_like(model.language_model)
    return model


def _position_table(shape):
    """Sines and cosines of row and column, half of the channels each, and a little noise."""
    _, places, width = shape
    side = math.isqrt(places - 1)
    angles = ((torch.arange(side) + 0.5) / side)[:, None] * (2 * math.pi * torch.linspace(0.5, 5, width // 4))
    waves = torch.cat((angles.sin(), angles.cos()), dim=1)  # (side, width / 2)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    table = 0.02 * torch.randn(shape)
    table[0, 1:, : 4 * (width // 4)] += 0.7 * torch.cat((rows, columns), dim=-1).reshape(side * side, -1)
    return table


def _patch_filters(shape, waves=8, norm=1.0):
    """Random mixtures of low-frequency cosines: pictures are smooth, white noise hardly sees them."""
    width, channels, side, _ = shape
    phases = math.pi * (torch.arange(side) + 0.5) / side
    basis = torch.cos(torch.arange(waves)[:, None] * phases)  # (waves, side)
    frequency = torch.arange(waves).float()
    strength = (1 + frequency[:, None] ** 2 + frequency**2) ** -0.5
    filters = torch.einsum("wcij,ip,jq->wcpq", torch.randn(width, channels, waves, waves) * strength, basis, basis)
    return filters * (norm * side**-1.0 / filters.flatten(1).std(dim=1)[:, None, None, None] / 3**0.5 / 8)


def _name_symbols(model, tokenizer):
    """Gives symbols of what has a name the embedding of that name: to look a word up is then to find its like.

    So begun, "color" among two or three shapes was above 0.9 after 13 000 scenes, where an earlier model stayed at
    0.5 to 0.6 for 48 000 (`recipe.py`'s other measures for look-ups were new then, too)."""
    words = model.get_input_embeddings().weight
    scale = words.std()

    def word(name, before=" "):
        return words[tokenizer(before + name, add_special_tokens=False)["input_ids"]].mean(0)

    table = model.symbols.table.weight.normal_(0.0, 0.3 * float(scale))
    model.symbols.place.normal_(0.0, 0.3 * float(scale))
    model.symbols.norm.weight.fill_(2 * float(scale))
    named = {
        "shape": SHAPES,
        "color": COLORS,
        "row": ("top", "center", "bottom"),
        "column": ("left", "center", "right"),
        "line": ORDINALS,
        "background": BACKGROUNDS,
    }
    letters = torch.stack([word(character, "") for character in CHARACTERS])
    turn = torch.linalg.qr(torch.randn(2 * [table.shape[1]]))[0]  # tells a cell's right half from its left one
    start = 0
    for name, size in zip(FIELD_NAMES, FIELD_SIZES):
        first = start + (name != "background")  # the tile always has a background; of the rest, 0 is nothing
        table[start:first] = 0.0
        for index, value in enumerate(named.get(name, ())):
            table[first + index] = word(value)
        if name == "character":
            table[first : start + size] = letters
            letters = letters @ turn
        if name == "box":  # neighbours are alike, so that sides can be compared
            table[first : start + size] = 0.5 * float(scale) * _wave_table(size - 1, table.shape[1])
        start += size


def fit_symbols(model, tokenizer, batches, steps=1200, tiles=48):
    """Makes the symbols say what the vision tower of a trained model says, as far as a sum of fields can.

    So a finished model can go through the first two stages again: its language model reads such symbols from the
    beginning, and what the tower is to learn anew has the embeddings of its names. What the dense labels cannot say
    is left out: of the shipped checkpoint's features 0.13 of the variance.

    Args:
        model: with the weights of an export.
        tokenizer: the checkpoint's.
        batches: dictionaries with `tiles` and `dense`, see `data.Batches`; some 1 000 tiles.
        steps, tiles: of the fit.
    """
    with torch.no_grad():
        _name_symbols(model, tokenizer)
        seen = [(model._see(normalized(batch["tiles"]))[1].float(), batch["dense"]) for batch in batches]
    features, dense = (torch.cat(parts) for parts in zip(*seen))
    plain = (dense[..., FIELD_NAMES.index("line")] == 0).unsqueeze(-1)  # cells without print
    symbols, generator = model.symbols, torch.Generator().manual_seed(0)
    symbols.requires_grad_(True)
    symbols.norm.bias.data.copy_(features.mean((0, 1)))
    optimizer = torch.optim.Adam(symbols.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, 2 - 2 * step / steps))
    for _ in range(steps):
        some = torch.randint(len(features), (tiles,), generator=generator)
        loss = ((symbols(dense[some]) - features[some]) * plain[some]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    symbols.requires_grad_(False)  # no stage trains them
    with torch.no_grad():  # the names of print, told apart as clearly as shapes are
        tables = symbols.table.weight.split(FIELD_SIZES)
        size = tables[FIELD_NAMES.index("shape")][1:].norm(dim=-1).mean()
        for name, table in zip(FIELD_NAMES, tables):
            if name in ("character", "order", "line"):
                table[1:] -= table[1:].mean(0)
                table[1:] *= size / table[1:].norm(dim=-1, keepdim=True)


def _wave_table(number, width):
    """(number, width) with unit variance: sines of low frequencies and random phase along the first axis."""
    frequency, phase = 0.25 + 1.5 * torch.rand(width), 2 * math.pi * torch.rand(width)
    return 2**0.5 * torch.sin(2 * math.pi * frequency * torch.linspace(0, 1, number)[:, None] + phase)


def _let_like_find_like(language_model, strength=0.5, noise=0.3):
    """Begins the attention layers so that a token looks for tokens like itself and takes over what they say.

    Queries and keys of a group are one random projection, outputs the transpose of the values' (after "Mimetic
    Initialization of Self-Attention Layers", Trockman and Kolter, 2023). A picture's token that holds "red" and
    "circle" then answers a question about either from the beginning. Measured on the symbols' stage, "color" of one
    shape among two or three was at 0.96 after 4 700 scenes; begun at random it stayed at 0.5 to 0.6 for 48 000."""
    config = language_model.config
    size = config.hidden_size // config.num_attention_heads
    for layer in language_model.model.layers:
        attention = layer.self_attn
        queries, outputs = attention.q_proj.weight, attention.o_proj.weight
        for head in range(config.num_attention_heads):
            shared = head // (config.num_attention_heads // config.num_key_value_heads)
            if head % (config.num_attention_heads // config.num_key_value_heads) == 0:
                look, say = (torch.linalg.qr(torch.randn(config.hidden_size, size))[0].T for _ in range(2))
                own = slice(shared * size, (shared + 1) * size)
                attention.k_proj.weight[own] = look + noise * torch.randn_like(look) * config.hidden_size**-0.5
                attention.v_proj.weight[own] = strength * say
            own = slice(head * size, (head + 1) * size)
            queries[own] = look + noise * torch.randn_like(look) * config.hidden_size**-0.5
            outputs[:, own] = strength * say.T + config.initializer_range * torch.randn_like(say.T)
