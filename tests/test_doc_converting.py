"""docs/converting.md is true: its commands and its Python blocks run, on a stand-in for the checkpoint they name."""

import shutil

import pytest
import transformers
from doc_pages import commands, run_command, run_python
from safetensors.torch import load_file

if not hasattr(transformers, "InternVLForConditionalGeneration"):
    pytest.skip("this transformers has no native InternVL", allow_module_level=True)
pytest.importorskip("torchvision")


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory):
    """A folder with `InternVL3-2B`, which is the shipped checkpoint under another name, and `image.jpg`."""
    folder = tmp_path_factory.mktemp("converting")
    (folder / "InternVL3-2B").mkdir()
    for pattern in ("*.json", "*.txt", "*.safetensors"):
        for path in checkpoint.glob(pattern):
            shutil.copyfile(path, folder / "InternVL3-2B" / path.name)
    shutil.copyfile(checkpoint / "examples" / "image1.jpg", folder / "image.jpg")
    return folder


def test_the_page(checkpoint, folder, monkeypatch, shipped_model, shipped_tokenizer, capsys):
    page = (checkpoint / "docs" / "converting.md").read_text(encoding="utf-8")
    lines = commands(page)
    assert [line.split()[1] for line in lines] == ["convert", "convert", "install", "install"]
    for line in lines:
        assert run_command(line, folder).strip()
    again, source = (load_file(folder / name / "model.safetensors") for name in ("InternVL3-2B-again", "InternVL3-2B"))
    assert again.keys() == source.keys() and all((again[name] == source[name]).all() for name in source)

    monkeypatch.chdir(folder)
    names = run_python(page, "docs/converting.md")
    assert names["report"].tensors and names["changes"]
    image = shipped_model.load_image(folder / "image.jpg")
    options = {"max_new_tokens": 64, "do_sample": False}
    assert names["answer"].strip() == shipped_model.chat(
        shipped_tokenizer, image, "<image>\nDescribe the image.", options
    )
