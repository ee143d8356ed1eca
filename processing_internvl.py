"""The processor: conversations and their media to model inputs, behind `AutoProcessor` and `pipeline`.

Images go through `image_processing_internvl.py`, videos through `video_processing_internvl.py`, messages through
`messages_internvl.py`; the ids are those of `build_prompt`. What `chat` sends to the model and what comes out of here
for the same conversation is equal.
"""

import re
from pathlib import Path

import torch
import transformers
from transformers import BatchFeature

# transformers before 5 copies only the files that this file itself imports, so that all of them are named here.
from .chat_template_internvl import jinja_template
from .compat_internvl import multimodal_token_counts, processor_bases, stored_json, stored_text
from .configuration_intern_vit import InternVisionConfig  # noqa: F401
from .configuration_internlm2 import InternLM2Config  # noqa: F401
from .configuration_internvl_chat import InternVLChatConfig  # noqa: F401
from .conversation import get_conv_template  # noqa: F401
from .image_processing_internvl import (
    InternVLChatImageProcessor,
    flat_list,
    model_configuration,
    refuse_unknown,
    write_settings,
)
from .messages_internvl import as_conversations, fetch, render, take_media
from .preprocessing_internvl import load_image  # noqa: F401
from .prompt_internvl import (
    IMAGE_PLACEHOLDER,
    IMG_CONTEXT_TOKEN,
    IMG_END_TOKEN,
    IMG_START_TOKEN,
    VIDEO_PLACEHOLDER,
    ImageTokens,
    encode_pieces,
    frame_prefix,
    reserved_tokens,
    special_ids,
    token_id,
)
from .video_internvl import load_video  # noqa: F401
from .video_processing_internvl import InternVLChatVideoProcessor, is_video

ProcessorMixin, _, _ = processor_bases()

SETTINGS_FILE = "processor_config.json"
TEMPLATE_FILE = "chat_template.jinja"

# Options of a call that concern the text; the others are settings of the image and the video part.
_TEXT_OPTIONS = (
    *("padding", "padding_side", "max_length", "pad_to_multiple_of", "truncation", "add_special_tokens"),
    *("return_attention_mask", "return_mm_token_type_ids"),
)
_VIDEO_OPTIONS = ("num_frames", "fps", "do_sample_frames")  # further ones in `videos_kwargs`: they are images' too
_GROUPS = ("text_kwargs", "images_kwargs", "videos_kwargs", "common_kwargs", "processor_kwargs")
_PLACEHOLDERS = re.compile("|".join(map(re.escape, (IMAGE_PLACEHOLDER, IMG_CONTEXT_TOKEN, VIDEO_PLACEHOLDER))))
# Keywords of `from_pretrained` that the tokenizer wants to see as well.
_FOR_TOKENIZER = (
    *("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "trust_remote_code"),
    *("use_fast", "padding_side", "code_revision", "proxies"),
)


class InternVLChatProcessor(ProcessorMixin):
    """A tokenizer, an image part and a video part that together make the inputs of an InternVL model.

    Args:
        image_processor: `InternVLChatImageProcessor`; None makes one with default settings.
        tokenizer: the checkpoint's tokenizer; it is not changed.
        video_processor: `InternVLChatVideoProcessor`; None makes one with the size, mean and standard deviation of the
            image part.
        image_seq_length: tokens that one tile takes in the prompt, the configuration's `num_image_token`.
        chat_template: Jinja chat template.
        allow_urls: download `http(s)` URLs in messages. Never read from a file: a checkpoint cannot switch it on.
    """

    attributes = ["image_processor", "tokenizer", "video_processor"]
    image_token = IMG_CONTEXT_TOKEN
    start_image_token = IMG_START_TOKEN
    end_image_token = IMG_END_TOKEN
    video_token = VIDEO_PLACEHOLDER

    def __init__(
        self,
        image_processor=None,
        tokenizer=None,
        video_processor=None,
        image_seq_length=256,
        chat_template=None,
        allow_urls=False,
    ):
        # Not the base class's `__init__`: it differs by release, and demands torchvision for the video part.
        if tokenizer is None:
            raise ValueError("InternVLChatProcessor needs a tokenizer")
        self.image_processor = InternVLChatImageProcessor() if image_processor is None else image_processor
        self.tokenizer = tokenizer
        if video_processor is None:
            shared = {name: getattr(self.image_processor, name) for name in ("size", "image_mean", "image_std")}
            video_processor = InternVLChatVideoProcessor(**shared)
        self.video_processor = video_processor
        self.image_seq_length = image_seq_length
        self.chat_template = chat_template
        self.allow_urls = allow_urls
        self._tokens = ImageTokens(image_seq_length)

    # --- loading and saving -------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Loads a saved processor, or makes one from the configuration of an InternVL model (a published checkpoint).

        Args:
            kwargs: settings of the image part (`max_patches=6`) and of the video part (`num_frames=8`), `allow_urls`,
                and what transformers' `from_pretrained` takes; the rest is ignored.

        Raises:
            OSError: the folder holds neither.
        """
        stored = stored_json(pretrained_model_name_or_path, SETTINGS_FILE, kwargs) or {}
        is_ours = stored.get("processor_class") == cls.__name__
        config = model_configuration(pretrained_model_name_or_path, kwargs)
        length = stored.get("image_seq_length") if is_ours else None
        if config is None and length is None:
            raise OSError(
                f"{pretrained_model_name_or_path} has no {SETTINGS_FILE} of ours and no config.json of InternVL"
            )
        template = stored_text(pretrained_model_name_or_path, TEMPLATE_FILE, kwargs) if is_ours else None
        if template is None and config is not None:  # published ones do not all say the same as their `chat`
            template = jinja_template(config.conversation())
        for_tokenizer = {name: kwargs[name] for name in _FOR_TOKENIZER if kwargs.get(name) is not None}
        for_tokenizer.setdefault("padding_side", "left")  # `pipeline` with a batch size pads by the tokenizer's side
        wants_unused = kwargs.pop("return_unused_kwargs", False)
        images = InternVLChatImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        videos = InternVLChatVideoProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = cls(
            image_processor=images,
            tokenizer=transformers.AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **for_tokenizer),
            video_processor=videos,
            image_seq_length=config.num_image_token if length is None else length,
            chat_template=kwargs.get("chat_template") or template,
            allow_urls=kwargs.get("allow_urls", False),
        )
        return (processor, {}) if wants_unused else processor

    def to_dict(self, legacy_serialization=True) -> dict:
        """The settings beside those of the parts. transformers passes `legacy_serialization`; it changes nothing."""
        return self.settings(self.image_seq_length)

    @classmethod
    def settings(cls, image_seq_length: int) -> dict:
        """What `to_dict` says of a processor of that length."""
        return {"processor_class": cls.__name__, "image_seq_length": image_seq_length}

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        """Writes tokenizer, settings, chat template and code, in files that every release reads; returns their paths.

        `push_to_hub` and its options as in transformers.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        named = self.tokenizer.save_pretrained(folder) or ()  # 4.37 and 4.40 name a file more than they write
        paths = [str(path) for path in named if Path(path).is_file()]
        paths += self.image_processor.save_pretrained(folder)
        paths += self.video_processor.save_pretrained(folder)
        write_settings(folder, SETTINGS_FILE, self.to_dict())
        paths.append(str(folder / SETTINGS_FILE))
        if self.chat_template is not None:
            (folder / TEMPLATE_FILE).write_text(self.chat_template, encoding="utf-8")
            paths.append(str(folder / TEMPLATE_FILE))
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
        return paths

    # --- what engines ask for -----------------------------------------------------------------------------------------

    @property
    def image_token_id(self):
        return token_id(self.tokenizer, self.image_token)

    @property
    def start_image_token_id(self):
        return token_id(self.tokenizer, self.start_image_token)

    @property
    def end_image_token_id(self):
        return token_id(self.tokenizer, self.end_image_token)

    @property
    def image_token_ids(self) -> list:
        return [self.image_token_id, self.start_image_token_id, self.end_image_token_id]

    @property
    def model_input_names(self) -> list:
        return ["input_ids", "attention_mask", "pixel_values"]

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs):
        """Tokens and tiles of images of the given sizes, without pixels, counted by the function that cuts the tiles.

        Args:
            image_sizes: (height, width) of each image in pixels.
            kwargs: settings of the image part.

        Returns:
            `num_image_tokens`, the two that frame an image included, and `num_image_patches`; read with `[name]`.
        """
        if image_sizes is None:
            return multimodal_token_counts()
        options = {**kwargs.pop("images_kwargs", {}), **kwargs}
        options = {name: value for name, value in options.items() if name in self.image_processor.settings_names()}
        patches = [self.image_processor.get_number_of_image_patches(*size, options) for size in image_sizes]
        tokens = [self.image_seq_length * count + 2 for count in patches]
        return multimodal_token_counts(num_image_tokens=tokens, num_image_patches=patches)

    # --- text and media to inputs -------------------------------------------------------------------------------------

    def __call__(self, images=None, text=None, videos=None, **kwargs) -> BatchFeature:
        """Prompts and their media to model inputs.

        A prompt given here is the caller's own: special tokens act in it, and `<image>` (or `<IMG_CONTEXT>`) and
        `<video>` are the places of images and videos. So never put a stranger's words into it; what
        `apply_chat_template` returned may be passed, because it remembers which of its text came from messages.

        Args:
            images: one, a list, or a list for each prompt: paths, PIL images, bytes, arrays, tensors, data URLs.
            text: a prompt or a list of prompts; None gives `pixel_values` and `num_patches` only.
            videos: as `images`: paths, bytes, lists of pictures, arrays or tensors of frames.
            kwargs: `padding` (False), `padding_side` ("left"), `max_length`, `pad_to_multiple_of`, `truncation`,
                `add_special_tokens`, `return_attention_mask` (True), `return_mm_token_type_ids`, `return_tensors`
                ("pt", "np" or None for lists), `allow_urls`, and settings of the image and the video part, flat or in
                `text_kwargs`, `images_kwargs`, `videos_kwargs`.

        Returns:
            `input_ids`, `attention_mask` (prompts, length) int64 and, with media, `pixel_values` (tiles, 3, size, size)
            float32 of all images and frames in the order of their places; `mm_token_type_ids` where asked for (1 for
            the tokens of an image).

        Raises:
            MediaLoadError: an image or a video cannot be read.
            TypeError: an unknown option, or an object of the wrong kind.
            ValueError: places and media differ in number (the message has both), rows of different lengths are to
                become a tensor without padding, or truncation would cut an image.
        """
        options = self._options(kwargs)
        allow_urls, tensors = options["allow_urls"], options["return_tensors"]
        if text is None:
            if images is None or videos is not None:
                raise ValueError("expected text, or images alone")
            return self.image_processor(
                [fetch(image, "image", allow_urls) for image in flat_list(images)],
                return_tensors=tensors,
                **options["images"],
            )
        prompts = [text] if isinstance(text, str) else list(text)
        wrong = [prompt for prompt in prompts if not isinstance(prompt, str)]
        if wrong or not prompts:
            raise TypeError(f"text must be a string or a list of strings, got {wrong[0] if wrong else text!r:.200}")
        places = [_PLACEHOLDERS.findall("\0".join(_pieces(prompt))) for prompt in prompts]
        wanted_videos = [found.count(VIDEO_PLACEHOLDER) for found in places]
        wanted_images = [len(found) - count for found, count in zip(places, wanted_videos)]
        images = iter(_checked("image", images, wanted_images))
        videos = iter(_checked("video", videos, wanted_videos, is_video))

        pixel_values = []

        def tokens_of(match) -> str:
            if match.group() == VIDEO_PLACEHOLDER:
                video = fetch(next(videos), "video", allow_urls)
                tiles, patches = self.video_processor.tiles(video, **options["videos"])
                before = frame_prefix(len(patches))[:-1].split(IMAGE_PLACEHOLDER)  # the line ends after the place
                written = "".join(head + self._tokens.text(count) for head, count in zip(before, patches))
            else:
                tiles = self.image_processor.tiles(fetch(next(images), "image", allow_urls), **options["images"])
                written = self._tokens.text(len(tiles))
            pixel_values.append(tiles)
            return written

        rows = []
        for prompt in prompts:
            before = sum(map(len, pixel_values))
            pieces = [_PLACEHOLDERS.sub(tokens_of, piece) for piece in _pieces(prompt)]
            rows.append(self._row(pieces, sum(map(len, pixel_values)) - before, options["text"]))
        data = self._batch(rows, options["text"], tensors)
        if pixel_values:
            data["pixel_values"] = torch.cat(pixel_values)
        return BatchFeature(data, tensor_type=tensors)

    def _options(self, given: dict) -> dict:
        """The options of a call, sorted: those of the text, the images, the videos, and what concerns all of them."""
        given = {**(given.get("processor_kwargs") or {}), **given}  # the name since 5.x of what stood beside it before
        groups = {name: dict(given.pop(name, None) or {}) for name in _GROUPS}
        flat = {**groups["common_kwargs"], **given}
        tensors = flat.pop("return_tensors", None)
        for group in groups.values():
            tensors = group.pop("return_tensors", None) or tensors
        allow_urls = flat.pop("allow_urls", None)
        text = {name: flat.pop(name) for name in _TEXT_OPTIONS if name in flat}
        images = {name: flat.pop(name) for name in self.image_processor.settings_names() if name in flat}
        videos = {name: flat.pop(name) for name in _VIDEO_OPTIONS if name in flat}
        refuse_unknown(flat, type(self).__name__, self._option_names())
        for_text = groups["text_kwargs"]
        refuse_unknown(
            {name: for_text[name] for name in for_text if name not in _TEXT_OPTIONS}, "text_kwargs", _TEXT_OPTIONS
        )
        return {
            "text": {**text, **groups["text_kwargs"]},
            "images": {**images, **groups["images_kwargs"]},
            "videos": {**videos, **groups["videos_kwargs"]},
            "return_tensors": None if tensors == "auto" else tensors,
            "allow_urls": self.allow_urls if allow_urls is None else allow_urls,
        }

    def _option_names(self) -> tuple:
        images = self.image_processor.settings_names()
        return ("return_tensors", "allow_urls", *_TEXT_OPTIONS, *images, *_VIDEO_OPTIONS, *_GROUPS)

    def _row(self, pieces, num_tiles, options) -> list:
        """The ids of one prompt, checked for the tokens of its images."""
        bos = self.tokenizer.bos_token
        adds = options.get("add_special_tokens", True) and not (bos and pieces[0].startswith(bos))
        ids = encode_pieces(self.tokenizer, pieces, add_special_tokens=adds)
        if options.get("truncation") not in (None, False, "do_not_truncate"):
            limit = options.get("max_length") or self.tokenizer.model_max_length
            ids = ids[-limit:] if getattr(self.tokenizer, "truncation_side", "right") == "left" else ids[:limit]
        found, expected = ids.count(self.image_token_id), self.image_seq_length * num_tiles
        if found != expected:
            raise ValueError(
                f"the prompt has {found} image tokens where its images have {expected}: it was truncated, or the "
                f"tokenizer has no {self.image_token!r}"
            )
        return ids

    def _batch(self, rows, options, tensors) -> dict:
        """Rows of ids as the entries of a batch, padded where asked for."""
        padding = options.get("padding", False)
        width = max(map(len, rows))
        if padding == "max_length":
            if options.get("max_length") is None:
                raise ValueError("padding='max_length' needs max_length")
            width = max(width, options["max_length"])
        multiple = options.get("pad_to_multiple_of") or 1
        width = -(-width // multiple) * multiple
        pads = padding not in (None, False, "do_not_pad")
        if tensors is not None and not pads and len(set(map(len, rows))) > 1:
            raise ValueError(f"prompts of {sorted(set(map(len, rows)))} tokens make no tensor: pass padding=True")
        kinds = set(self.image_token_ids)
        fill = self.tokenizer.pad_token_id
        columns = {"input_ids": (rows, fill if fill is not None else self.tokenizer.eos_token_id or 0)}
        if options.get("return_attention_mask", True) is not False:
            columns["attention_mask"] = ([[1] * len(row) for row in rows], 0)
        if options.get("return_mm_token_type_ids"):
            columns["mm_token_type_ids"] = ([[int(number in kinds) for number in row] for row in rows], 0)
        if not pads:
            return {name: values for name, (values, _) in columns.items()}
        to_the_right = options.get("padding_side") == "right"
        return {
            name: [
                row + [value] * (width - len(row)) if to_the_right else [value] * (width - len(row)) + row
                for row in values
            ]
            for name, (values, value) in columns.items()
        }

    # --- conversations to inputs --------------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        conversation,
        chat_template=None,
        tools=None,
        documents=None,
        add_generation_prompt=False,
        continue_final_message=False,
        tokenize=False,
        return_tensors=None,
        return_dict=False,
        allow_special_tokens=False,
        **kwargs,
    ):
        """Messages to a prompt, or with `tokenize=True` to model inputs, their images and videos included.

        Args:
            conversation: a list of messages, or a list of such lists. A message has a `role` (system, user, assistant,
                tool) and a `content`: a text, or parts `{"type": "text", "text": ...}`, `{"type": "image", "image" |
                "url" | "path" | "base64": ...}`, `{"type": "video", "video" | "url" | "path": ...}`. A medium is what
                `__call__` takes. A video may be a list of pictures.
            chat_template: Jinja template in place of the processor's.
            tools: descriptions of functions (JSON schemas), or the functions themselves.
            add_generation_prompt: open the answer that the model is to write.
            continue_final_message: leave the last message open instead of closing it.
            return_dict: with `tokenize`, all inputs instead of the `input_ids` alone.
            allow_special_tokens: let reserved tokens inside messages act as control tokens (not for text of strangers).
            kwargs: options of `__call__` (`padding`, `num_frames`, `allow_urls`, ...); variables of the template.

        Returns:
            The prompt, or a list of prompts for a list of conversations; with `tokenize` what `__call__` returns.

        Raises:
            ValueError, TypeError, MediaLoadError: as `__call__`; messages that are none.
        """
        template = self.chat_template if chat_template is None else chat_template
        if template is None:
            raise ValueError("the processor has no chat template: pass chat_template")
        conversations, is_batch = as_conversations(conversation)
        known = self._option_names()
        for_template = [name for name in kwargs if name not in known and re.search(rf"\b{name}\b", template)]
        variables = {name: kwargs.pop(name) for name in for_template}
        kwargs.pop("sanitize_control_tokens", None)  # of 5.23; here always so, unless allow_special_tokens
        reserved = () if allow_special_tokens else reserved_tokens(self.tokenizer, self._tokens)
        if add_generation_prompt and continue_final_message:
            raise ValueError("add_generation_prompt and continue_final_message exclude each other")
        images, videos = [], []
        if tokenize:
            allow_urls = self._options(kwargs)["allow_urls"]  # wrong options are told before anything is downloaded
            for messages in conversations:
                found = take_media(messages, allow_urls)
                images.append(found[0])
                videos.append(found[1])
        prompts = [
            render(
                self.tokenizer,
                template,
                messages,
                reserved,
                asks_for_media=not tokenize and not _has_media(messages),
                continue_final_message=continue_final_message,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
                **variables,
            )
            for messages in conversations
        ]
        if not tokenize:
            return prompts if is_batch else prompts[0]
        inputs = self(
            text=prompts,
            images=images if any(images) else None,
            videos=videos if any(videos) else None,
            return_tensors=return_tensors,
            **kwargs,
        )
        return inputs if return_dict else inputs["input_ids"]

    # --- answers ------------------------------------------------------------------------------------------------------

    def decode(self, *args, **kwargs):
        """The tokenizer's `decode`. With `skip_special_tokens` it leaves out the marks of grounding (`<ref>`, `<box>`)
        as well; `post_process_image_text_to_text` keeps them."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args, **kwargs):
        """The tokenizer's `batch_decode`."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def post_process_image_text_to_text(self, generated_outputs, skip_special_tokens=True, **kwargs) -> list:
        """Texts of generated ids, (batch, length) or one row, as `chat` writes them: without special tokens, with the
        marks of grounding. `pipeline` uses it."""
        rows = generated_outputs.tolist() if hasattr(generated_outputs, "tolist") else list(generated_outputs)
        rows = [row.tolist() if hasattr(row, "tolist") else row for row in rows]
        rows = [rows] if not rows or isinstance(rows[0], int) else rows
        if skip_special_tokens:
            left_out = set(special_ids(self.tokenizer).values())
            rows = [[number for number in row if number not in left_out] for row in rows]
        return [
            self.tokenizer.decode(row, skip_special_tokens=False, spaces_between_special_tokens=False, **kwargs)
            for row in rows
        ]


def _pieces(prompt) -> tuple:
    return getattr(prompt, "pieces", (str(prompt),))


def _has_media(messages) -> bool:
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(part.get("type") in ("image", "video") for part in parts)


def _checked(kind, media, wanted, is_single=None) -> list:
    """The media of all prompts in one list, as many as there are places for them.

    `wanted` is the number of places in each prompt; media in one list for each prompt are checked prompt by prompt.
    """
    given = [] if media is None else flat_list(media, is_single)
    if sum(wanted) != len(given):
        raise ValueError(f"the text has {sum(wanted)} places for a {kind}, given were {len(given)}")
    nested = isinstance(media, (list, tuple)) and not (is_single and is_single(media))
    if nested and len(wanted) > 1 and all(isinstance(part, (list, tuple)) for part in media):
        if not any(is_single and is_single(part) for part in media):
            counts = [len(flat_list(part, is_single)) for part in media]
            if counts != list(wanted):
                raise ValueError(f"the texts have {list(wanted)} places for a {kind}, given were {counts}")
    return given
