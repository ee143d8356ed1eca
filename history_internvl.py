"""What a conversation keeps from round to round: its text, and what the model has computed for it.

Ids, tiles, keys and values. Nothing here knows of tokenizers, templates or the parts of the model.

A `RoundMemory` is never changed once it is made. The next round begins a cache of its own with slices of the memory's
tensors, and a growing cache grows by concatenation, which leaves what it is made from alone. So one history may be
continued twice, from its middle, or in several threads at once, with neither locks nor copies for safety's sake. The
price is that each history held has keys and values of its own; those that the caller drops are freed with it.
"""

import weakref
from dataclasses import dataclass
from typing import Optional

import torch


class ChatHistory(list):
    """The (question, answer) pairs of a conversation, oldest first: a list like the published one, equal to a plain
    list with the same pairs and written by `json` as one.

    It also holds what the model computed for these rounds (`RoundMemory`), so that the next one computes only what is
    new. That is used as far as it fits the next prompt: after removing, editing or adding rounds in place, or with
    other images, another system message or another model, less of it or nothing, and the answer is the same. Slices
    and copies share it; pickles and deep copies go without, as does `list(history)`, which frees the memory.
    """

    def __init__(self, pairs=(), memory: Optional["RoundMemory"] = None):
        super().__init__(pairs)
        self._memory = memory

    def __getitem__(self, index):
        found = super().__getitem__(index)
        return ChatHistory(found, self._memory) if isinstance(index, slice) else found

    def copy(self):
        return ChatHistory(self, self._memory)

    __copy__ = copy

    def __reduce__(self):
        return ChatHistory, (list(self),)


def memory_of(history) -> Optional["RoundMemory"]:
    """What a history holds beside its text; None for a plain list."""
    return history._memory if isinstance(history, ChatHistory) else None


# --- what keys and values depend on -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TokenRun:
    """A row of tokens with the pictures behind its image tokens: `per_tile` of them for each of `tiles`, in order."""

    ids: list
    tiles: tuple  # keys (see `features_internvl.tile_keys`), at least those of the image tokens in `ids`
    image_id: Optional[int]
    per_tile: int

    def image_tokens(self, end: int) -> int:
        """Number of image tokens among the first `end`."""
        return self.ids[:end].count(self.image_id)

    def beginning(self, end: int) -> "TokenRun":
        """The first `end` tokens, with the tiles of the image tokens among them."""
        shown = -(-self.image_tokens(end) // self.per_tile)  # the last of them maybe in part
        return TokenRun(self.ids[:end], self.tiles[:shown], self.image_id, self.per_tile)

    def common(self, other: "TokenRun") -> int:
        """Number of tokens, from the first on, that are the same in both and show the same pictures."""
        if (self.image_id, self.per_tile) != (other.image_id, other.per_tile):
            return 0
        end = _common(self.ids, other.ids)
        shown = self.beginning(end).tiles
        same = _common(shown, other.tiles)
        if same == len(shown):
            return end
        return [index for index in range(end) if self.ids[index] == self.image_id][same * self.per_tile]


def _common(one, other) -> int:
    """Length of the common beginning of two sequences."""
    different = (index for index, (left, right) in enumerate(zip(one, other)) if left != right)
    return next(different, min(len(one), len(other)))


def model_state(model) -> tuple:
    """What tells whether a model is still the one that computed something: equal as long as it is.

    It stands for the model, its parameters, how often each was written to, its adapters, and the dtype that autocast
    asks for. Not seen: values written through `.data` or from outside of torch.
    """
    parameters = tuple(
        (_address(parameter), 0 if parameter.is_inference() else parameter._version, parameter.dtype, parameter.device)
        for parameter in model.parameters()
        if parameter.device.type != "meta"  # offloaded: another object after each pass
    )
    adapters = tuple(
        (part.disable_adapters, tuple(part.active_adapters), tuple(part.merged_adapters))
        for part in model.modules()
        if "merged_adapters" in vars(part)
    )
    one = torch.ones(1, 1, device=model.get_input_embeddings().weight.device)
    computed_in = (one @ one).dtype  # by autocast
    settings = (model.select_layer, model.downsample_ratio, model.ps_version, computed_in)
    return weakref.ref(model), hash((parameters, adapters, settings))


def _address(parameter) -> int:
    try:
        return parameter.data_ptr()
    except RuntimeError:  # tensors without a storage of their own: sharded, or quantised by some libraries
        return id(parameter)


# --- what is kept, and how a batch begins with it ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class RoundMemory:
    """Keys and values of the tokens of a conversation, as a model computed them, and the features of its tiles."""

    state: tuple  # what `model_state` gave
    run: TokenRun
    layers: tuple  # (key, value) of each layer, both (1, heads, len(run.ids), head size); empty: only features are kept
    features: dict  # tile key -> (tokens, hidden size)


# A pass for one row reads all weights, which takes a CPU as long as computing about so many columns.
_COLUMNS_A_PASS = 64


class Prefill:
    """Which columns of a batch of prompts, padded on the left, come from memories, and which are computed.

    All rows of a batch compute the same number of columns: as many as the row with the most new tokens needs. A row
    with fewer computes some of its known tokens again, in columns that would be padding otherwise. So the batch is the
    usual one in every column, whatever its rows bring along.

    Attributes:
        width: columns of the batch.
        past: the first so many of them come from memories.
        memories_given: what each row's history holds, as given.
    """

    def __init__(self, runs, memories, limit: Optional[int] = None):
        """
        Args:
            runs: the prompt of each row.
            memories: what each row's history holds; None where that cannot be used.
            limit: tokens in a text up to which its keys are those of a longer text.
        """
        known = [_known(run, memory, limit) for run, memory in zip(runs, memories)]
        self._new = [len(run.ids) - count for run, count in zip(runs, known)]
        computed = max(self._new)
        self._runs, self.memories_given, self._limit = runs, memories, limit
        self._starts = [max(len(run.ids) - computed, 0) for run in runs]  # known tokens that are not computed again
        self.width = max(len(run.ids) for run in runs)
        self.past = self.width - computed

    def runs_ahead(self) -> list:
        """For each row the beginning of its prompt that had better be computed alone, so that fewer columns of the
        batch are padding; None for a row that need not, and for all where that saves less than it costs. A row that has
        a memory goes on from that."""
        lengths = [len(run.ids) for run in self._runs]
        going_on = [new for new, length in zip(self._new, lengths) if new < length]
        least = max(going_on, default=min(self._new))
        saved = len(lengths) * (max(self._new) - least) - sum(max(new - least, 0) for new in self._new)
        ahead = [run.beginning(new - least) if new > least else None for run, new in zip(self._runs, self._new)]
        too_long = self._limit is not None and max(lengths) > self._limit
        pays = saved > _COLUMNS_A_PASS * sum(run is not None for run in ahead)
        return ahead if pays and not too_long else [None] * len(lengths)

    def tiles(self) -> list:
        """Keys of the tiles with image tokens in the computed columns, row after row."""
        return [key for run, start in zip(self._runs, self._starts) for key in run.tiles[_first_tile(run, start)[0] :]]

    def visual_features(self, features: dict) -> Optional[torch.Tensor]:
        """(image tokens in the computed columns, hidden size), from the features of each tile; None without any."""
        found = []
        for run, start in zip(self._runs, self._starts):
            first, skipped = _first_tile(run, start)
            for key in run.tiles[first:]:
                found.append(features[key][skipped:])
                skipped = 0
        return torch.cat(found) if found else None

    def key_values(self) -> Optional[tuple]:
        """Keys and values of the first columns: (rows, heads, past, head size) each, layer by layer; None for none.
        Padding is zero."""
        if not self.past:
            return None
        if len(self._runs) == 1:
            layers = self.memories_given[0].layers
            return tuple((key[:, :, : self.past], value[:, :, : self.past]) for key, value in layers)
        pairs = zip(self.memories_given, self._starts)
        used = [(row, memory, start) for row, (memory, start) in enumerate(pairs) if start]

        def joined(layer, part):
            like = used[0][1].layers[layer][part]
            states = like.new_zeros(len(self._runs), like.shape[1], self.past, like.shape[3])
            for row, memory, start in used:
                states[row, :, self.past - start :] = memory.layers[layer][part][0, :, :start]
            return states

        return tuple((joined(layer, 0), joined(layer, 1)) for layer in range(len(used[0][1].layers)))

    def memories(self, state, answers, stop_ids, layers, features) -> list:
        """What the rows' histories hold after the round: without keys and values where those are not as expected.

        Args:
            state: what `model_state` gave before the round.
            answers: new ids of each row, of one length, whatever follows a stop id being padding.
            stop_ids: ids that end an answer.
            layers: (key, value) of each layer after the round, (rows, heads, columns, head size), or nothing.
            features: of each tile of the batch that is known.
        """
        steps = len(answers[0]) - 1  # the last token was never put in
        if any(part.shape[-2] != self.width + steps for pair in layers for part in pair):
            layers = ()
        found = []
        for row, (run, answer) in enumerate(zip(self._runs, answers)):
            ended = next((index + 1 for index, number in enumerate(answer) if number in stop_ids), steps)
            answer = answer[: min(ended, steps)]
            columns = slice(self.width - len(run.ids), self.width + len(answer))
            own = tuple(tuple(part[row : row + 1, :, columns] for part in pair) for pair in layers)
            if len(answers) > 1:  # a history must not keep the other rows of its batch
                own = tuple(tuple(part.clone() for part in pair) for pair in own)
            grown = TokenRun(run.ids + answer, run.tiles, run.image_id, run.per_tile)
            own_features = {key: features[key] for key in run.tiles if key in features}
            found.append(RoundMemory(state, grown, own, own_features))
        return found


def _known(run: TokenRun, memory: Optional[RoundMemory], limit: Optional[int]) -> int:
    """Number of tokens whose keys and values are known, short of the last token: one at least must go in."""
    if memory is None or not memory.layers:
        return 0
    if limit is not None and max(len(run.ids), len(memory.run.ids)) > limit:
        return 0
    return min(memory.run.common(run), len(run.ids) - 1)


def _first_tile(run: TokenRun, start: int) -> tuple:
    """Index of the first tile with image tokens from `start` on, and how many of its tokens come before."""
    return divmod(run.image_tokens(start), run.per_tile)
