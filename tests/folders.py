"""What a folder holds, for tests that compare it before and after."""

import hashlib


def tree(folder) -> dict:
    """Digest of every file below a folder, by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
