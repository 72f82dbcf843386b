"""Make a checkpoint the embedded model: fix its operating point on training data, write it small.

    python tools/embed.py outputs/nano/step-0002300/model --longest 448 --data-root data

Measures every data set of its mixture on its TRAINING split with the known-task path, takes the lowest threshold at
which a phrase gets no box in 95 % of the pictures that lack it, in each of the data sets whose card says that what is
not annotated is not there. A pixel belongs to a phrase from the likelihood on that has the highest mean IoU on
training scenes, among all phrases and by itself. Saves the weights as bf16 to visionllm/assets/nano.

With `--keep` none of this is measured again: for parts that find nothing, taken with `--part` from where they were
trained.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from visionllm import VisionLLM, evaluate, open_dataset

MIXTURE = ("scenes", "carla_streets", "bccd")


def main(
    checkpoint: Path,
    out: Path = Path("visionllm/assets/nano"),
    longest: Annotated[list[int] | None, typer.Option(help="Longer sides of the pictures to try.")] = None,
    limit: Annotated[int, typer.Option(help="Training pictures of each data set.")] = 100,
    overlap: Annotated[float, typer.Option(help="IoU above which the weaker of two boxes is dropped.")] = 0.6,
    without: Annotated[list[str] | None, typer.Option(help="Decoders that are left out.")] = None,
    part: Annotated[
        list[str] | None, typer.Option(help="PREFIX=CHECKPOINT: taken from there; a whole decoder with its settings.")
    ] = None,
    copy: Annotated[
        list[str] | None,
        typer.Option(help="PREFIX=OTHER: a part to be as another; what is alike is stored once."),
    ] = None,
    blend: Annotated[
        list[str] | None,
        typer.Option(help="PREFIX=CHECKPOINT@SHARE: a part moves that share of the way to the other's weights."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="DECODER.KEY=VALUE: a setting that no weight depends on.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the operating point as it is.")] = False,
    data_root: Path | None = None,
) -> None:
    parts = dict(given.split("=", 1) for given in part or ())
    settings = {}
    for prefix, folder in parts.items():
        within, _, name = prefix.partition(".")
        held = VisionLLM.from_pretrained(folder).config.decoders if within == "decoders" else {}
        settings |= {name: held[name]} if name in held else {}
    model = VisionLLM.from_pretrained(checkpoint, parts=parts, decoders=settings, fresh=list(parts))
    for given in blend or ():
        prefix, _, other = given.partition("=")
        folder, _, share = other.rpartition("@")
        move(model, prefix, VisionLLM.from_pretrained(folder), prefix, float(share))
    for given in copy or ():
        prefix, _, other = given.partition("=")
        move(model, prefix, model, other, 1.0)
    model = model.without(*without or ())
    for given in set_ or ():
        name, _, value = given.partition("=")
        decoder, _, key = name.partition(".")
        try:
            model.configure(decoder, **{key: json.loads(value)})
        except json.JSONDecodeError:
            raise typer.BadParameter(f"--set {given}: the value is no JSON; give DECODER.KEY=VALUE") from None
    if keep:
        return save(model, out)
    exhaustive = [name for name in MIXTURE if open_dataset(name, "train", data_root).wording.negatives]
    best = (-1.0, 0, 0.0, 0.0)
    for side in longest or [320]:
        model.configure("objects", longest=side, overlap=overlap)
        found = {name: evaluate(model, name, "train", limit=limit, known=True, data_root=data_root)["detection"]
                 for name in MIXTURE}  # fmt: skip
        score = sum(values["AP50"] for values in found.values()) / len(found)
        threshold = max(found[name]["best"]["threshold"] for name in exhaustive)
        print(
            f"longest {side}: "
            + ", ".join(f"{n} AP50 {v['AP50']:.3f} at {v['best']['threshold']:.2f}" for n, v in found.items())
        )
        best = max(best, (score, side, threshold, found["scenes"]["counting"]["threshold"]))
    _, side, threshold, counts = best
    model.configure("objects", longest=side, overlap=overlap, threshold=round(threshold, 3), thresholds={})
    # A task that is told has its findings counted by what is said of them.
    fixed = {task.name: counts for task in model.tasks if task.told}
    scenes, area = open_dataset("scenes", "train", data_root, task="segmentation"), None
    if scenes.task in {task.name for task in model.tasks}:
        points = evaluate(model, scenes, limit=limit, known=True)[scenes.task]["semantic"]
        rows = [f"{p['mIoU']:.3f} / {p['mIoU_alone']:.3f} at {p['threshold']:.2f}" for p in points]
        print("areas, among all / alone: " + ", ".join(rows))
        area = max(points, key=lambda point: point["mIoU_alone"])["threshold"]
        model.configure("objects", area_threshold=area)
    model.configure("objects", thresholds=fixed)
    print(f"longest {side}, threshold {threshold:.3f}, {fixed}, areas {area}")
    save(model, out)


def move(model: VisionLLM, prefix: str, other: VisionLLM, place: str, share: float) -> None:
    """Let what begins with ``prefix`` go a share of the way to what begins with ``place`` in another model.

    Between two stages of one training a mean is often better than either (Wortsman et al. 2022, "Robust fine-tuning of
    zero-shot models").
    """
    there = other.state_dict()
    own = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
    if not own:
        raise typer.BadParameter(f"no weight begins with {prefix!r}")
    for name, value in own.items():
        like = there.get(place + name.removeprefix(prefix))
        if like is None or like.shape != value.shape:
            raise typer.BadParameter(f"{place}{name.removeprefix(prefix)} is not there in the shape of {name}")
        # Between two counts there is nothing.
        value.copy_(value.lerp(like, share) if value.is_floating_point() else like)


def save(model: VisionLLM, out: Path) -> None:
    """Write it small."""
    import torch

    model.save_pretrained(out, dtype=torch.bfloat16)
    size = sum(path.stat().st_size for path in out.iterdir()) / 1e6
    print(f"{out}: {model.fingerprint} before rounding, {size:.1f} MB")


if __name__ == "__main__":
    typer.run(main)
