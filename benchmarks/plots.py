"""Growth curves of a run: how cost grows with tiles, frames, rounds and questions."""

import importlib.util

# Part -> what is on the x axis, what on the y axis, and the curves: column, label.
_CURVES = {
    "tower": ("tiles", "vision tower, ms a tile", []),  # one curve for each tower
    "memory": ("frames", "MB", [("of it activations, MB", "beside the weights"), ("peak, MB", "peak of the process")]),
    "rounds": ("round", "ms to the first token", [("with reuse, ms", "with reuse"), ("without, ms", "without")]),
    "batches": ("questions", "tokens/s", [("batch, tokens/s", "batch_chat")]),
}
_LOGARITHMIC = ("memory", "rounds")


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
        x, y, curves = _CURVES[part]
        lines = {label: [(row[x], row[column]) for row in results[part]] for column, label in curves}
        if part == "tower":
            for row in results[part]:
                lines.setdefault(row["tower"], []).append((row[x], row["ms a tile"]))
        for label, points in lines.items():
            axis.plot(*zip(*points), marker="o", label=label)
        axis.set(xlabel=x, ylabel=y)
        if part in _LOGARITHMIC:
            axis.set_yscale("log")
        else:
            axis.set_ylim(bottom=0)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)
