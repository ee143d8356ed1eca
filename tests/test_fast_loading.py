"""Several images at once, and the resize that trades exactness for speed."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import internvl_chat

STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def picture(width, height, mode="RGB", seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height // 7 + 1, width // 7 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.mark.parametrize("size", [(640, 480), (1920, 1080), (97, 1501), (448, 448), (30, 20)])
def test_fast_differs_by_two_levels_at_most(size):
    exact = internvl_chat.load_image(picture(*size))
    fast = internvl_chat.load_image(picture(*size), fast=True)
    assert exact.shape == fast.shape and exact.dtype == fast.dtype
    levels = ((exact - fast) * STD * 255).abs()
    assert levels.max() < 2.01
    assert (levels > 0.5).float().mean() < 0.05


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1"])
def test_fast_reads_every_mode(mode):
    image = picture(500, 300, mode)
    exact, fast = internvl_chat.load_image(image), internvl_chat.load_image(image, fast=True)
    assert ((exact - fast) * STD * 255).abs().max() < 2.01


def test_fast_leaves_the_callers_image_alone():
    image = picture(600, 400)
    before = image.tobytes()
    internvl_chat.dynamic_preprocess(image, max_num=6, use_thumbnail=True, fast=True)
    assert image.tobytes() == before


def test_fast_video():
    frames = [picture(300, 200, seed=seed) for seed in range(3)]
    exact, patches = internvl_chat.load_video(frames)
    fast, fast_patches = internvl_chat.load_video(frames, fast=True)
    assert patches == fast_patches
    assert ((exact - fast) * STD * 255).abs().max() < 2.01


@pytest.mark.parametrize("threads", [None, 1, 3])
def test_several_images_equal_one_by_one(threads):
    buffer = io.BytesIO()
    picture(700, 300, seed=1).save(buffer, "JPEG")
    images = [picture(640, 480), buffer.getvalue(), picture(200, 900, seed=2)]
    images.append(images[0])  # the same object again
    pixel_values, num_patches_list = internvl_chat.load_images(images, max_num=6, threads=threads)
    one_by_one = [internvl_chat.load_image(image, max_num=6) for image in images]
    assert num_patches_list == [len(tiles) for tiles in one_by_one]
    assert torch.equal(pixel_values, torch.cat(one_by_one))


def test_wrong_input_of_several(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 not a picture")
    with pytest.raises(internvl_chat.ImageLoadError, match="broken.jpg"):
        internvl_chat.load_images([picture(50, 50), str(broken)])
    with pytest.raises(ValueError, match="at least one image"):
        internvl_chat.load_images([])
    with pytest.raises(ValueError, match="threads"):
        internvl_chat.load_images([picture(50, 50)], threads=0)
