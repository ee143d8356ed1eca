"""This bundle's code in the folder of a downloaded checkpoint, so that whoever reads it with `trust_remote_code=True`
runs ours.

What was there goes into the subfolder `published_code` and comes back with `undo`. Weights and vocabulary are not
touched. Package only.
"""

import copy
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from .chat_template_internvl import jinja_template
from .image_processing_internvl import PROCESSOR_FILES
from .modeling_internvl_chat import AUTO_MAP, BUNDLE_FILES
from .native_config_internvl import read_original
from .native_processing_internvl import INTERNLM2_AUTO_MAP, as_json, processor_files, read_json

BACKUP = "published_code"
_MANIFEST = "installed.json"  # in the backup
_EDITED = ".edited"
_HERE = Path(__file__).resolve().parent
_TOKENIZER_FILE = "tokenization_internlm2.py"


def code_files(tokenizer_config: dict) -> list:
    """Paths of the Python files that a folder with this `tokenizer_config.json` needs."""
    names = {*BUNDLE_FILES, *PROCESSOR_FILES, *([_TOKENIZER_FILE] if _own_tokenizer(tokenizer_config) else [])}
    return [_HERE / name for name in sorted(names)]


def _own_tokenizer(tokenizer_config) -> str:
    """Class of the bundle that stands for the one that `tokenizer_config.json` names, or "". The slow Llama tokenizer
    is one: transformers 5 has none, and the fast ones give other ids."""
    name = str((tokenizer_config or {}).get("tokenizer_class")).replace("InternLM2TokenizerFast", "InternLM2Tokenizer")
    return name if name in ("InternLM2Tokenizer", "LlamaTokenizer") else ""


def install(folder, undo: bool = False) -> list:
    """Puts this package's code into the folder of an original checkpoint, or takes it out again.

    Set are: the Python files, `auto_map` and `architectures` in `config.json`, the chat template (the one of
    `conversation.py` that `config.json` names) in `chat_template.jinja` and `tokenizer_config.json`, InternLM2's
    `auto_map` there, and the processor's files. Python files of the published code that nothing refers to any more
    leave the folder. Everything that was there before is kept in `published_code`.

    All or nothing: after an error the folder is as it was. Doing it twice changes nothing the second time; doing it
    with a newer package brings the newer code, and the backup stays that of the published files.

    Args:
        folder: the checkpoint.
        undo: bring back what was there before the first installation. A file that was edited since stays beside it,
            with `.edited` behind its name.

    Returns:
        What was changed, a line for each file; empty where nothing had to be.

    Raises:
        ValueError: it is no folder with an original checkpoint, a value in its configuration cannot work, it is the
            folder of this package, or there is nothing to undo.
        OSError: a file cannot be read or written.
    """
    folder = Path(folder).expanduser()
    if undo:
        return _undo(folder)
    wanted = _wanted(folder)
    changes = {name: data for name, data in wanted.items() if _read(folder / name) != data}
    if not changes:
        return []
    backup, manifest = folder / BACKUP, _manifest(folder)
    report = [_described(folder, name, changes[name]) for name in sorted(changes)]
    kept = {}
    for name in changes:  # what a former installation put there is not the published file
        if name not in manifest["written"] and name not in manifest["kept"]:
            kept[name] = _read(folder / name)
    for name, data in changes.items():
        if data is not None:
            manifest["written"].setdefault(name, []).append(_digest(data))
    manifest["kept"].update({name: data is not None for name, data in kept.items()})
    is_first = not backup.is_dir()
    staging = folder / f".{BACKUP}.{os.getpid()}"
    try:
        if is_first:
            staging.mkdir()
            _fill(staging, kept, manifest)
            os.replace(staging, backup)
        else:
            _fill(backup, kept, manifest)
        _apply(folder, changes)
    except BaseException:
        if is_first and all(_read(folder / name) == data for name, data in kept.items()):
            shutil.rmtree(backup, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return report


def _undo(folder: Path) -> list:
    if not (folder / BACKUP / _MANIFEST).is_file():
        raise ValueError(f"{folder} has no {BACKUP}/{_MANIFEST}: there is nothing to undo")
    manifest, changes, report = _manifest(folder), {}, []
    for name, was_there in sorted(manifest["kept"].items()):
        current = _read(folder / name)
        changes[name] = _read(folder / BACKUP / name) if was_there else None
        if was_there and changes[name] is None:
            raise ValueError(f"{folder / BACKUP / name} is missing: the published file cannot be brought back")
        if current is not None and current != changes[name]:
            if _digest(current) not in manifest["written"].get(name, ()):
                changes[name + _EDITED] = current
                report.append(f"{name}: edited since, kept as {name + _EDITED}")
        if current != changes[name]:
            report.append(f"{name}: {'brought back' if was_there else 'removed, it was not there before'}")
    _apply(folder, changes)
    shutil.rmtree(folder / BACKUP)
    return report


# --- what the folder is to hold ---------------------------------------------------------------------------------------


def _wanted(folder: Path) -> dict:
    """{name: content, or None for a file that is to leave}."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no checkpoint: it has no config.json")
    if folder.resolve() == _HERE:
        raise ValueError(f"{folder} is the folder of this package: its code is there already")
    values = read_json(folder / "config.json")
    config = read_original(values)
    tokenizer = read_json(folder / "tokenizer_config.json")
    wanted = {path.name: path.read_bytes() for path in code_files(tokenizer)}
    wanted.update(dict.fromkeys(_published_code(folder, values, tokenizer) - set(wanted)))

    changed = copy.deepcopy(values)
    others = {key: name for key, name in (values.get("auto_map") or {}).items() if key not in AUTO_MAP}
    changed["auto_map"] = {
        **AUTO_MAP,
        **{key: name for key, name in others.items() if not _modules(name) & set(wanted)},
    }
    changed["architectures"] = ["InternVLChatModel"]  # the name that serving engines look for
    llm = changed.get("llm_config") or {}
    if any(wanted.get(name) is None for entry in (llm.get("auto_map") or {}).values() for name in _modules(entry)):
        del llm["auto_map"]
    texts = {"config.json": _edited(folder / "config.json", values, changed)}
    if tokenizer is not None:
        template = jinja_template(config.conversation())
        edited = {**tokenizer, "chat_template": template}
        own, has_model = _own_tokenizer(tokenizer), (folder / "tokenizer.model").is_file()
        if own == "InternLM2Tokenizer":
            edited.update(auto_map=INTERNLM2_AUTO_MAP, tokenizer_class=own)
        elif own and has_model and not (folder / "tokenizer.json").is_file():
            edited.update(auto_map={"AutoTokenizer": [f"{_TOKENIZER_FILE[:-3]}.{own}", None]})
        texts["tokenizer_config.json"] = _edited(folder / "tokenizer_config.json", tokenizer, edited)
        texts["chat_template.jinja"] = template.encode("utf-8")
        texts.update({name: text.encode("utf-8") for name, text in processor_files(config).items()})
    return {**wanted, **texts}


def _edited(path: Path, before: dict, after: dict) -> bytes:
    """The file with other content; to the byte as it is where the content is the same."""
    return path.read_bytes() if before == after else as_json(after).encode("utf-8")


def _modules(entry) -> set:
    """The files that an entry of an `auto_map` names: modeling_x.py for "modeling_x.Y". An entry may be a list; "--"
    marks what lies in another repository."""
    references = entry if isinstance(entry, (list, tuple)) else [entry]
    return {name.split(".")[0] + ".py" for name in references if name and "--" not in name}


def _published_code(folder: Path, values: dict, tokenizer) -> set:
    """Names of the Python files that the `auto_map`s of a folder refer to, with those that they import."""
    found, parts = set(), [values, values.get("llm_config"), values.get("vision_config"), tokenizer]
    entries = [entry for part in parts for entry in ((part or {}).get("auto_map") or {}).values()]
    new = set().union(*map(_modules, entries))
    while new:
        found |= new
        sources = [_read(folder / name) for name in new]
        texts = [source.decode("utf-8", errors="replace") for source in sources if source]
        imported = {name for text in texts for name in re.findall(r"^\s*from \.(\w+) import", text, flags=re.MULTILINE)}
        new = {f"{name}.py" for name in imported} - found
    return {name for name in found if (folder / name).is_file()}


# --- files ------------------------------------------------------------------------------------------------------------


def _read(path: Path):
    """Content of a file, or None where there is none."""
    return path.read_bytes() if path.is_file() else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _manifest(folder: Path) -> dict:
    """{"kept": {name: whether it was there before}, "written": {name: digests of what was put there}}."""
    found = _read(folder / BACKUP / _MANIFEST)
    return {"kept": {}, "written": {}} if found is None else json.loads(found)


def _fill(backup: Path, kept: dict, manifest: dict) -> None:
    """Writes the kept files into the backup, and then the manifest that names them."""
    for name, data in kept.items():
        if data is not None:
            (backup / name).write_bytes(data)
    new = backup / f"{_MANIFEST}.new"
    try:
        new.write_text(as_json(manifest), encoding="utf-8")
        os.replace(new, backup / _MANIFEST)
    finally:
        if new.exists():
            new.unlink()


def _described(folder: Path, name: str, data) -> str:
    if data is None:
        return f"{name}: moved to {BACKUP}"
    if not (folder / name).is_file():
        return f"{name}: added"
    if not name.endswith(".json"):
        return f"{name}: replaced"
    before, after = json.loads((folder / name).read_bytes()), json.loads(data)
    keys = sorted(key for key in {**before, **after} if before.get(key) != after.get(key))
    return f"{name}: changed ({', '.join(keys)})"


def _apply(folder: Path, changes: dict) -> None:
    """Gives each file its new content, or removes it for None; after an error all are as they were."""
    before, staging = {}, folder / f".installing.{os.getpid()}"
    staging.mkdir()
    try:
        for name, data in changes.items():
            if data is not None:
                (staging / name).write_bytes(data)
        # config.json last: until then a reader finds the old description
        for name in sorted(changes, key=lambda name: name == "config.json"):
            before[name] = _read(folder / name)
            if changes[name] is not None:
                os.replace(staging / name, folder / name)
            elif before[name] is not None:
                (folder / name).unlink()
    except BaseException:
        for name, data in before.items():
            if data is not None:
                (folder / name).write_bytes(data)
            elif (folder / name).is_file():
                (folder / name).unlink()
        raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)
