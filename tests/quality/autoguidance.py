"""Quality against the scale of autoguidance: the quickstart's network, guided away from itself as it was earlier."""

from pathlib import Path

from quality import plot, recipes
from quality.commands import Score, checkpoint, scored, side_by_side
from quality.figures import over_seeds

GUIDE = recipes.QUICKSTART.steps // 2  # steps of the checkpoint that guides
SCALES = (1.5, 2.0, 3.0)


def lines(directory: Path, *, seeds: int, picture: Path) -> list[str]:
    runs = side_by_side(lambda seed: recipes.run(directory, recipes.QUICKSTART, seed), range(seeds))
    told = [(scale, seed) for scale in SCALES for seed in range(seeds)]
    found = dict(zip(told, side_by_side(lambda one: _score(runs[one[1]], *one), told), strict=True))
    alone = [recipes.score(one, recipes.QUICKSTART, 1, seed) for seed, one in enumerate(runs)]
    by_scale = {1.0: alone} | {scale: [found[scale, seed] for seed in range(seeds)] for scale in SCALES}
    measured = {
        "Frechet distance, less is better": [[score.fd for score in scores] for scores in by_scale.values()],
        "precision": [[score.precision for score in scores] for scores in by_scale.values()],
        "recall": [[score.recall for score in scores] for scores in by_scale.values()],
    }
    plot.save_scales(picture, list(by_scale), measured)
    return [
        f"`experiment=quickstart` after {recipes.QUICKSTART.steps:,} steps; `fd{recipes.SAMPLES}_classifier` of "
        f"{recipes.SAMPLES:,} images by dpmpp_2m_sde in 25 steps, mean of {seeds} seeds (lowest to highest).",
        "",
        "| guide | scale | distance | precision | recall |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {'none' if scale == 1 else f'step {GUIDE:,}'} | {scale:g} | {' | '.join(map(over_seeds, figures))} |"
            for scale, figures in zip(by_scale, zip(*measured.values(), strict=True), strict=True)
        ),
        "",
        f"![Frechet distance, precision and recall against the scale of autoguidance]({picture.name})",
    ]


def _score(run: Path, scale: float, seed: int) -> Score:
    told = ("guidance=autoguidance", f"guidance.guide={checkpoint(run, GUIDE).removeprefix('ckpt=')}")
    out = run / "eval" / f"guided_{GUIDE}_{scale}"
    more = (f"guidance.scale={scale}", f"seed={seed}")
    return scored(out, recipes.SAMPLES, checkpoint(run, recipes.QUICKSTART.steps), *told, *more)
