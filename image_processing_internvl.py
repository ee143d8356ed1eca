"""The image part of the processor: `load_image` behind `AutoImageProcessor`.

The settings have the names that transformers' own InternVL uses (`crop_to_patches`, `min_patches`, `max_patches`); the
pixels come from `preprocessing_internvl.py` alone. Also here: how the parts of a processor are loaded and saved.
"""

import inspect
import json
import shutil
from pathlib import Path

import torch
from transformers import BatchFeature

from .compat_internvl import processor_bases, stored_json
from .configuration_intern_vit import InternVisionConfig  # noqa: F401 (see `modeling_internvl_chat.py`)
from .configuration_internlm2 import InternLM2Config  # noqa: F401
from .configuration_internvl_chat import InternVLChatConfig
from .conversation import get_conv_template  # noqa: F401
from .preprocessing_internvl import IMAGENET_MEAN, IMAGENET_STD, count_tiles, load_image

_, BaseImageProcessor, _ = processor_bases()

PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": "image_processing_internvl.InternVLChatImageProcessor",
    "AutoProcessor": "processing_internvl.InternVLChatProcessor",
    "AutoVideoProcessor": "video_processing_internvl.InternVLChatVideoProcessor",
}
# The code that a saved processor needs to load as remote code.
PROCESSOR_FILES = (
    "chat_template_internvl.py",
    "compat_internvl.py",
    "configuration_intern_vit.py",
    "configuration_internlm2.py",
    "configuration_internvl_chat.py",
    "conversation.py",
    "image_processing_internvl.py",
    "messages_internvl.py",
    "preprocessing_internvl.py",
    "processing_internvl.py",
    "prompt_internvl.py",
    "video_internvl.py",
    "video_processing_internvl.py",
)


def model_configuration(folder_or_id, keywords: dict):
    """The configuration of the model in a folder or Hub id, or None where there is none of an InternVL model."""
    values = stored_json(folder_or_id, "config.json", keywords) or {}
    if values.get("model_type") != InternVLChatConfig.model_type:
        return None
    return InternVLChatConfig.from_dict(values)


def settings_text(values: dict) -> str:
    """Text of a processor's JSON file, which names our classes."""
    return json.dumps({**values, "auto_map": PROCESSOR_AUTO_MAP}, indent=2, ensure_ascii=False, sort_keys=True) + "\n"


def write_settings(folder, name: str, values: dict) -> None:
    """Writes a processor's JSON file `name`, and beside it the code that the file names."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(settings_text(values), encoding="utf-8")
    here = Path(__file__).resolve().parent
    for file in PROCESSOR_FILES:
        if here != folder.resolve() and (here / file).is_file():
            shutil.copyfile(here / file, folder / file)


class SavedSettings:
    """A part of a processor whose settings are the arguments of its `__init__`; the same file on every release.

    Class attributes: `settings_file`, the file's name; `type_key`, the entry that names the class.
    """

    settings_file = ""
    type_key = ""

    def set_pictures(self, size, image_mean, image_std, **others) -> None:
        """Sets what all parts share, in the form in which transformers keeps it, and `others` as they are."""
        side = square_side(size)
        self.size = {"height": side, "width": side}
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        for name, value in others.items():
            setattr(self, name, value)

    @classmethod
    def settings_names(cls) -> tuple:
        return tuple(name for name in inspect.signature(cls.__init__).parameters if name != "self")

    @classmethod
    def settings_of_model(cls, config) -> dict:
        """The settings that follow from a model's configuration."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):
        """Loads the settings of a folder or Hub id: those saved by this class, else those of the model's configuration.

        Args:
            kwargs: settings that replace the stored ones; `cache_dir`, `revision` and the like; the rest is ignored,
                or returned as well where `return_unused_kwargs` is true.

        Raises:
            OSError: the folder has neither.
        """
        values = stored_json(pretrained_model_name_or_path, cls.settings_file, kwargs) or {}
        if values.get(cls.type_key) != cls.__name__:
            config = model_configuration(pretrained_model_name_or_path, kwargs)
            if config is None:
                raise OSError(
                    f"{pretrained_model_name_or_path} has no {cls.settings_file} of {cls.__name__} and no config.json "
                    f"of model_type {InternVLChatConfig.model_type!r}"
                )
            values = cls.settings_of_model(config)
        return cls.from_dict(values, **kwargs)

    @classmethod
    def from_dict(cls, values: dict, return_unused_kwargs=False, **kwargs):
        """An instance with the settings in `values` and, before them, in `kwargs`; other entries are ignored. Of the
        settings of another part, which transformers hands on where this one has no file, it takes what all share."""
        names = cls.settings_names()
        if cls.type_key not in values and any(name.endswith("_processor_type") for name in values):
            values = {name: values[name] for name in ("size", "image_mean", "image_std") if name in values}
        given = {**values, **{name: value for name, value in kwargs.items() if name in names}}
        part = cls(**{name: given[name] for name in names if name in given})
        unused = {name: value for name, value in kwargs.items() if name not in names}
        return (part, unused) if return_unused_kwargs else part

    def to_dict(self) -> dict:
        settings = {name: getattr(self, name) for name in self.settings_names()}
        return {self.type_key: type(self).__name__, **settings, "size": square_side(self.size)}

    def save_pretrained(self, save_directory, push_to_hub=False, **kwargs):
        """Writes the settings and the code; `push_to_hub` and its options as in transformers."""
        write_settings(save_directory, self.settings_file, self.to_dict())
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", Path(save_directory).name), **kwargs)
        return [str(Path(save_directory) / self.settings_file)]

    def options(self, given: dict) -> dict:
        """The settings with those that a call gave in place of the own; None leaves the own.

        Raises:
            TypeError: an option that does not exist; the message lists those that do.
        """
        names = self.settings_names()
        refuse_unknown({name: value for name, value in given.items() if name not in names}, type(self).__name__, names)
        return {name: getattr(self, name) if given.get(name) is None else given[name] for name in names}


def refuse_unknown(unknown: dict, whose: str, known) -> None:
    """Raises TypeError for options that nobody knows, and lists the known ones; None and False ask for nothing (some
    releases of transformers send such), except as `do_normalize=False` and the like."""
    asked = [
        name for name, value in unknown.items() if value is not None and (value is not False or name.startswith("do_"))
    ]
    if asked:
        raise TypeError(f"{whose} has no option {', '.join(sorted(asked))}; options: {', '.join(known)}")


def square_side(size) -> int:
    """Side of a tile in pixels, from `448` or `{"height": 448, "width": 448}`.

    Raises:
        ValueError: anything else, such as sides that differ.
    """
    sides = set(size.values()) if isinstance(size, dict) else {size}
    if len(sides) != 1 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"size must be the side of a square tile in pixels, or its height and width, got {size!r}")
    return sides.pop()


def flat_list(media, is_single=None) -> list:
    """`media` without nesting: lists and tuples are opened, but not what `is_single` takes for one item."""
    if isinstance(media, (list, tuple)) and not (is_single and is_single(media)):
        return [item for part in media for item in flat_list(part, is_single)]
    if getattr(media, "ndim", 0) == 4 and not is_single:  # a batch of images as one array or tensor
        return list(media)
    return [media]


def channels_last(image):
    """A tensor or array of one image, or of the frames of a video, with the channels in the last dimension; anything
    else as it is."""
    if torch.is_tensor(image):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if getattr(image, "ndim", 0) in (3, 4) and image.shape[-1] not in (1, 3, 4) and image.shape[-3] in (1, 3, 4):
        return image.swapaxes(-3, -2).swapaxes(-2, -1)
    return image


class InternVLChatImageProcessor(SavedSettings, BaseImageProcessor):
    """Images to normalised tiles, as `load_image` makes them.

    Args:
        size: side of a tile in pixels, or `{"height": ..., "width": ...}`.
        crop_to_patches: cut images into tiles; where false an image is one tile.
        min_patches, max_patches: fewest and most tiles of an image, without the thumbnail.
        use_thumbnail: add the whole image as a last tile where it was cut.
        image_mean, image_std: three numbers each.
    """

    settings_file = "preprocessor_config.json"
    type_key = "image_processor_type"
    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size=448,
        crop_to_patches=True,
        min_patches=1,
        max_patches=12,
        use_thumbnail=True,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    ):
        super().__init__()
        tiles = {"crop_to_patches": crop_to_patches, "min_patches": min_patches, "max_patches": max_patches}
        self.set_pictures(size, image_mean, image_std, use_thumbnail=use_thumbnail, **tiles)

    @classmethod
    def settings_of_model(cls, config) -> dict:
        return {
            "size": config.tile_size,
            "crop_to_patches": config.dynamic_image_size,
            "min_patches": config.min_dynamic_patch,
            "max_patches": config.max_dynamic_patch,
            "use_thumbnail": config.use_thumbnail,
        }

    def to_dict(self) -> dict:
        """The settings, and those by which the CLIP class, which published files name, makes one tile of an image."""
        own = super().to_dict()
        clip = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3}
        return {"crop_size": own["size"], **clip, **own}

    def _geometry(self, options: dict) -> dict:
        """Options in the words of `count_tiles`."""
        cuts = options["crop_to_patches"]
        return {
            "min_num": options["min_patches"] if cuts else 1,
            "max_num": options["max_patches"] if cuts else 1,
            "use_thumbnail": options["use_thumbnail"],
        }

    def tiles(self, image, **options) -> torch.Tensor:
        """One image as (tiles, 3, size, size) float32; `image` is what `load_image` takes, or a tensor."""
        options = self.options(options)
        return load_image(
            channels_last(image),
            input_size=square_side(options["size"]),
            mean=options["image_mean"],
            std=options["image_std"],
            **self._geometry(options),
        )

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs=None) -> int:
        """Number of tiles that `tiles` makes of an image of that size in pixels, the thumbnail included."""
        options = self.options(images_kwargs or {})
        return count_tiles(width, height, image_size=square_side(options["size"]), **self._geometry(options))

    def preprocess(self, images, *, return_tensors=None, **options) -> BatchFeature:
        """Images to tiles.

        Args:
            images: one image or a list of images, each a path, a PIL image, bytes, an array or a tensor.
            return_tensors: "pt" or "np".
            options: settings for this call.

        Returns:
            `pixel_values` (sum of tiles, 3, size, size) float32 and `num_patches`, the tiles of each image.

        Raises:
            ImageLoadError: an image cannot be read.
            TypeError: an unknown option, or an object that is no image.
        """
        tiles = [self.tiles(image, **options) for image in flat_list(images)]
        if not tiles:
            raise ValueError("expected at least one image, got an empty list")
        data = {"pixel_values": torch.cat(tiles), "num_patches": [len(tile) for tile in tiles]}
        return BatchFeature(data, tensor_type=return_tensors)

    def __call__(self, images, **kwargs) -> BatchFeature:
        return self.preprocess(images, **kwargs)
