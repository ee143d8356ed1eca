"""Growth curves of a run: how cost grows with tiles, frames, rounds and questions."""

import importlib

# Part -> what is on the x axis, and the curves: column, label.
_CURVES = {
    "tower": ("tiles", [("ms a tile", "vision tower, ms a tile")]),
    "memory": ("frames", [("peak, MB", "peak memory, MB")]),
    "rounds": ("round", [("with reuse, ms", "with reuse"), ("without, ms", "without")]),
    "batches": ("questions", [("batch, tokens/s", "batch_chat, tokens/s")]),
}


def draw(results: dict, path) -> None:
    """Draws the measured parts among `_CURVES` into the image file `path`.

    Raises:
        RuntimeError: matplotlib is not installed, or nothing was measured that can be drawn.
    """
    measured = [part for part in _CURVES if results.get(part)]
    if importlib.util.find_spec("matplotlib") is None or not measured:
        raise RuntimeError("a plot needs matplotlib, and one of the parts " + ", ".join(_CURVES))
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, len(measured), figsize=(4 * len(measured), 3.2), squeeze=False)
    for axis, part in zip(axes[0], measured):
        x, curves = _CURVES[part]
        rows = results[part]
        if part == "tower":  # one curve for each tower
            for name in dict.fromkeys(row["tower"] for row in rows):
                own = [row for row in rows if row["tower"] == name]
                axis.plot([row[x] for row in own], [row["ms a tile"] for row in own], marker="o", label=name)
        else:
            for column, label in curves:
                axis.plot([row[x] for row in rows], [row[column] for row in rows], marker="o", label=label)
        axis.set_xlabel(x)
        axis.set_title(part)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
