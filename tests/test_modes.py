"""What `ddpm-sample` can draw, with denoisers whose answers are known."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gaussian import GaussianDenoiser
from PIL import Image
from torch import Tensor

from ddpm_cli.diffusion.ddpm import DDPM
from ddpm_cli.diffusion.denoiser import Denoised, Denoiser
from ddpm_cli.diffusion.samplers import DDIM, Ancestral, DPMSolverPP2M, DPMSolverPP2MSDE, Heun, Sampler, UniPC
from ddpm_cli.diffusion.schedule import linear
from ddpm_cli.diffusion.threshold import Unbounded
from ddpm_cli.io.images import BETWEEN, from_uint8, grid, to_uint8
from ddpm_cli.io.picture_labels import with_labels
from ddpm_cli.runtime.device import choose_compute
from ddpm_cli.runtime.exit_codes import NON_FINITE, RunError
from ddpm_cli.runtime.seeds import ImageNoise
from ddpm_cli.sampling.film import FILM_FRAMES, Film, animation, strip
from ddpm_cli.sampling.loop import SamplingLoop
from ddpm_cli.sampling.modes import GREY, Edit, Generate, Inpaint, Interpolate, Mode, Plan, Reconstruct, SampleContext
from ddpm_cli.sampling.outputs import GRID_COLUMNS, GRID_IMAGES, picture

SHAPE = (1, 8, 8)
ANCESTRAL = Ancestral(steps=10)
TEN_STEPS = DDIM(steps=10)
GAUSSIAN = DDPM(GaussianDenoiser(linear(100), mean=0.1, std=0.4), linear(100))
EXACT = partial(GAUSSIAN.denoiser, threshold=Unbounded())
CPU = choose_compute("cpu", "fp32")


def setting(sampler: Sampler = ANCESTRAL, *, n: int = 2, classes: int = 0, seed: int = 0) -> SampleContext:
    schedule = GAUSSIAN.schedule
    return SampleContext(schedule, sampler, SHAPE, n=n, classes=classes, seed=seed, device=torch.device("cpu"))


def drawn(plan: Plan, *, batch_size: int = 64) -> Tensor:
    """uint8, with the exact denoiser of Gaussian data."""
    images, _ = draw(plan, EXACT, batch_size=batch_size)
    return images


def draw(
    plan: Plan, denoiser: Callable[[Tensor | None], Denoiser], *, batch_size: int, followed: int = 0
) -> tuple[Tensor, Tensor | None]:
    """All images of a plan, and the trajectory of the first `followed`."""
    parts, trajectories = [], []

    def keep(indices: range, images: Tensor, trajectory: Tensor | None) -> None:
        assert len(indices) == len(images)
        parts.append(images)
        trajectories.extend([] if trajectory is None else [trajectory])

    batches = [range(plan.images)[first : first + batch_size] for first in range(0, plan.images, batch_size)]
    SamplingLoop(GAUSSIAN, plan, CPU, denoiser=denoiser).draw(batches, keep, followed=followed)
    return torch.cat(parts), torch.cat(trajectories, dim=2) if trajectories else None


class Kept:
    """Images that `picture` reads, without a directory."""

    def __init__(self, images: Tensor):
        self.all = images

    def images(self, indices: range) -> Tensor:
        return self.all[indices.start : indices.stop]


@torch.no_grad()
def last(plan: Plan, denoise: Denoiser | None = None) -> Tensor:
    """In floating point, in one batch."""
    *_, x = plan.walk(EXACT() if denoise is None else denoise, range(plan.images))
    return x


def grey(x_t: Tensor, t: int) -> Denoised:
    return Denoised(torch.zeros_like(x_t), x_t)


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder of three, each noise about a brightness of its own."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, brightness in enumerate((60, 120, 180)):
        pixels = rng.integers(brightness - 30, brightness + 30, SHAPE[1:], dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def pixels_of(folder: Path) -> Tensor:
    """uint8 `[K, 1, 8, 8]`"""
    return torch.stack([torch.from_numpy(np.array(Image.open(file)))[None] for file in sorted(folder.iterdir())])


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    """The upper left is to be painted."""
    white = np.zeros(SHAPE[1:], dtype=np.uint8)
    white[:5, :3] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


WHITE = torch.zeros(SHAPE, dtype=torch.bool)
WHITE[:, :5, :3] = True


def inpaint(folder: Path, mask: Path, **options) -> Inpaint:
    return Inpaint(**({"image": str(folder), "mask": str(mask), "jump_length": 3, "resamplings": 2} | options))


MODES: dict[str, Callable[[Path, Path], Plan]] = {
    "generate": lambda _, __: Generate().plan(setting(classes=3)),
    "edit": lambda folder, _: Edit(image=str(folder), strength=0.5).plan(setting()),
    "inpaint": lambda folder, mask: inpaint(folder, mask).plan(setting()),
    "interpolate": lambda _, __: Interpolate(seeds=[3, 4, 3]).plan(setting(TEN_STEPS, n=3)),
    "reconstruct": lambda folder, _: Reconstruct(image=str(folder)).plan(setting(TEN_STEPS, n=1)),
}


@pytest.mark.parametrize("mode", MODES)
def test_an_image_is_the_same_in_every_batch(mode: str, pictures: Path, mask: Path):
    plan = MODES[mode](pictures, mask)
    count = plan.rows * plan.per_row
    whole = drawn(plan)
    assert whole.shape == (count, *SHAPE)
    for batch_size in (1, 2, 4):
        assert torch.equal(drawn(plan, batch_size=batch_size), whole)
    differ = count // 2 if mode == "interpolate" else count  # there and back
    assert len(whole.flatten(1).unique(dim=0)) == differ


# Generate ------------------------------------------------------------------------------------------------------------


def test_new_images_have_a_row_for_each_class():
    for classes, rows, columns in ((0, 1, None), (1, 1, None), (3, 3, 2)):
        plan = Generate().plan(setting(classes=classes))
        assert (plan.rows, plan.per_row, plan.columns) == (rows, 2, columns)


# Edit ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strength", "first"), [(1.0, 99), (0.6, 59), (0.1, 9), (0.001, 0)])
def test_strength_says_from_which_t_on_a_picture_is_drawn_anew(strength: float, first: int, pictures: Path):
    asked = []

    def watching(x_t: Tensor, t: int) -> Denoised:
        asked.append((t, x_t))
        return grey(x_t, t)

    edit = Edit(image=str(pictures / "0.png"), strength=strength)
    plan = edit.plan(setting(DDIM(steps=1)))
    last(plan, watching)
    ((t, x_t),) = asked
    assert t == first
    x_0, noise = from_uint8(pixels_of(pictures)[:1]), ImageNoise(0, range(2), SHAPE)()
    expected, _ = GAUSSIAN.q_sample(x_0.expand(2, *SHAPE), torch.tensor([first, first]), noise)
    assert torch.equal(x_t, expected)


def test_a_small_strength_stays_near_the_picture_and_rows_are_the_pictures(pictures: Path):
    given = pixels_of(pictures)

    def distances(strength: float) -> Tensor:
        """Of every image from every picture, `[6, 3]`."""
        plan = Edit(image=str(pictures), strength=strength).plan(setting(Ancestral()))
        images = drawn(plan)
        return (images[:, None].float() - given[None].float()).square().mean((2, 3, 4)).sqrt()

    near, far = distances(0.04), distances(1.0)
    assert near.argmin(1).tolist() == [0, 0, 1, 1, 2, 2]
    own = near.gather(1, near.argmin(1)[:, None])
    assert own.max() < 20
    assert far.argmin(1).tolist() != [0, 0, 1, 1, 2, 2], "of the picture nothing is left"


@pytest.mark.parametrize(
    "sampler", [Heun(steps=3), DPMSolverPP2M(steps=3), UniPC(steps=3)], ids=["heun", "dpmpp_2m", "unipc"]
)
def test_every_solver_edits(sampler: Sampler, pictures: Path):
    x = last(Edit(image=str(pictures), strength=0.3).plan(setting(sampler)), grey)
    assert x.isfinite().all()
    assert x.abs().max() < 1e-5, "where the denoiser sees grey"


# Inpaint -------------------------------------------------------------------------------------------------------------


def test_what_is_black_in_the_mask_is_kept_to_the_bit_and_what_is_white_painted(pictures: Path, mask: Path):
    given = pixels_of(pictures).repeat_interleave(2, dim=0)
    plan = inpaint(pictures, mask).plan(setting())
    images = drawn(plan)
    white = WHITE.expand(images.shape)
    assert torch.equal(images[~white], given[~white])
    assert (images[white] != given[white]).float().mean() > 0.9
    assert plan.shown is not None
    assert torch.equal(plan.shown[:, 0], pixels_of(pictures))
    assert (plan.shown[:, 1][WHITE.expand(3, *SHAPE)] == GREY).all()
    assert torch.equal(to_uint8(last(plan, grey))[white], torch.full_like(given[white], 128)), "as the denoiser sees"


@pytest.mark.parametrize(("value", "says"), [(255, "is white everywhere"), (0, "has no white")])
def test_a_mask_without_two_sides_is_refused(value: int, says: str, pictures: Path, tmp_path: Path):
    Image.new("L", (8, 8), value).save(tmp_path / "flat.png")
    with pytest.raises(ValueError, match=f"flat.png {says}: white is painted, black is kept"):
        inpaint(pictures, tmp_path / "flat.png").plan(setting())


def test_jumps_that_cannot_be_are_refused_before_anything_is_drawn(pictures: Path, mask: Path):
    with pytest.raises(ValueError, match="jump_length must be between 1 and 9, one less than the steps, got 10"):
        inpaint(pictures, mask, jump_length=10).plan(setting())
    with pytest.raises(ValueError, match="resamplings must be at least 1, got 0"):
        inpaint(pictures, mask, resamplings=0).plan(setting())


# Interpolate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampler",
    [TEN_STEPS, Heun(steps=5), UniPC(steps=5), ANCESTRAL, DDIM(steps=5, eta=0.5), DPMSolverPP2MSDE(steps=5)],
    ids=["ddim", "heun", "unipc", "ddpm", "ddim with noise", "dpmpp_2m_sde"],
)
def test_the_ends_are_the_images_of_their_seeds_to_the_bit(sampler: Sampler):
    n, seeds = 5, [3, 4, 9]
    images = last(Interpolate(seeds=seeds).plan(setting(sampler, n=n))).view(2, n, *SHAPE)
    alone = [last(Generate().plan(setting(sampler, n=1, seed=seed)))[0] for seed in seeds]
    for row in (0, 1):
        assert torch.equal(images[row, 0], alone[row])
        assert torch.equal(images[row, -1], alone[row + 1])
    steps = images.diff(dim=1).flatten(2).norm(dim=2)
    assert (steps.amax(1) < 1.3 * steps.amin(1)).all(), "and between them the steps are even"


def test_what_lies_between_is_as_long_as_noise_and_turns_evenly():
    seen = []

    def watching(x_t: Tensor, t: int) -> Denoised:
        seen.append(x_t)
        return grey(x_t, t)

    last(Interpolate(seeds=[3, 4]).plan(setting(TEN_STEPS, n=9)), watching)
    x = seen[0].flatten(1).double()
    a, b = x[0].norm(), x[-1].norm()
    assert x.norm(dim=1).min() > 0.97 * min(a, b)
    assert x.norm(dim=1).max() < 1.03 * max(a, b)
    unit = x / x.norm(dim=1, keepdim=True)
    angles = (unit[:-1] * unit[1:]).sum(1).arccos()
    torch.testing.assert_close(angles, angles.mean().expand(8), rtol=0.15, atol=0.0)


# Reconstruct ---------------------------------------------------------------------------------------------------------


def test_a_picture_comes_back_from_its_noise_and_the_nearer_the_more_steps(pictures: Path):
    given = from_uint8(pixels_of(pictures))
    errors = []
    for steps in (10, 30, 90):
        plan = Reconstruct(image=str(pictures)).plan(setting(DDIM(steps=steps), n=1))
        with torch.no_grad():
            states = list(plan.walk(EXACT(), range(3)))
        assert len(states) == plan.steps == 2 * steps
        errors.append((states[-1] - given).square().mean().sqrt().item())
        noise = states[steps - 1]
        assert 0.2 < noise.std() < 5
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.05


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "of", "says"),
    [
        (Edit(image=None, strength=0.5), setting(), "image must be given, as image=..."),
        (Edit(image="x", strength=None), setting(), "strength must be given"),
        (Edit(image="x", strength=0.0), setting(), r"strength must lie in \(0, 1\], got 0"),
        (Edit(image="x", strength=1.01), setting(), r"strength must lie in \(0, 1\], got 1.01"),
        (Edit(image="DIR", strength=0.05), setting(), r"^strength 0.05 begins at t = 4: steps must be .* 1 and the 5 "),
        (Edit(image="empty", strength=0.5), setting(), "no pictures in .*empty"),
        (Edit(image="bad", strength=0.5), setting(), "bad/no.png: not in a known image format"),
        (Edit(image="linked", strength=0.5), setting(), "linked/away.png: link to .*, outside the folder"),
        (Inpaint(image="DIR", mask=None, jump_length=1, resamplings=2), setting(), "mask must be given"),
        (
            Inpaint(image="DIR", mask="bad/no.png", jump_length=1, resamplings=2),
            setting(),
            "bad/no.png: not in a known im",
        ),
        (Inpaint(image="DIR", mask="x", jump_length=1, resamplings=2), setting(TEN_STEPS), "choose sampler=ddpm"),
        (Interpolate(seeds=[1]), setting(TEN_STEPS), r"seeds must be at least two, got \[1\]"),
        (Interpolate(seeds=[1, 1]), setting(TEN_STEPS), r"seeds must change from one to the next, got \[1, 1\]"),
        (Interpolate(seeds=[1, 2]), setting(TEN_STEPS, n=1), "n must be at least 2, the two ends, got 1"),
        (Reconstruct(image="DIR"), setting(DDIM(steps=10, eta=0.5), n=1), "choose sampler=ddim sampler.eta=0"),
        (Reconstruct(image="DIR"), setting(Heun(steps=3), n=1), "choose sampler=ddim"),
        (Reconstruct(image="DIR"), setting(TEN_STEPS, n=2), "n must be 1, as nothing is drawn at random, got 2"),
    ],
)
def test_what_a_mode_cannot_do_is_refused(mode: Mode, of: SampleContext, says: str, pictures: Path, monkeypatch):
    monkeypatch.chdir(pictures.parent)
    pictures.rename("DIR")
    for name in ("empty", "bad", "linked"):
        Path(name).mkdir()
    Path("bad/no.png").write_bytes(b"no picture")
    Path("linked/away.png").symlink_to("../DIR/0.png")
    with pytest.raises(ValueError, match=says):
        mode.plan(of)


# The picture of all --------------------------------------------------------------------------------------------------


def cell(picture: Tensor, row: int, column: int) -> Tensor:
    """uint8 `[8, 8]`: the image in a cell of a grid that shows every pixel eight times in each direction."""
    top, left = (2 + 66 * place for place in (row, column))
    found = picture[0, top : top + 64, left : left + 64]
    small = found[::8, ::8]
    assert torch.equal(small.repeat_interleave(8, 0).repeat_interleave(8, 1), found)
    return small


@pytest.mark.parametrize(("mode", "inputs"), [("edit", 1), ("inpaint", 2), ("reconstruct", 1)])
def test_a_row_begins_with_the_picture_that_it_is_made_of(mode: str, inputs: int, pictures: Path, mask: Path):
    plan = MODES[mode](pictures, mask)
    columns = inputs + plan.per_row
    assert plan.columns == columns
    images = drawn(plan)
    shown = picture(Kept(images), plan)
    assert shown.shape == (1, 3 * 66 + 2, columns * 66 + 2)
    assert (shown[0, :2] == BETWEEN).all()
    for row, given in enumerate(pixels_of(pictures)):
        assert torch.equal(cell(shown, row, 0), given[0])
        if mode == "inpaint":
            holes = torch.where(WHITE, GREY, given.int()).byte()
            assert torch.equal(cell(shown, row, 1), holes[0])
        for i in range(plan.per_row):
            assert torch.equal(cell(shown, row, inputs + i), images[row * plan.per_row + i, 0])


def numbered(rows: int, per_row: int) -> tuple[Tensor, Plan]:
    images = (torch.arange(rows * per_row) % 251).byte().view(-1, 1, 1, 1).expand(-1, 1, 64, 64)
    return images, Plan(rows, per_row, [], lambda _, __: iter(()))


@pytest.mark.parametrize(
    ("rows", "per_row", "shown_rows", "shown_columns"),
    [
        (10, 64, 10, 40),  # classes=all, and nothing else said
        (10, 5000, 10, 40),  # for an FID
        (1000, 2, 200, 2),
        (1000, 50, 20, 20),
        (3, 8, 3, 8),
    ],
)
def test_a_picture_of_many_shows_what_a_person_can_look_at(rows, per_row, shown_rows, shown_columns):
    images, plan = numbered(rows, per_row)
    shown = picture(Kept(images), plan)
    assert shown.shape == (1, shown_rows * 66 + 2, shown_columns * 66 + 2)
    assert shown_rows * shown_columns <= GRID_IMAGES
    assert shown_columns >= min(per_row, GRID_COLUMNS)
    for row, column in ((0, shown_columns - 1), (shown_rows - 1, 0), (shown_rows - 1, shown_columns - 1)):
        assert shown[0, 2 + 66 * row, 2 + 66 * column] == (row * per_row + column) % 251


@pytest.mark.parametrize(
    ("labels", "class_names", "row_names", "expected"),
    [
        ([4, 4, 7, 7], [], [], ["4", "7"]),
        ([0, 0, 1, 1], ["cat", "dog"], [], ["cat", "dog"]),
        ([0, 0, 1, 1], ["Kater", "K\u00e4fer"], [], ["Kater", "1"]),  # what the font has not is said by number
        (None, ["cat", "dog"], ["seeds 0 to 1", "seeds 1 to 2"], ["seeds 0 to 1", "seeds 1 to 2"]),
        ([1, 1, 0, 0], ["cat", "dog"], ["seeds 0 to 1", "seeds 1 to 2"], ["dog, seeds 0 to 1", "cat, seeds 1 to 2"]),
        ([0, 1, 1, 0], ["cat", "dog"], [], []),  # as the seed has drawn them
    ],
)
def test_rows_are_called_by_their_class_and_seeds(labels, class_names, row_names, expected):
    images, plan = numbered(2, 2)
    named = picture(Kept(images), plan._replace(labels=labels, row_names=row_names), class_names)
    assert torch.equal(named, with_labels(picture(Kept(images), plan), left=expected))
    assert torch.equal(named[:, :, -(2 * 66 + 2) :], picture(Kept(images), plan))


def test_images_without_rows_make_a_square():
    images, plan = numbered(1, 500)
    assert torch.equal(picture(Kept(images), plan._replace(square=True)), grid(images[:GRID_IMAGES], columns=20))


# Trajectories --------------------------------------------------------------------------------------------------------


def test_a_film_shows_the_same_images_however_they_are_batched():
    plan = Generate().plan(setting(n=11))
    trajectories = []
    for batch_size in (11, 3):
        images, trajectory = draw(plan, EXACT, batch_size=batch_size, followed=8)
        assert trajectory is not None
        assert trajectory.shape == (11, 2, 8, *SHAPE), "ten steps, and the end"
        assert torch.equal(trajectory[-1, 0], images[:8])
        trajectories.append(trajectory)
    assert torch.equal(*trajectories)


def watched(asked: list[tuple[int, Tensor, Tensor]], labels: Tensor | None = None) -> Denoiser:
    """The exact denoiser, which writes down t, x_t and its answer."""
    denoise = EXACT(labels)

    def watching(x_t: Tensor, t: int) -> Denoised:
        denoised = denoise(x_t, t)
        asked.append((t, x_t.clone(), denoised.x_0.clone()))
        return denoised

    return watching


def first_of_each_step(plan: Plan) -> list[tuple[int, Tensor, Tensor]]:
    """What is asked first in each step of a plan's first batch, and answered."""
    asked, firsts = [], []
    with torch.no_grad():
        for _ in plan.walk(watched(asked), range(plan.images)):
            firsts.append(asked[0])
            asked.clear()
    return firsts


FILMED: dict[str, Callable[[Path, Path], Plan]] = MODES | {
    "heun": lambda _, __: Generate().plan(setting(Heun(steps=7))),
    "unipc": lambda _, __: Generate().plan(setting(UniPC(steps=7))),
    "dpmpp_2m_sde": lambda _, __: Generate().plan(setting(DPMSolverPP2MSDE(steps=30))),
}


@pytest.mark.parametrize("mode", FILMED)
def test_a_film_shows_what_the_network_was_asked_and_answered_and_asks_no_more(mode: str, pictures: Path, mask: Path):
    plan = FILMED[mode](pictures, mask)
    firsts = first_of_each_step(plan)
    assert [t for t, _, _ in firsts] == list(plan.times)
    calls = []
    for followed in (0, 2):
        asked = []
        images, trajectory = draw(plan, partial(watched, asked), batch_size=64, followed=followed)
        calls.append(len(asked))
    assert calls[0] == calls[1]
    assert trajectory is not None
    frames = min(plan.steps, FILM_FRAMES - 1)
    assert trajectory.shape[:3] == (frames + 1, 2, 2)
    kept = [torch.stack([to_uint8(x_t[:2]), to_uint8(x_0[:2])]) for _, x_t, x_0 in firsts]
    places = [next(i for i, step in enumerate(kept) if torch.equal(step, frame)) for frame in trajectory[:-1]]
    assert places == sorted(set(places)), "steps in their order"
    assert places[0] == 0
    assert torch.equal(trajectory[-1, 0], images[:2])


def test_a_step_that_asks_nothing_is_shown_with_the_answer_before():
    """As of an inversion that has not begun."""
    film = Film(1, 3)
    denoise = film.watch(lambda x_t, t: Denoised(x_t + 1, x_t))
    x = torch.full((2, *SHAPE), -1.0)
    denoise(x, 5)
    for value in (-0.5, 0.0, 0.5):
        film.end_step(torch.full_like(x, value))
    shown = [[int(image.unique()) for image in frame[:, 0]] for frame in film.trajectory()]
    assert shown == [[0, 128], [64, 128], [128, 128], [191, 191]]


@pytest.mark.parametrize(("channels", "names"), [(1, []), (3, ["cat", "dog"]), (4, [])])
def test_a_strip_has_two_rows_for_each_image_and_a_column_for_each_frame(channels: int, names: list[str]):
    trajectory = torch.randint(0, 256, (4, 2, 2, channels, 64, 64), dtype=torch.uint8)
    picture = strip(trajectory, [900, 500, 0], names)
    pixels = picture[:, -(4 * 66 + 2) :, -(4 * 66 + 2) :]
    for image, row, frame in itertools.product(range(2), range(2), range(4)):
        top, left = (2 * image + row) * 66 + 2, frame * 66 + 2
        assert torch.equal(pixels[:, top : top + 64, left : left + 64], trajectory[frame, row, image])
    frames = animation(trajectory, [900, 500, 0])
    assert len({frame.shape for frame in frames}) == 1
    assert len(frames) == 4
    above = frames[0].shape[-2] - (2 * 66 + 2)
    assert not torch.equal(frames[0][:, :above], frames[1][:, :above]), "another t"


@pytest.mark.parametrize("width", [1, 12, 20, 30])
def test_the_frames_of_a_film_of_one_narrow_image_are_of_one_size(width: int):
    """In some widths there is room for "t = 0" and for "t = 900" there is not."""
    frames = animation(torch.zeros(3, 2, 1, 1, 64, width, dtype=torch.uint8), [900, 0])
    assert len({frame.shape for frame in frames}) == 1


def test_labels_reach_the_denoiser_in_the_images_order():
    plan = Generate().plan(setting(classes=3, n=2))._replace(labels=[4, 4, 0, 0, 7, 7])
    seen = []

    def denoiser(labels: Tensor | None):
        seen.append(labels)
        return grey

    draw(plan, denoiser, batch_size=4)
    assert [labels.tolist() for labels in seen] == [[4, 4, 0, 0], [7, 7]]


def test_images_that_are_not_finite_are_no_pictures():
    def spoilt(x_t: Tensor, t: int) -> Denoised:
        return Denoised(torch.full_like(x_t, float("nan")), x_t)

    plan = Generate().plan(setting())
    with pytest.raises(RunError, match="the images are not finite; try precision=fp32") as raised:
        draw(plan, lambda labels: spoilt, batch_size=2)
    assert raised.value.status == NON_FINITE
