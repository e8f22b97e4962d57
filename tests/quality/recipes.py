"""What is tried on digits: recipes that train on as many images, and what came of them."""

from dataclasses import dataclass
from pathlib import Path

from quality.commands import Score, checkpoint, scored, side_by_side, trained
from quality.figures import over_seeds

PARTS = (2, 1)  # of the steps, after which it is looked at
SAMPLES = 500


@dataclass(frozen=True)
class Recipe:
    """What it says that experiment=quickstart does not; each is trained from the same seeds."""

    label: str
    overrides: tuple[str, ...] = ()
    steps: int = 2000


QUICKSTART = Recipe("`experiment=quickstart` as it is")
TRIED = (
    QUICKSTART,
    Recipe("`prediction=eps weighting=uniform`, as Ho et al. 2020", ("prediction=eps", "weighting=uniform")),
    Recipe(
        "`prediction=edm weighting=edm timestep_sampler=log_normal`",
        ("prediction=edm", "weighting=edm", "timestep_sampler=log_normal"),
    ),
    Recipe("`trainer.batch_size=64`, half as many steps", ("trainer.batch_size=64", "trainer.warmup_steps=100"), 1000),
)


def run(directory: Path, recipe: Recipe, seed: int) -> Path:
    """One run, with a checkpoint after each quarter."""
    name = "_".join(["recipe", *(word.partition("=")[2] for word in recipe.overrides), str(seed)])
    told = ("experiment=quickstart", *recipe.overrides, f"seed={seed}", f"trainer.steps={recipe.steps}")
    return trained(directory / "runs", name, (*told, f"trainer.checkpoint_every={recipe.steps // 4}"))


def score(run: Path, recipe: Recipe, part: int, seed: int) -> Score:
    """After one of `PARTS` of its steps."""
    step = recipe.steps // part
    return scored(run / "eval" / f"at_{step}", SAMPLES, checkpoint(run, step), f"seed={seed}")


def _scores(directory: Path, recipe: Recipe, seed: int) -> list[Score]:
    one = run(directory, recipe, seed)
    return [score(one, recipe, part, seed) for part in PARTS]


def lines(directory: Path, *, seeds: int) -> list[str]:
    told = [(recipe, seed) for recipe in TRIED for seed in range(seeds)]
    found = dict(zip(told, side_by_side(lambda one: _scores(directory, *one), told), strict=True))
    made = []
    for recipe in TRIED:
        of_recipe = [found[recipe, seed] for seed in range(seeds)]
        by_part = [over_seeds([scores[i].fd for scores in of_recipe]) for i in range(len(PARTS))]
        last = [scores[-1] for scores in of_recipe]
        shares = over_seeds([one.precision for one in last]), over_seeds([one.recall for one in last])
        made.append((sum(one.fd for one in last), f"| {recipe.label} | {' | '.join([*by_part, *shares])} |"))
    return [
        f"`fd{SAMPLES}_classifier` of {SAMPLES:,} images by dpmpp_2m_sde in 25 calls, mean of {seeds} seeds (lowest to "
        f"highest), of runs that train on {QUICKSTART.steps * 32:,} images; precision and recall at their end.",
        "",
        "| recipe | half of the steps | all of them | precision | recall |",
        "| --- | --- | --- | --- | --- |",
        *(line for _, line in sorted(made)),
    ]
