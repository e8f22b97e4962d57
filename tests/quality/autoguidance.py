"""Quality against the scale of autoguidance: the quickstart's network, guided away from itself as it was earlier."""

from pathlib import Path

from quality import recipes
from quality.commands import Score, checkpoint, scored, side_by_side
from quality.figures import over_seeds

GUIDES = (recipes.QUICKSTART.steps // 2,)  # steps of the checkpoints that guide
SCALES = (1.5, 2.0, 3.0)


def lines(directory: Path, *, seeds: int) -> list[str]:
    runs = side_by_side(lambda seed: recipes.run(directory, recipes.QUICKSTART, seed), range(seeds))
    told = [(guide, scale, seed) for guide in GUIDES for scale in SCALES for seed in range(seeds)]
    found = dict(zip(told, side_by_side(lambda one: _score(runs[one[2]], *one), told), strict=True))
    alone = [recipes.score(one, recipes.QUICKSTART, 1, seed) for seed, one in enumerate(runs)]
    rows = [("none", "1", alone)]
    rows += [
        (f"step {guide:,}", f"{scale:g}", [found[guide, scale, seed] for seed in range(seeds)])
        for guide in GUIDES
        for scale in SCALES
    ]
    return [
        f"`experiment=quickstart` after {recipes.QUICKSTART.steps:,} steps; `fd{recipes.SAMPLES}_classifier` of "
        f"{recipes.SAMPLES:,} images by dpmpp_2m_sde in 25 steps, mean of {seeds} seeds (lowest to highest).",
        "",
        "| guide | scale | distance | precision | recall |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {guide} | {scale} | {over_seeds([s.fd for s in scores])} | {over_seeds([s.precision for s in scores])} "
            f"| {over_seeds([s.recall for s in scores])} |"
            for guide, scale, scores in rows
        ),
    ]


def _score(run: Path, guide: int, scale: float, seed: int) -> Score:
    told = ("guidance=autoguidance", f"guidance.guide={checkpoint(run, guide).removeprefix('ckpt=')}")
    out = run / "eval" / f"guided_{guide}_{scale}"
    more = (f"guidance.scale={scale}", f"seed={seed}")
    return scored(out, recipes.SAMPLES, checkpoint(run, recipes.QUICKSTART.steps), *told, *more)
