"""All recipes by name."""

from pathlib import Path

from digests import in_python, runs, sampling_recipes, training_recipes
from digests.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in sorted(
        [*training_recipes.recipes(), *sampling_recipes.recipes()], key=lambda recipe: recipe.commands, reverse=True
    )
}


def names() -> list[str]:
    """Of all recipes, the long ones first, so that they are not waited for."""
    return [*RECIPES, in_python.NAME]


def listed() -> list[str]:
    """Every command of every recipe."""
    lines = []
    for recipe in RECIPES.values():
        lines.append(f"{recipe.name}")
        lines += [f"    ddpm-train {' '.join(arguments)}" for arguments in (recipe.train, *recipe.again)]
        lines += [f"    ddpm-sample {' '.join(arguments)}" for arguments in recipe.samples.values()]
    return [*lines, in_python.NAME]


def carry_out(name: str, place: Path) -> dict[str, str]:
    """The digests of a recipe; `place` is a directory of its own."""
    return runs.carry_out_in_python(place) if name == in_python.NAME else runs.carry_out(RECIPES[name], place)
