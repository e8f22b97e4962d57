"""What is tried on digits: recipes of as many steps, and what came of them."""

from pathlib import Path

from quality.commands import Score, checkpoint, scored, side_by_side, trained
from quality.figures import over_seeds

STEPS = 1000
PARTS = (2, 1)  # of the steps, after which it is looked at
SAMPLES = 500
# What a recipe says that experiment=quickstart does not; each is trained from the same seeds.
TRIED: dict[str, tuple[str, ...]] = {
    "`experiment=quickstart` as it is": (),
    "`prediction=eps weighting=uniform`, as Ho et al. 2020": ("prediction=eps", "weighting=uniform"),
    "`prediction=edm weighting=edm timestep_sampler=log_normal`": (
        *("prediction=edm", "weighting=edm", "timestep_sampler=log_normal"),
    ),
}


def run(directory: Path, overrides: tuple[str, ...], seed: int) -> Path:
    """One run, with a checkpoint after each quarter."""
    name = "_".join(["recipe", *(word.partition("=")[2].replace(".", "_") for word in overrides), str(seed)])
    told = ("experiment=quickstart", *overrides, f"seed={seed}", f"trainer.steps={STEPS}")
    return trained(directory / "runs", name, (*told, f"trainer.checkpoint_every={STEPS // 4}"))


def _scores(directory: Path, overrides: tuple[str, ...], seed: int) -> list[Score]:
    one = run(directory, overrides, seed)
    steps = [STEPS // part for part in PARTS]
    return [scored(one / "eval" / f"at_{at}", SAMPLES, checkpoint(one, at), f"seed={seed}") for at in steps]


def lines(directory: Path, *, seeds: int) -> list[str]:
    told = [(what, seed) for what in TRIED.values() for seed in range(seeds)]
    found = dict(zip(told, side_by_side(lambda one: _scores(directory, *one), told), strict=True))
    steps = [f"{STEPS // part:,} steps" for part in PARTS]
    made = []
    for label, what in TRIED.items():
        of_recipe = [found[what, seed] for seed in range(seeds)]
        by_step = [over_seeds([scores[i].fd for scores in of_recipe]) for i in range(len(PARTS))]
        last = [scores[-1] for scores in of_recipe]
        shares = over_seeds([score.precision for score in last]), over_seeds([score.recall for score in last])
        made.append((of_recipe, f"| {label} | {' | '.join([*by_step, *shares])} |"))
    made.sort(key=lambda one: sum(scores[-1].fd for scores in one[0]))
    return [
        f"`fd{SAMPLES}_classifier` of {SAMPLES:,} images by dpmpp_2m_sde in 25 calls, mean of {seeds} seeds (lowest to "
        f"highest), of runs of {STEPS:,} steps; precision and recall at their end.",
        "",
        f"| recipe | {' | '.join(steps)} | precision | recall |",
        f"| --- |{' --- |' * (len(steps) + 2)}",
        *(line for _, line in made),
    ]
