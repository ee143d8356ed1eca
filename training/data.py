"""From examples to batches of tensors.

Prompts are built by the library's own `build_prompt` and pictures cut by its `dynamic_preprocess`, so that training
sees what `chat` sends. The conversations about a picture are laid out as a tree: the picture stands once, each
conversation follows it and sees nothing of the others (`attention_mask`). Several examples share a row.

A batch is a function of (seed, stage, split, index): the same with any number of workers, and the position in the data
is the number of steps done.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
import torch

from internvl_chat import count_tiles, dynamic_preprocess, get_conv_template, tile_grid
from internvl_chat.prompt_internvl import ImageTokens, build_prompt

from .examples import draw_example
from .recipe import SYSTEM_MESSAGE
from .world import CELLS, FIELD_NAMES, LONGEST, TILE, dense_labels, render

IGNORED = -100
TEMPLATE = "internvl2_5"
IMAGE = ImageTokens(per_tile=CELLS * CELLS)


class PieceTokenizer:
    """The tokenizer with a memory for the texts between special tokens; gives the same ids as the tokenizer itself.

    It has what `build_prompt` asks of a tokenizer. Special tokens cut a text before anything else, so that each piece
    can be looked up on its own.
    """

    def __init__(self, tokenizer):
        self.added_tokens_decoder = dict(tokenizer.added_tokens_decoder)
        self.all_special_tokens = list(tokenizer.all_special_tokens)
        self.all_special_ids = list(tokenizer.all_special_ids)
        self.unk_token, self.unk_token_id = tokenizer.unk_token, tokenizer.unk_token_id
        self.convert_tokens_to_ids = tokenizer.convert_tokens_to_ids
        marks = sorted((str(token) for token in self.added_tokens_decoder.values()), key=len, reverse=True)
        runs = "|".join(map(re.escape, marks))
        self._cut = re.compile(f"((?:{re.escape(IMAGE.context)})+|{runs})")
        self._encode = lru_cache(maxsize=65536)(
            lambda piece: tuple(tokenizer(piece, add_special_tokens=False)["input_ids"])
        )

    def __call__(self, text, add_special_tokens=False):
        return {"input_ids": [number for piece in self._cut.split(text) if piece for number in self._encode(piece)]}


@dataclass(frozen=True)
class Encoded:
    """A conversation as ids; `answers` are (start, end, task) of what is to be learnt, end marks included."""

    ids: list
    answers: list


def encode(tokenizer, dialogue, num_patches_list) -> Encoded:
    """The whole conversation as `chat` would have sent and received it.

    Args:
        tokenizer: the checkpoint's, or a `PieceTokenizer`.
        dialogue: turns, with an `<image>` for each picture.
        num_patches_list: tiles of each picture.
    """
    conversation = get_conv_template(TEMPLATE)
    conversation.set_system_message(SYSTEM_MESSAGE)
    for turn in dialogue:
        conversation.append_message(conversation.roles[0], turn.question)
        conversation.append_message(conversation.roles[1], turn.answer)
    ids = build_prompt(tokenizer, conversation, num_patches_list, IMAGE)
    # An answer begins behind the assistant's header and ends with its end mark. No message can hold either.
    header = list(tokenizer(conversation.roles[1])["input_ids"])
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    answers, position = [], 0
    for turn in dialogue:
        while ids[position : position + len(header)] != header:
            position = ids.index(header[0], position + 1)
        start = position + len(header)
        position = ids.index(end, start) + 1
        answers.append((start, position, turn.task))
    return Encoded(ids, answers)


# ---------------------------------------------------------------------------------------------------------- tiles


def views(example) -> list:
    """`(scene, (x1, y1, x2, y2))` of each tile, in the order of `dynamic_preprocess`."""
    found = []
    for scene in example.scenes:
        columns, rows = tile_grid(scene.width, scene.height, 1, example.max_num, TILE)
        wide, high = scene.width / columns, scene.height / rows
        found += [
            (scene, (x * wide, y * high, (x + 1) * wide, (y + 1) * high)) for y in range(rows) for x in range(columns)
        ]
        if columns * rows > 1:
            found.append((scene, (0, 0, scene.width, scene.height)))
    return found


def num_patches(example) -> list:
    """Tiles behind each `<image>` of the example."""
    counts = [count_tiles(scene.width, scene.height, 1, example.max_num, TILE) for scene in example.scenes]
    return [sum(counts)] if example.combined else counts


def pixels(example) -> list:
    """The tiles of an example as (448, 448, 3) uint8 arrays, cut as `load_image` cuts them."""
    images = [
        tile
        for scene in example.scenes
        for tile in dynamic_preprocess(render(scene), 1, example.max_num, TILE, use_thumbnail=True)
    ]
    return [np.asarray(image) for image in images]


# --------------------------------------------------------------------------------------------------------- layout


@dataclass(frozen=True)
class Tree:
    """An example laid out: a prefix that all conversations share, then each one's own part."""

    ids: list
    positions: list
    branches: list  # 0 for the prefix, then 1, 2, ...
    answers: list  # (start, end, task) within `ids`
    tiles: list  # for each run of image tokens, the tile that it shows


def lay_out(encoded, num_tiles, context_id, longest) -> Tree:
    """The tree of an example's conversations, cut off before one that would make it longer than `longest`.

    Raises:
        ValueError: not even the first conversation fits.
    """
    # Each branch needs at least one token of its own before its first answer: it predicts the answer's beginning.
    shared = min(conversation.answers[0][0] for conversation in encoded) - 1
    first = encoded[0].ids
    for other in encoded[1:]:
        same = next((i for i, (a, b) in enumerate(zip(first, other.ids)) if a != b), shared)
        shared = min(shared, same)
    tree = Tree(first[:shared], list(range(shared)), [0] * shared, [], [])
    tree.tiles.extend(range(first[:shared].count(context_id) // IMAGE.per_tile))
    for branch, conversation in enumerate(encoded, 1):
        own = conversation.ids[shared:]
        if len(tree.ids) + len(own) > longest:
            if branch == 1:
                raise ValueError(f"a conversation of {len(conversation.ids)} tokens does not fit into {longest}")
            break
        offset = len(tree.ids) - shared
        tree.answers.extend((start + offset, end + offset, task) for start, end, task in conversation.answers)
        tree.tiles.extend(range(first[:shared].count(context_id) // IMAGE.per_tile, num_tiles))
        tree.ids.extend(own)
        tree.positions.extend(range(shared, len(conversation.ids)))
        tree.branches.extend([branch] * len(own))
    return tree


def attention_mask(segments, branches) -> torch.Tensor:
    """(rows, 1, length, length) bool: which earlier tokens each token sees.

    Args:
        segments: (rows, length) integers, the examples of a row told apart.
        branches: (rows, length) integers, the conversations of an example told apart; 0 is what they share.
    """
    same = segments[:, :, None] == segments[:, None, :]
    lineage = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    return (same & lineage & causal)[:, None]


class Batches(torch.utils.data.Dataset):
    """The batches of a stage; item `index` is a whole batch, as a dictionary of tensors.

    Text (stages with rows):
        input_ids, position_ids, segments, branches, labels, questions: (rows, length) int64; `labels` is -100 outside
        of answers and their end marks, `questions` the number of the answer that a label belongs to, else -1.
        loss_weight: (rows, length) float32, 1 / sqrt(answer's tokens), as InternVL's training weighs its answers.
        tasks: (questions,) int64, index into `TASKS`.
        tile_order: (tiles in the text,) int64, the tile shown by each run of image tokens.
    Pictures:
        dense: (tiles, 49, fields) uint8; tiles: (tiles, 448, 448, 3) uint8, without normalisation, absent in the stage
        "symbols".
    """

    def __init__(self, stage, tokenizer, seed, split="train", length=None):
        self.stage, self.seed, self.split = stage, seed, split
        self._length = stage.steps if length is None else length
        self._tokenizer, self._pieces = tokenizer, None
        self._context = tokenizer.convert_tokens_to_ids(IMAGE.context)
        self._pad = tokenizer.pad_token_id

    def __len__(self):
        return self._length

    def __getitem__(self, index):
        if not 0 <= index < self._length:
            raise IndexError(index)
        return self._scenes(index) if self.stage.rows == 0 else self._conversations(index)

    def _examples(self, index):
        """The examples of a batch, without end."""
        stage, kinds = self.stage, tuple(self.stage.mixture)
        name = f"{self.seed}/{stage.name}/{index}"
        rng = Random(name)
        number = 0
        while True:
            kind = rng.choices(kinds, tuple(stage.mixture.values()))[0]
            yield draw_example(f"{name}/{number}", kind, self.split, stage.questions, index < stage.simple_steps)
            number += 1

    def _scenes(self, index):
        tiles, dense = [], []
        for example in self._examples(index):
            dense += [dense_labels(*view) for view in views(example)]
            tiles += pixels(example)
            if len(tiles) >= self.stage.tiles:
                break
        size = self.stage.tiles
        return {"tiles": _stacked(tiles[:size]), "dense": _stacked(dense[:size])}

    def _conversations(self, index):
        if self._pieces is None:  # made where it is used: it does not travel to worker processes
            self._pieces = PieceTokenizer(self._tokenizer)
        stage = self.stage
        rows, examples, num_tiles, misses = [[] for _ in range(stage.rows)], [], 0, 0
        free = [stage.length] * stage.rows
        for example in self._examples(index):
            patches = num_patches(example)
            tree = self._tree(example, patches)
            row = next((row for row, room in enumerate(free) if tree and room >= len(tree.ids)), None)
            if row is None or num_tiles + sum(patches) > stage.tiles:
                misses += 1
                if misses == 4:
                    break
                continue
            rows[row].append((tree, num_tiles))
            free[row] -= len(tree.ids)
            num_tiles += sum(patches)
            examples.append(example)
        batch = self._rows(rows)
        if num_tiles:
            labels = [dense_labels(*view) for example in examples for view in views(example)]
            if stage.name == "symbols":
                rng = np.random.default_rng(Random(f"{self.seed}/{index}/blur").getrandbits(64))
                labels = [blur_order(each, rng) for each in labels]
            else:
                batch["tiles"] = _stacked([tile for example in examples for tile in pixels(example)])
            batch["dense"] = _stacked(labels)
        return batch

    def _tree(self, example, patches):
        encoded = [encode(self._pieces, dialogue, patches) for dialogue in example.dialogues]
        encoded = [conversation for conversation in encoded if len(conversation.ids) <= self.stage.length]
        if not encoded:
            return None
        return lay_out(encoded, sum(patches), self._context, self.stage.length)

    def _rows(self, rows):
        shape = len(rows), self.stage.length
        ids, positions = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64)
        segments, branches = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        labels, questions = np.full(shape, IGNORED, np.int64), np.full(shape, -1, np.int64)
        weights, tasks, order = np.zeros(shape, np.float32), [], []
        for row, trees in enumerate(rows):
            begin = 0
            for segment, (tree, first_tile) in enumerate(trees, 1):
                span = slice(begin, begin + len(tree.ids))
                ids[row, span], positions[row, span] = tree.ids, tree.positions
                segments[row, span], branches[row, span] = segment, tree.branches
                for start, end, task in tree.answers:
                    answer = slice(begin + start, begin + end)
                    labels[row, answer] = tree.ids[start:end]
                    questions[row, answer] = len(tasks)
                    weights[row, answer] = (end - start) ** -0.5
                    tasks.append(task_index(task))
                order += [first_tile + tile for tile in tree.tiles]
                begin += len(tree.ids)
        batch = dict(input_ids=ids, position_ids=positions, segments=segments, branches=branches, labels=labels)
        batch.update(questions=questions, loss_weight=weights, tasks=np.array(tasks, np.int64))
        batch["tile_order"] = np.array(order, np.int64)
        return {name: torch.from_numpy(values) for name, values in batch.items()}


_ORDER = [index for index, name in enumerate(FIELD_NAMES) if name == "order"]


def blur_order(labels, rng):
    """The labels of a tile with the places of characters as the tower sees them: half of the time off by one here and
    there, a quarter of the time not at all. Who learns to read from this looks at the neighbours, too."""
    form, places = rng.random(), labels[:, _ORDER].astype(int)
    if form < 0.25:
        return labels
    moved = places + rng.choice((-1, 0, 1), places.shape, p=(0.2, 0.6, 0.2))
    moved = moved.clip(1, LONGEST) * (places > 0) * (form < 0.75)
    labels = labels.copy()
    labels[:, _ORDER] = moved
    return labels


def _stacked(arrays):
    return torch.from_numpy(np.stack(arrays))


TASKS = (
    *(
        "color",
        "shape",
        "background",
        "count",
        "where",
        "exists",
        "side",
        "relation",
        "each",
        "describe",
        "word",
        "number",
    ),
    *("line", "no_text", "ground", "followup2", "followup3", "pair_which", "pair_color", "pair_background"),
    *("pair_count", "pair_compare", "pair_describe", "new_image", "video_motion", "video_what", "video_color"),
    *("video_describe", "chat"),
)


def task_index(task):
    """The place of a task in `TASKS`; all kinds of small talk are one."""
    return TASKS.index("chat" if task.startswith("chat_") else task)
