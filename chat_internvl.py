"""The chat interface: prompts in, text out. `ChatMixin` gives a model `chat`, `batch_chat` and `stream_chat`.

No tensor maths here beyond putting rows into a batch: prompts come from `prompt_internvl.py`, answers from
`answer_internvl.py`, and the model is asked through `generate`.
"""

import itertools
import logging

import torch

from .answer_internvl import AnswerDecoder, AnswerStream, generation_settings, is_plain_decoding, padding_id
from .compat_internvl import (
    cache_to_tuples,
    context_length,
    goes_on_beside_padding,
    keeps_every_key,
    returns_cache,
    rotary_limit,
)
from .conversation import get_conv_template
from .features_internvl import distinct, tile_keys
from .history_internvl import ChatHistory, Prefill, RoundMemory, TokenRun, memory_of, model_state
from .preprocessing_internvl import load_image, load_images
from .prompt_internvl import (
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    ImageTokens,
    build_prompt,
    check_history,
    check_length,
    place_images,
    token_id,
)
from .video_internvl import load_video

logger = logging.getLogger(__name__)

_NO_PATCHES = "num_patches_list has {listed} tiles, pixel_values has {given}"


class ChatMixin:
    """Conversations about images and videos for `InternVLChatModel`.

    Nothing that the caller passes is changed: not the generation settings, the tokenizer, the history or the pixels.
    """

    # --- media --------------------------------------------------------------------------------------------------------

    def load_image(self, image_file, **options) -> torch.Tensor:
        """An image as the tiles that this model wants: its tile size, count and thumbnail rule, its device and dtype.

        Args:
            image_file: path, PIL image, bytes, file object or array (see `preprocessing_internvl.load_image`).
            options: any option of that function, in place of the configuration's (`max_num=`, `use_thumbnail=`, ...).

        Returns:
            (tiles, 3, tile size, tile size).
        """
        return self._for_vision(load_image(image_file, **self._tiling(options)))

    def load_images(self, image_files, **options):
        """Several images, read side by side (see `preprocessing_internvl.load_images`).

        Args:
            image_files: list of what `load_image` takes.
            options: those of `load_image`, and `threads`.

        Returns:
            `(pixel_values, num_patches_list)`: (sum of tiles, 3, tile size, tile size) and the tiles of each image.
        """
        pixel_values, num_patches_list = load_images(image_files, **self._tiling(options))
        return self._for_vision(pixel_values), num_patches_list

    def load_video(self, video_path, **options):
        """A video as the frames that this model wants (see `video_internvl.load_video`).

        Returns:
            `(pixel_values, num_patches_list)`: (sum of tiles, 3, tile size, tile size) and the tiles of each frame.
        """
        options.setdefault("input_size", self.config.tile_size)
        pixel_values, num_patches_list = load_video(video_path, **options)
        return self._for_vision(pixel_values), num_patches_list

    def _tiling(self, options: dict) -> dict:
        config = self.config
        return {
            "input_size": config.tile_size,
            "min_num": config.min_dynamic_patch if config.dynamic_image_size else 1,
            "max_num": config.max_dynamic_patch if config.dynamic_image_size else 1,
            "use_thumbnail": config.use_thumbnail,
            **options,
        }

    # --- questions ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def chat(
        self,
        tokenizer,
        pixel_values,
        question,
        generation_config=None,
        history=None,
        return_history=False,
        num_patches_list=None,
        IMG_START_TOKEN=IMG_START_TOKEN,
        IMG_END_TOKEN=IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN=IMG_CONTEXT_TOKEN,
        verbose=False,
        *,
        system_message=None,
        allow_special_tokens=False,
        vision_batch_size=None,
        reuse=True,
    ):
        """Answers a question.

        Args:
            tokenizer: the checkpoint's tokenizer, slow or fast.
            pixel_values: (tiles, 3, size, size) of all images of the conversation, earlier rounds included, in the
                order of their `<image>` placeholders; None for text.
            question: the user's message. With one image and no `<image>` in the conversation, the image comes first.
            generation_config: dictionary of `generate`'s settings, `GenerationConfig` or None (greedy, at most 1024
                tokens). The answer ends at the template's end mark and at the checkpoint's own end tokens.
            history: what an earlier call returned: (question, answer) pairs.
            return_history: also return the history with this round.
            num_patches_list: tiles of each image; None means that all tiles are one image.
            IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN: the checkpoint's image tokens.
            verbose: log prompt and answer at level INFO.
            system_message: in place of the model's for this call; "" means an empty one.
            allow_special_tokens: let reserved tokens inside messages act as control tokens (not for text of strangers).
            vision_batch_size: tiles encoded at a time (see `extract_feature`).
            reuse: compute only what is new since `history`, and let the returned history hold what the next round can
                use (see `ChatHistory`: keys and values of all its tokens). The answer is the same without.

        Returns:
            The answer, or `(answer, history)`; grounding marks (`<ref>`, `<box>`) are kept in it.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an empty question, counts that do not match, tiles of another size, or a prompt that the model's
                context has no room for; the message has both numbers.
        """
        tokens = ImageTokens(self.num_image_token, IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        num_patches_list = _checked_patches(pixel_values, num_patches_list, self.config)
        row = self._row(tokenizer, question, history, num_patches_list, tokens, system_message, allow_special_tokens)
        settings, keywords, stop_ids = generation_settings(self, tokenizer, row.conversation, generation_config)
        output = self._ask(
            tokenizer, [row], pixel_values, tokens, settings, keywords, vision_batch_size, reuse, keep=return_history
        )
        answer = AnswerDecoder(tokenizer, stop_ids).feed(output[0], last=True)
        if verbose:
            logger.info("%s%s", row.conversation.get_prompt(), answer)
        return (answer, row.history_with(answer)) if return_history else answer

    def stream_chat(
        self,
        tokenizer,
        pixel_values,
        question,
        generation_config=None,
        history=None,
        num_patches_list=None,
        IMG_START_TOKEN=IMG_START_TOKEN,
        IMG_END_TOKEN=IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN=IMG_CONTEXT_TOKEN,
        *,
        system_message=None,
        allow_special_tokens=False,
        vision_batch_size=None,
        reuse=True,
    ) -> AnswerStream:
        """Answers a question piece by piece: iterate over the result for the text as it is generated.

        Arguments and errors are those of `chat`; what is wrong with them is raised here and not at the first piece.
        `close()` on the result, or leaving it as a `with` block, ends the generation; `history` has this round, and as
        long as the result is held, what the next round can use.

        Raises:
            ValueError: beside those of `chat`, a `streamer` in `generation_config`.
        """
        tokens = ImageTokens(self.num_image_token, IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        num_patches_list = _checked_patches(pixel_values, num_patches_list, self.config)
        row = self._row(tokenizer, question, history, num_patches_list, tokens, system_message, allow_special_tokens)
        settings, keywords, stop_ids = generation_settings(self, tokenizer, row.conversation, generation_config)
        if "streamer" in keywords:
            raise ValueError(
                "stream_chat brings its own streamer: leave `streamer` out of generation_config, or use chat"
            )
        criteria = list(keywords.pop("stopping_criteria", None) or [])

        def generate(streamer, stopping_criteria):
            stopping_criteria.extend(criteria)
            extra = {**keywords, "streamer": streamer, "stopping_criteria": stopping_criteria}
            self._ask(tokenizer, [row], pixel_values, tokens, settings, extra, vision_batch_size, reuse, keep=True)

        return AnswerStream(generate, AnswerDecoder(tokenizer, stop_ids), on_finish=row.history_with)

    @torch.no_grad()
    def batch_chat(
        self,
        tokenizer,
        pixel_values,
        questions,
        generation_config=None,
        num_patches_list=None,
        history=None,
        return_history=False,
        IMG_START_TOKEN=IMG_START_TOKEN,
        IMG_END_TOKEN=IMG_END_TOKEN,
        IMG_CONTEXT_TOKEN=IMG_CONTEXT_TOKEN,
        verbose=False,
        image_counts=None,
        *,
        system_message=None,
        allow_special_tokens=False,
        vision_batch_size=None,
        reuse=True,
    ):
        """Answers several questions, each with its own images (or none) and its own history, in one batch.

        Args, where they differ from `chat`:
            pixel_values: the tiles of all questions, question after question; None where no question has an image.
            questions: list of messages.
            num_patches_list: one entry a question: the tiles of its one image, a list with the tiles of each of its
                images (or frames), or 0, [] or None for a question without one. None as a whole: one tile each.
            history: None, or a list with one history (or None) a question.
            return_history: also return the list of histories.
            reuse: as in `chat`; a batch computes as many columns as its row with the most new tokens needs.
            image_counts: old name of `num_patches_list`.

        Returns:
            List of answers, or `(answers, histories)`. Greedy answers equal those of `chat`, question by question.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: lists of different lengths, or counts that do not match; the message has both numbers.
        """
        if isinstance(questions, str):
            raise TypeError("questions must be a list of strings, got one string")
        questions = list(questions)
        if num_patches_list is not None and image_counts is not None:
            raise ValueError("image_counts is the old name of num_patches_list: give one of them")
        num_patches_list = image_counts if num_patches_list is None else num_patches_list
        per_question = _patches_per_question(pixel_values, num_patches_list, len(questions), self.config)
        histories = [None] * len(questions) if history is None else list(history)
        if len(histories) != len(questions):
            raise ValueError(f"{len(histories)} histories for {len(questions)} questions")
        if not questions:
            return ([], []) if return_history else []
        tokens = ImageTokens(self.num_image_token, IMG_START_TOKEN, IMG_END_TOKEN, IMG_CONTEXT_TOKEN)
        rows = [
            self._row(tokenizer, question, past, patches, tokens, system_message, allow_special_tokens)
            for question, past, patches in zip(questions, histories, per_question)
        ]
        settings, keywords, stop_ids = generation_settings(self, tokenizer, rows[0].conversation, generation_config)
        output = self._ask(
            tokenizer, rows, pixel_values, tokens, settings, keywords, vision_batch_size, reuse, keep=return_history
        )
        answers = [AnswerDecoder(tokenizer, stop_ids).feed(ids, last=True) for ids in output]
        if verbose:
            for row, answer in zip(rows, answers):
                logger.info("%s%s", row.conversation.get_prompt(), answer)
        return (
            (answers, [row.history_with(answer) for row, answer in zip(rows, answers)]) if return_history else answers
        )

    def count_tokens(
        self,
        tokenizer,
        pixel_values,
        question,
        history=None,
        num_patches_list=None,
        *,
        system_message=None,
        allow_special_tokens=False,
    ) -> int:
        """Number of tokens of the prompt that `chat` would send for the same arguments, images included."""
        num_patches_list = _checked_patches(pixel_values, num_patches_list, self.config)
        tokens = ImageTokens(self.num_image_token)
        parts = (tokenizer, question, history, num_patches_list, tokens, system_message, allow_special_tokens)
        return len(self._row(*parts, fits=False).input_ids)

    # --- parts --------------------------------------------------------------------------------------------------------

    def _row(
        self, tokenizer, question, history, num_patches_list, tokens, system_message, allow_special_tokens, fits=True
    ):
        """The prompt of one question; `fits` makes one that is too long for the model an error."""
        question = place_images(question, history, len(num_patches_list))
        conversation = get_conv_template(self.template)
        conversation.set_system_message(self.system_message if system_message is None else system_message)
        pairs = check_history(history)
        for asked, answered in pairs:
            conversation.append_message(conversation.roles[0], asked)
            conversation.append_message(conversation.roles[1], answered)
        conversation.append_message(conversation.roles[0], question)
        conversation.append_message(conversation.roles[1], None)
        ids = build_prompt(tokenizer, conversation, num_patches_list, tokens, allow_special_tokens)
        if fits:
            limit = context_length(self.config.get_text_config())
            check_length(len(ids), limit, num_patches_list, tokens, len(pairs))
        return _Row(conversation, ids, pairs, question, sum(num_patches_list), memory_of(history))

    @torch.no_grad()
    def _ask(self, tokenizer, rows, pixel_values, tokens, settings, keywords, vision_batch_size, reuse, keep) -> list:
        """Runs `generate` on the prompts, padded on the left; returns the new ids of each row as lists.

        What the rows' histories hold is used if `reuse`; with `keep`, the rows then hold what the next round can use.
        """
        width = max(len(row.input_ids) for row in rows)
        if settings.max_new_tokens is None:  # with embeddings as input, releases disagree on what `max_length` counts
            if settings.max_length <= width:
                raise ValueError(
                    f"max_length={settings.max_length} leaves no room for an answer to a prompt of {width} tokens"
                )
            settings.max_new_tokens = settings.max_length - width
            settings.max_length = None
        pad = padding_id(tokenizer, settings.eos_token_id)
        ids = torch.tensor([[pad] * (width - len(row.input_ids)) + row.input_ids for row in rows])
        mask = torch.tensor([[0] * (width - len(row.input_ids)) + [1] * len(row.input_ids) for row in rows])

        image_id = token_id(tokenizer, tokens.context)
        keep = keep and reuse
        state = model_state(self) if keep or (reuse and any(row.memory for row in rows)) else None
        memories = [row.memory if state and row.memory and row.memory.state == state else None for row in rows]
        keys = [] if pixel_values is None else tile_keys(pixel_values, lasting=state is not None)
        ends = itertools.accumulate(row.num_tiles for row in rows)
        runs = [
            TokenRun(row.input_ids, tuple(keys[end - row.num_tiles : end]), image_id, tokens.per_tile)
            for row, end in zip(rows, ends)
        ]
        llm_config = self.config.llm_config
        grows = is_plain_decoding(settings, keywords) and keeps_every_key(llm_config)
        goes_on = grows and (len(rows) == 1 or goes_on_beside_padding())
        limit = rotary_limit(llm_config)
        prefill = Prefill(runs, memories if goes_on else [None] * len(rows), limit)

        features = {key: feature for memory in memories if memory for key, feature in memory.features.items()}
        first = distinct(keys)[0]
        new_tiles = {key: first[key] for key in prefill.tiles() if key not in features}
        if new_tiles:
            encoded = self.extract_feature(pixel_values[list(new_tiles.values())], vision_batch_size)
            # A history must not keep the other tiles encoded with its own.
            features.update(zip(new_tiles, (tile.clone() for tile in encoded) if keep else encoded))
        if keep and grows:
            returns_cache(settings)
        if goes_on and len(rows) > 1 and self.get_input_embeddings().weight.device.type == "cpu":
            prefill = Prefill(runs, self._ahead(prefill, features, image_id), limit)
        output = self.generate_new_tokens(
            visual_features=prefill.visual_features(features),
            input_ids=ids,
            attention_mask=mask,
            generation_config=settings,
            img_context_token_id=image_id,
            prefix_key_values=prefill.key_values(),
            **keywords,
        )
        answers = getattr(output, "sequences", output).tolist()
        if keep:
            layers = cache_to_tuples(getattr(output, "past_key_values", None) or ()) if grows else ()
            for row, memory in zip(rows, prefill.memories(state, answers, settings.eos_token_id, layers, features)):
                row.next_memory = memory
        return answers

    def _ahead(self, prefill, features, image_id) -> list:
        """The memories of a batch, with one for each row that had better begin alone: a CPU computes padding, too."""
        device, memories = self.get_input_embeddings().weight.device, []
        for run, memory in zip(prefill.runs_ahead(), prefill.memories_given):
            if run is not None:
                shown = [features[key] for key in run.tiles]
                embeds = self.merge_embeddings(
                    torch.tensor([run.ids], device=device),
                    torch.cat(shown)[: run.image_tokens(len(run.ids))] if shown else None,
                    image_id,
                )
                layers = cache_to_tuples(self(inputs_embeds=embeds, use_cache=True, logits_to_keep=1).past_key_values)
                memory = RoundMemory((), run, layers, {})
            memories.append(memory)
        return memories


class _Row:
    """One prompt: its conversation, its ids, and what the history becomes with the answer."""

    def __init__(self, conversation, input_ids, pairs, question, num_tiles, memory):
        self.conversation = conversation
        self.input_ids = input_ids
        self.num_tiles = num_tiles
        self.memory = memory  # of the history
        self.next_memory = None  # of the history with the answer
        self._pairs = pairs
        self._question = question

    def history_with(self, answer: str) -> ChatHistory:
        return ChatHistory([*self._pairs, (self._question, answer)], self.next_memory)


def _checked_patches(pixel_values, num_patches_list, config) -> list:
    """Tiles of each image, checked against the pixels, and those against the model's tiles.

    Raises:
        TypeError: `pixel_values` is not a tensor of floats, `num_patches_list` not a list of integers.
        ValueError: an image without tiles, sums that differ, or tiles of another size than the model's.
    """
    if pixel_values is not None and not torch.is_tensor(pixel_values):
        raise TypeError(f"pixel_values must be a tensor or None, got {type(pixel_values).__name__}")
    given = 0 if pixel_values is None else pixel_values.shape[0] if pixel_values.dim() else 1
    if pixel_values is not None and given == 0:
        raise ValueError("pixel_values has no tiles: pass None for a question without images")
    if given:
        expected = (config.vision_config.num_channels, config.tile_size, config.tile_size)
        if tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(f"the model's tiles are {expected}, pixel_values is {tuple(pixel_values.shape)}")
        if not pixel_values.is_floating_point():
            raise TypeError(f"pixel_values must be normalised floats (see load_image), got {pixel_values.dtype}")
    if num_patches_list is None:
        return [given] if given else []
    try:
        listed = [count.__index__() for count in num_patches_list]
    except (TypeError, AttributeError):
        raise TypeError(f"num_patches_list must be a list of integers, got {num_patches_list!r}") from None
    if any(count < 1 for count in listed):
        raise ValueError(f"every image has at least one tile, got num_patches_list={listed}")
    if sum(listed) != given:
        raise ValueError(_NO_PATCHES.format(listed=sum(listed), given=given))
    return listed


def _patches_per_question(pixel_values, num_patches_list, num_questions, config) -> list:
    """For each question the tiles of its images, from any of the forms that `batch_chat` takes."""
    if num_patches_list is None:
        whole = _checked_patches(pixel_values, None, config)
        if not whole:
            return [[] for _ in range(num_questions)]
        if num_questions == 1:
            return [whole]
        if whole[0] == num_questions:
            return [[1] for _ in range(num_questions)]
        raise ValueError(
            f"pixel_values has {whole[0]} tiles for {num_questions} questions: "
            "num_patches_list must tell whose they are"
        )
    entries = list(num_patches_list)
    if len(entries) != num_questions:
        raise ValueError(f"num_patches_list has {len(entries)} entries for {num_questions} questions")
    lists = [list(entry) if isinstance(entry, (list, tuple)) else [entry] if entry else [] for entry in entries]
    _checked_patches(pixel_values, [count for counts in lists for count in counts], config)
    return lists
