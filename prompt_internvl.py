"""From a conversation to token ids: the one prompt builder behind `chat`, `batch_chat`, `stream_chat`, the processor.

What comes from outside is data. A reserved token inside a question, an answer or a system message is encoded as plain
text: the prompt is cut inside it, so that the tokenizer never sees it whole. A prompt without such text is tokenised in
one piece, exactly as the published code does.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

IMAGE_PLACEHOLDER = "<image>"
VIDEO_PLACEHOLDER = "<video>"
IMG_START_TOKEN = "<img>"
IMG_END_TOKEN = "</img>"
IMG_CONTEXT_TOKEN = "<IMG_CONTEXT>"

# Marks of the family's grounding format; they carry meaning in questions and answers and stay usable in both.
GROUNDING_TOKENS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")


@dataclass(frozen=True)
class ImageTokens:
    """How an image stands in a prompt: `start`, then `per_tile` times `context` for each tile, then `end`."""

    per_tile: int
    start: str = IMG_START_TOKEN
    end: str = IMG_END_TOKEN
    context: str = IMG_CONTEXT_TOKEN

    def text(self, num_tiles: int) -> str:
        return self.start + self.context * (self.per_tile * num_tiles) + self.end


class Prompt(str):
    """A rendered prompt that remembers which of its text is data: `pieces`, joined, are the string.

    It is cut inside every reserved token that came from a message, so that the tokenizer never sees such a one whole.
    What string operations make of it is a plain string, without that memory.
    """

    def __new__(cls, pieces):
        pieces = (pieces,) if isinstance(pieces, str) else tuple(pieces)
        prompt = super().__new__(cls, "".join(pieces))
        prompt.pieces = pieces
        return prompt


def frame_prefix(num_frames: int) -> str:
    """The lines that put the frames of a video before a question: `Frame1: <image>`, `Frame2: <image>`, ..."""
    return "".join(f"Frame{index}: {IMAGE_PLACEHOLDER}\n" for index in range(1, num_frames + 1))


def place_images(question: str, history, num_images: int) -> str:
    """The question with a placeholder for its image where the caller left it out.

    A conversation with one image and no `<image>` anywhere gets it in front of the question, as published.

    Raises:
        TypeError: the question is not a string, or the history not made of (question, answer) pairs of strings.
        ValueError: the question is empty, or placeholders and images differ in number (the message has both).
    """
    if not isinstance(question, str):
        raise TypeError(f"question must be a string, got {type(question).__name__}")
    if not question.strip():
        raise ValueError("question is empty")
    earlier = sum(asked.count(IMAGE_PLACEHOLDER) for asked, _ in check_history(history))
    placeholders = earlier + question.count(IMAGE_PLACEHOLDER)
    if placeholders == 0 and num_images == 1:
        return f"{IMAGE_PLACEHOLDER}\n{question}"
    if placeholders != num_images:
        raise ValueError(
            f"{placeholders} {IMAGE_PLACEHOLDER} placeholders ({earlier} of them in the history) for {num_images} "
            f"images: put one {IMAGE_PLACEHOLDER} where each image belongs, and its tiles into pixel_values and "
            "num_patches_list"
        )
    return question


def check_history(history) -> list:
    """The history as a list of (question, answer) pairs; None is an empty one.

    Raises:
        TypeError: an entry is not a pair of strings.
    """
    pairs = []
    for index, pair in enumerate(history or ()):
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise TypeError(f"history[{index}] must be a (question, answer) pair of strings, got {pair!r}")
        pairs.append((pair[0], pair[1]))
    return pairs


def check_length(length: int, limit, num_patches_list, image_tokens, num_rounds: int) -> None:
    """Whether a prompt of `length` tokens leaves room for an answer among the `limit` (or None) that a model knows.

    Raises:
        ValueError: it does not; the message has both numbers, and where the tokens come from.
    """
    if limit is None or length < limit:
        return
    tiles = sum(num_patches_list)
    images = image_tokens.per_tile * tiles + 2 * len(num_patches_list)
    raise ValueError(
        f"the prompt has {length} tokens, which leaves no room for an answer in the {limit} that the model knows: "
        f"{images} of {len(num_patches_list)} images in {tiles} tiles, {length - images} of the text with {num_rounds} "
        "earlier rounds. Fewer tiles (max_num=), frames (num_segments=) or rounds make it shorter"
    )


def build_prompt(tokenizer, conversation, num_patches_list, image_tokens, allow_special_tokens=False) -> list:
    """The token ids of a conversation.

    Args:
        tokenizer: any tokenizer of transformers, slow or fast; it is not changed.
        conversation: a `Conversation` whose user messages hold one `<image>` for each image.
        num_patches_list: number of tiles of each image, in order.
        image_tokens: `ImageTokens`.
        allow_special_tokens: let reserved tokens in the messages act as what they are, as the published code does.

    Returns:
        List of ids, with the tokenizer's own start token where it has one.

    Raises:
        ValueError: the image tokens are not in the vocabulary, or do not come out in the expected number.
    """
    context_id = token_id(tokenizer, image_tokens.context)
    if context_id is None and num_patches_list:
        raise ValueError(
            f"the tokenizer has no token {image_tokens.context!r}: it does not belong to an InternVL model"
        )
    reserved = () if allow_special_tokens else reserved_tokens(tokenizer, image_tokens)
    remaining = list(num_patches_list)
    pieces = [""]  # the tokenizer sees each piece on its own; a new one starts inside a reserved token

    def add_data(text):
        first, *others = cut_behind(text, reserved_starts(text, reserved))
        pieces[-1] += first
        pieces.extend(others)

    for text, author in conversation.parts():
        if author == "template":
            pieces[-1] += text
        elif author == "user":
            first, *others = text.split(IMAGE_PLACEHOLDER)
            add_data(first)
            for other in others:
                pieces[-1] += image_tokens.text(remaining.pop(0))
                add_data(other)
        else:
            add_data(text)

    ids = encode_pieces(tokenizer, pieces)
    expected = image_tokens.per_tile * sum(num_patches_list)
    found = ids.count(context_id) if context_id is not None else 0
    if found != expected:
        raise ValueError(
            f"the prompt has {found} image tokens where the images have {expected}: "
            f"is {image_tokens.context!r} in a message?"
        )
    return ids


def encode_pieces(tokenizer, pieces, add_special_tokens=True) -> list:
    """The ids of a prompt in pieces: each is tokenised on its own, the first with the tokenizer's own start token."""
    ids = list(tokenizer(pieces[0], add_special_tokens=add_special_tokens)["input_ids"])
    for piece in pieces[1:]:
        ids += tokenizer(piece, add_special_tokens=False)["input_ids"]
    return ids


def token_id(tokenizer, token: str):
    """The id of a token of the vocabulary, or None where the tokenizer does not have it."""
    found = tokenizer.convert_tokens_to_ids(token)
    if found is None or (found == tokenizer.unk_token_id and token != tokenizer.unk_token):
        return None
    return found


def special_ids(tokenizer) -> dict:
    """Tokens that the tokenizer marks as special, with their ids, without the grounding marks."""
    marked = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    marked.update(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids))
    return {token: number for token, number in marked.items() if token and token not in GROUNDING_TOKENS}


def reserved_tokens(tokenizer, image_tokens) -> tuple:
    """Texts that must not be taken from a message as tokens: the special ones, those that frame an image, what is
    written like the role marks of the family (some tokenizers do not mark all of them as special), and what those are
    called in a SentencePiece model: InternLM2's `<|im_end|>` is also its piece `[UNUSED_TOKEN_145]`."""
    ids = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
    ids = {token: number for token, number in ids.items() if token.startswith("<|") and token.endswith("|>")}
    ids.update(special_ids(tokenizer))
    names = {*ids, image_tokens.start, image_tokens.end, image_tokens.context}
    pieces = getattr(tokenizer, "sp_model", None)
    if pieces is not None:
        size = pieces.get_piece_size()
        names.update(pieces.id_to_piece(number) for number in ids.values() if number < size)
    return tuple(sorted(names))


@lru_cache(maxsize=16)
def _reserved_pattern(reserved):
    return re.compile("(?=" + "|".join(map(re.escape, reserved)) + ")")  # look-ahead: overlapping ones count too


def reserved_starts(text: str, reserved) -> list:
    """Positions in `text` at which a reserved token begins."""
    return [match.start() for match in _reserved_pattern(reserved).finditer(text)] if reserved else []


def cut_behind(text: str, starts) -> list:
    """`text` in pieces, cut behind the characters at `starts`, so that what begins there is in no piece as a whole."""
    cuts = [start + 1 for start in starts]
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)])]
