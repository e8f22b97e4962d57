"""Trainings whose networks answer with something, and what is drawn from them: every option of `ddpm-sample`."""

from digests.recipe import Recipe, tiny

# A network of so many steps has left its first answer, which is zero whatever it is asked.
LEARNED = ("trainer.steps=20", "optimizer.lr=0.01", "trainer.log_every=20", "trainer.preview_every=0")
LEARNED += ("trainer.checkpoint_every=10", "schedule.timesteps=30")
SOFT = ("schedule=scaled_linear", "schedule.beta_end=0.2")  # of which an inversion stays within what uint8 can show
FOUR = ("n=4", "batch_size=3")  # in batches that are not of one size
SPACINGS = ("linspace", "trailing", "leading", "log_snr")
SOLVERS = ("heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
TIMES = "[29,20,11,3,0]"


def recipes() -> list[Recipe]:
    return [
        Recipe("drawn", tiny(*LEARNED, "ema.decays=[0.9,0.5]"), samples=_ancestral() | _ddim() | _other_weights()),
        Recipe("drawn_by_solvers", tiny(*LEARNED, "schedule=linear"), samples=_solvers()),
        Recipe("drawn_modes", tiny(*LEARNED, *SOFT), samples=_modes()),
        Recipe("drawn_learned", tiny(*LEARNED, *_learned()), samples=_guided()),
        Recipe("drawn_from_noise", tiny(*LEARNED, *_from_noise()), samples=_thresholds()),
        Recipe("drawn_colour", tiny(*LEARNED, *_colour()), samples=_colour_modes()),
    ]


def _ancestral() -> dict[str, list[str]]:
    made = {
        f"ddpm_{spacing}": ["sampler=ddpm", "sampler.steps=7", f"sampler.spacing={spacing}"] for spacing in SPACINGS
    }
    made |= {
        "ddpm": ["sampler=ddpm", "save_trajectory=true", "mode=generate"],
        "ddpm_times": ["sampler=ddpm", f"sampler.steps={TIMES}", "seed=5"],
        "ddpm_large": ["sampler=ddpm", "sampler.steps=7", "variance=fixed_large"],
        "ddpm_small": ["sampler=ddpm", "sampler.steps=7", "variance=fixed_small"],
    }
    return {name: [*FOUR, *arguments] for name, arguments in made.items()}


def _ddim() -> dict[str, list[str]]:
    made = {}
    for spacing, eta in zip(SPACINGS, (0, 0.5, 1, 0), strict=True):
        made[f"ddim_{spacing}"] = ["sampler.steps=6", f"sampler.spacing={spacing}", f"sampler.eta={eta}"]
    made |= {
        "ddim": ["sampler.steps=30", "save_trajectory=true", "threshold=dynamic"],
        "ddim_times": [f"sampler.steps={TIMES}"],
        "ddim_times_noisy": [f"sampler.steps={TIMES}", "sampler.eta=1"],
    }
    return {name: ["sampler=ddim", *FOUR, *arguments] for name, arguments in made.items()}


def _other_weights() -> dict[str, list[str]]:
    ddim = ["n=3", "sampler=ddim", "sampler.steps=5"]
    return {
        "weights_model": ["weights=model", *ddim],
        "weights_ema": ["weights=ema_0.5", *ddim],
        "weights_alone": ["ckpt=RUN/checkpoints/step_00000010/ema.safetensors", *ddim],
        "bf16": ["precision=bf16", "n=1", "sampler=ddim", "sampler.steps=2"],
    }


def _solvers() -> dict[str, list[str]]:
    made = {}
    for solver in SOLVERS:
        for spacing in SPACINGS:
            made[f"{solver}_{spacing}"] = [f"sampler={solver}", "sampler.steps=6", f"sampler.spacing={spacing}"]
        made[f"{solver}_times"] = [f"sampler={solver}", f"sampler.steps={TIMES}", "save_trajectory=true"]
        made[f"{solver}_free"] = [f"sampler={solver}", "sampler.steps=12", "threshold=none"]
    return {name: ["n=3", *arguments] for name, arguments in made.items()}


def _modes() -> dict[str, list[str]]:
    grey, folder = "image=../material/grey.png", "image=../material/given"
    edit, inpaint = ["mode=edit", "n=2"], ["mode=inpaint", "mask=../material/mask.png", "n=2"]
    between, back = ["mode=interpolate", "seeds=[4,0,7]", "n=3"], ["mode=reconstruct"]
    return {
        "edit": [*edit, grey, "strength=0.5", "save_trajectory=true"],
        "edit_folder": [*edit, folder, "strength=0.7", "batch_size=3", "sampler=ddim", "sampler.steps=5"],
        "edit_solver": [*edit, grey, "strength=0.8", "sampler=dpmpp_2m", "sampler.steps=6"],
        "edit_noisy_solver": [*edit, grey, "strength=1", "sampler=dpmpp_2m_sde", "sampler.steps=6"],
        "inpaint": [*inpaint, folder, "sampler=ddpm", "sampler.steps=12", "mode.jump_length=3", "batch_size=3"],
        "inpaint_few": [*inpaint, grey, "sampler.steps=null", "mode.resamplings=3", "mode.jump_length=5"],
        "inpaint_once": [*inpaint, grey, "sampler.steps=8", "mode.resamplings=1", "save_trajectory=true"],
        "interpolate": [*between, "sampler=ddim", "sampler.steps=6", "batch_size=4", "save_trajectory=true"],
        "interpolate_solver": [*between, "sampler=unipc", "sampler.steps=6"],
        "reconstruct": [*back, folder, "sampler.steps=6", "save_trajectory=true"],
        "reconstruct_times": [*back, grey, "sampler=ddim", f"sampler.steps={TIMES}", "threshold=static"],
        "reconstruct_log_snr": [*back, grey, "sampler.steps=5", "sampler.spacing=log_snr"],
    }


def _learned() -> list[str]:
    learned = ["variance=learned_range", "loss=hybrid", "data.num_classes=10", "trainer.label_dropout=0.3"]
    return [*learned, "ema=posthoc", "ema.posthoc=[0.05,0.15]", "trainer.checkpoint_every=5"]


def _guided() -> dict[str, list[str]]:
    guided = ["guidance=classifier_free", "guidance.scale=3", "classes=[7,1]", "n=2"]
    ddim = ["sampler=ddim", "sampler.steps=6"]
    return {
        "without_labels": [*FOUR],
        "all_classes": ["classes=all", "n=1", "batch_size=4", "sampler.steps=7"],
        "some_classes": ["classes=[7,1]", "n=2", *ddim],
        "learned_variance": ["n=3", "sampler=ddpm", "variance=learned_range", "sampler.steps=9"],
        "fixed_variance": ["n=3", "sampler=ddpm", "variance=fixed_large", "sampler.steps=9"],
        "guided": [*guided, "sampler.steps=7"],
        "guided_interval": [*guided, *ddim, "guidance.interval=[5,20]"],
        "guided_rescaled": [*guided, "sampler=dpmpp_2m", "sampler.steps=6", "guidance.rescale=0.7"],
        "guided_away": ["guidance.scale=0", "classes=all", "n=1", *ddim],
        "guided_dynamic": [*guided, *ddim, "threshold=dynamic", "threshold.quantile=0.9"],
        "guided_edit": [*guided, "mode=edit", "image=../material/given", "strength=0.6", "save_trajectory=true"],
        "ema_length": ["ema_length=0.08", "n=3", *ddim],
        "ema_length_long": ["ema_length=0.2", "n=3", *ddim],
    }


def _from_noise() -> list[str]:
    return ["schedule=linear", "schedule.zero_terminal_snr=true", "prediction=v", "variance=fixed_large"]


def _thresholds() -> dict[str, list[str]]:
    made = {f"noise_{name}": [f"sampler={name}", "sampler.steps=6"] for name in ("ddpm", "ddim", *SOLVERS)}
    for name in ("static", "dynamic", "none"):
        made[f"threshold_{name}"] = ["sampler=ddim", "sampler.steps=10", f"threshold={name}"]
        made[f"threshold_{name}_noisy"] = ["sampler=ddpm", f"threshold={name}", "save_trajectory=true"]
    return {name: ["n=3", *arguments] for name, arguments in made.items()}


def _colour() -> list[str]:
    folder = ["data=folder", "data.path=../material/folder", "data.cache_dir=cache", "data.workers=0"]
    shape = ["data.image_size=[16,24]", "data.channels=3", "model=unet_16", "model.attention_resolutions=[8]"]
    return [*folder, *shape, "prediction=x0", "trainer.batch_size=8"]


def _colour_modes() -> dict[str, list[str]]:
    given = "image=../material/given"
    mask = "mask=../material/wide_mask.png"
    return {
        "colour": ["n=3", "sampler=ddpm", "sampler.steps=9", "save_trajectory=true"],
        "colour_edit": ["n=2", "mode=edit", given, "strength=0.4", "sampler=heun", "sampler.steps=5"],
        "colour_inpaint": ["n=1", "mode=inpaint", given, mask, "sampler.steps=14"],
        "colour_reconstruct": ["mode=reconstruct", given, "sampler.steps=5"],
    }
