"""The video part of the processor: `load_video` behind `AutoVideoProcessor`.

Frames are chosen by `video_internvl.py` and get the same size, mean and standard deviation as images.
"""

import torch
from transformers import BatchFeature

from .compat_internvl import processor_bases
from .configuration_intern_vit import InternVisionConfig  # noqa: F401 (see `modeling_internvl_chat.py`)
from .configuration_internlm2 import InternLM2Config  # noqa: F401
from .configuration_internvl_chat import InternVLChatConfig  # noqa: F401
from .conversation import get_conv_template  # noqa: F401
from .image_processing_internvl import SavedSettings, channels_last, flat_list, square_side
from .preprocessing_internvl import IMAGENET_MEAN, IMAGENET_STD, check_count
from .video_internvl import VideoFrames, get_index, load_video

_, _, BaseVideoProcessor = processor_bases()

# Frames a second that no video has: with it, `load_video` takes every frame (up to its `max_frames`).
_EVERY_FRAME = 1e6


def is_video(item) -> bool:
    """Whether `item` is one video and not a list of several: a path, a file, an array of four dimensions, or frames as
    a list of pictures. A list of texts is taken for a list of paths of videos."""
    if isinstance(item, (list, tuple)):
        return bool(item) and not any(isinstance(frame, (str, list, tuple)) or is_video(frame) for frame in item)
    is_picture = getattr(item, "ndim", 0) == 3 or hasattr(item, "getbands")  # array, tensor or PIL image
    return not is_picture


class InternVLChatVideoProcessor(SavedSettings, BaseVideoProcessor):
    """Videos to normalised frames, as `load_video` makes them.

    Args:
        size: side of a frame in pixels, or `{"height": ..., "width": ...}`.
        num_frames: frames spread over a video file, by the rule of the model cards.
        fps: frames a second instead, at most 512.
        do_sample_frames: where false every frame of a file is taken, at most 512.
        max_patches: most tiles that a frame is cut into.
        use_thumbnail: add the whole frame as a last tile where it was cut.
        image_mean, image_std: three numbers each.
    """

    settings_file = "video_preprocessor_config.json"
    type_key = "video_processor_type"
    model_input_names = ["pixel_values_videos"]

    def __init__(
        self,
        size=448,
        num_frames=32,
        fps=None,
        do_sample_frames=True,
        max_patches=1,
        use_thumbnail=True,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    ):
        # The base class's own `__init__` sets the attributes of another image path.
        frames = {"num_frames": num_frames, "fps": fps, "do_sample_frames": do_sample_frames}
        tiles = {"max_patches": max_patches, "use_thumbnail": use_thumbnail}
        self.set_pictures(size, image_mean, image_std, **frames, **tiles)

    @classmethod
    def settings_of_model(cls, config) -> dict:
        return {"size": config.tile_size}

    def tiles(self, video, **options):
        """One video as `(pixel_values, num_patches_list)`: (tiles, 3, size, size) float32 and the tiles of each frame.

        `video` is what `read_frames` takes, or a tensor. Frames given as such are all taken, unless the call asks for
        fewer (`num_frames`).

        Raises:
            VideoLoadError: the video cannot be read.
            ValueError: `num_frames` and `fps` together, fewer than one frame, or `fps` for frames, which have no times.
        """
        asked = {name: value for name, value in options.items() if value is not None}
        if "num_frames" in asked and "fps" in asked:
            raise ValueError(f"num_frames={asked['num_frames']} and fps={asked['fps']} exclude each other")
        options = self.options(options)
        # A call that says how many frames, or how often, asks for a choice, whatever the settings say.
        chooses = asked.get("do_sample_frames", options["do_sample_frames"] or "num_frames" in asked or "fps" in asked)
        video = channels_last(video)
        frames = video.frames if isinstance(video, VideoFrames) else video
        if isinstance(frames, (list, tuple)) or hasattr(frames, "shape"):
            video = [channels_last(frame) for frame in frames]
            fps = asked.get("fps") if chooses else None
            wanted = check_count("num_frames", asked["num_frames"]) if "num_frames" in asked and chooses else len(video)
            if wanted < len(video):
                video = [video[index] for index in get_index(None, 1, len(video) - 1, num_segments=wanted)]
        elif not chooses:
            fps = _EVERY_FRAME
        else:
            fps = None if "num_frames" in asked else options["fps"]
        return load_video(
            video,
            input_size=square_side(options["size"]),
            max_num=options["max_patches"],
            num_segments=options["num_frames"],
            fps=fps,
            use_thumbnail=options["use_thumbnail"],
            mean=options["image_mean"],
            std=options["image_std"],
        )

    def preprocess(self, videos, *, return_tensors=None, **options) -> BatchFeature:
        """Videos to frames.

        Args:
            videos: one video or a list of videos, each a path, bytes, a list of pictures, or an array or tensor of
                frames (frames, height, width, channels) or (frames, channels, height, width).
            return_tensors: "pt" or "np"; the videos then need the same number of frames.
            options: settings for this call.

        Returns:
            `pixel_values_videos`: (tiles, 3, size, size) float32 for each video; one tensor (videos, tiles, 3, size,
            size) where they are as many for each.
        """
        pixel_values = [self.tiles(video, **options)[0] for video in flat_list(videos, is_video)]
        if len({len(video) for video in pixel_values}) == 1:
            pixel_values = torch.stack(pixel_values)
        return BatchFeature({"pixel_values_videos": pixel_values}, tensor_type=return_tensors)

    def __call__(self, videos, **kwargs) -> BatchFeature:
        return self.preprocess(videos, **kwargs)
