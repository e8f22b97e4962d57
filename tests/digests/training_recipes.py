"""Trainings that take every option of the groups of `ddpm-train`, and what decides the numbers of a run otherwise."""

from itertools import product

from digests.recipe import Recipe, tiny

NARROW = ("model.base_channels=8", "model.norm_groups=8", "trainer.batch_size=4", "trainer.steps=2")
FEW = ("trainer.log_every=1", "trainer.preview_images=2", "sampler.steps=3")
PUBLISHED = "../material/published"
GREY_16 = ("data.image_size=16", "data.channels=1", "model=unet_16", "data.cache_dir=cache", "data.workers=0")


def recipes() -> list[Recipe]:
    return [
        *_experiments(),
        *_data(),
        *_models(),
        *_schedules(),
        *_targets(),
        *_losses(),
        *_previews(),
        *_optimizers_and_averages(),
        *_trainer(),
        *_resumed(),
        *_together(),
    ]


def _experiments() -> list[Recipe]:
    improved = (*NARROW, *FEW, f"data.root={PUBLISHED}")
    folder_64 = (*NARROW, *FEW, "data.path=../material/folder", "data.cache_dir=cache", "data.workers=0")
    return [
        Recipe("digits_as_it_comes", ["trainer.steps=3", "trainer.preview_images=2", "sampler.steps=3"]),
        Recipe("quickstart", ["experiment=quickstart", "trainer.steps=2", "trainer.batch_size=16", *FEW]),
        Recipe("cifar10_ddpm", ["experiment=cifar10_ddpm", *NARROW, *FEW, f"data.root={PUBLISHED}"]),
        Recipe("cifar10_improved", ["experiment=cifar10_improved", *improved]),
        Recipe("folder_64", ["experiment=folder_64", *folder_64]),
        Recipe("folder_fast", ["experiment=folder_fast", *folder_64]),
        *(
            Recipe(f"{data}_fast", [f"experiment={data}_fast", *NARROW, *FEW, f"data.root={PUBLISHED}"])
            for data in ("mnist", "fashion_mnist", "cifar10")
        ),
    ]


def _data() -> list[Recipe]:
    made = []
    for name in ("mnist", "fashion_mnist", "cifar10"):
        arguments = [f"data={name}", f"data.root={PUBLISHED}", "trainer.preview_every=0"]
        made.append(Recipe(name, tiny(*arguments)))
        made.append(Recipe(f"{name}_labels", tiny(*arguments, "data.num_classes=10", "data.flip=horizontal")))
    folder = ["data=folder", "data.path=../material/folder", *GREY_16]
    shards = ["data=webdataset", "data.path=../material/shards", *GREY_16]
    colour = ("data.image_size=[16,24]", "data.channels=3")
    made += [
        Recipe("digits_8", tiny("data=digits", "data.image_size=8", "model.attention_resolutions=[4]")),
        Recipe("digits_labels", tiny("data=digits", "data.num_classes=10", "data.flip=horizontal")),
        Recipe("folder", tiny(*folder)),
        Recipe("folder_colour", tiny(*folder, *colour, "model.attention_resolutions=[]", "data.num_classes=3")),
        Recipe("folder_from_disk", tiny(*folder, "data.flip=none", "data.memory_mb=0", "data.workers=-1")),
        Recipe("folder_skips", tiny(*folder, "data.path=../material/broken", "data.on_bad=skip")),
        Recipe("webdataset", tiny(*shards)),
        Recipe("webdataset_colour", tiny(*shards, *colour, "model.attention_resolutions=[]", "data.num_classes=3")),
        Recipe("webdataset_workers", tiny(*shards, "data.window=2", "data.workers=2", "data.extensions=[png]")),
    ]
    return made


def _models() -> list[Recipe]:
    own = ("model.channel_mults=[1,2,2]", "trainer.preview_every=0")
    four_levels = ("model.channel_mults=[1,2,2,2]", "trainer.preview_every=0")
    return [
        Recipe("unet_16", tiny("model=unet_16", "model.num_heads=2", "model.dropout=0.2", "model.num_res_blocks=2")),
        Recipe("unet_28", tiny("data=mnist", f"data.root={PUBLISHED}", "model=unet_28", *own)),
        Recipe("unet_32", tiny("data=cifar10", f"data.root={PUBLISHED}", "model=unet_32", *four_levels)),
        Recipe("unet_64", tiny("data.image_size=32", "model=unet_64", *four_levels)),
        Recipe("adm_64", tiny("data.image_size=32", "model=adm_64", "model.head_channels=4", *four_levels)),
    ]


def _schedules() -> list[Recipe]:
    betas = "schedule.betas=[0.02,0.05,0.05,0.1,0.2,0.3,0.4,0.5]"
    options = {
        "cosine": ["schedule.s=0.02", "schedule.beta_min=0.001", "schedule.beta_max=0.99"],
        "linear": ["schedule.beta_start=0.001", "schedule.beta_end=0.4"],
        "scaled_linear": ["schedule.beta_start=0.01", "schedule.beta_end=0.3"],
        "sigmoid": ["schedule.tau=0.8", "schedule.start=-2.5", "schedule.end=2.0"],
        "custom": [betas],
    }
    made = []
    for i, (name, values) in enumerate(options.items()):
        without = ["schedule.timesteps"] if name == "custom" else []
        given = [f"schedule={name}", *values, "trainer.preview_every=3"]
        made.append(Recipe(name, tiny(*given, "sampler=ddpm", without=without)))
        noise = [*given, "schedule.zero_terminal_snr=true", f"prediction={('v', 'x0')[i % 2]}"]
        made.append(Recipe(f"{name}_zero_terminal_snr", tiny(*noise, without=without)))
    return made


def _targets() -> list[Recipe]:
    weightings = {
        "uniform": [],
        "min_snr": ["weighting.gamma=4"],
        "p2": ["weighting.gamma=0.5", "weighting.k=2"],
        "truncated_snr": [],
        "edm": ["weighting.sigma_data=0.8"],
    }
    made = []
    for (weighting, options), prediction in product(weightings.items(), ("eps", "x0", "v", "edm")):
        arguments = [f"weighting={weighting}", *options, f"prediction={prediction}", "loss=simple"]
        made.append(Recipe(f"{weighting}_{prediction}", tiny(*arguments, "optimizer.lr=0.01")))
    return made


def _losses() -> list[Recipe]:
    learned = ["variance=learned_range", "sampler=ddpm", "trainer.preview_every=3"]
    # Each timestep is seen soon, and the losses decide what later steps draw.
    by_loss = ["schedule.timesteps=6", "timestep_sampler=loss_second_moment", "trainer.steps=9"]
    by_loss += ["timestep_sampler.history=1", "timestep_sampler.uniform=0.01"]
    return [
        Recipe("hybrid", tiny("loss=hybrid", "loss.bound_weight=0.1", *learned)),
        Recipe("hybrid_v", tiny("loss=hybrid", "prediction=v", "weighting=min_snr", *learned)),
        Recipe("hybrid_x0", tiny("loss=hybrid", "prediction=x0", "schedule=linear", *learned)),
        Recipe("vlb_learned", tiny("loss=vlb", *learned, *by_loss)),
        Recipe("vlb_large", tiny("loss=vlb", "variance=fixed_large", "sampler=ddpm", "sampler.steps=null")),
        Recipe("vlb_small", tiny("loss=vlb", "variance=fixed_small", "sampler=ddpm", "prediction=v")),
        Recipe("uniform_t", tiny("timestep_sampler=uniform")),
        Recipe("stratified_t", tiny("timestep_sampler=stratified")),
        Recipe("loss_second_moment_t", tiny(*by_loss)),
        Recipe("log_normal_t", tiny("timestep_sampler=log_normal", "timestep_sampler.mean=1")),
    ]


def _previews() -> list[Recipe]:
    samplers = {
        "ddpm": ["sampler.spacing=trailing"],
        "ddim": ["sampler.eta=0.5", "sampler.spacing=log_snr"],
        "heun": [],
        "dpmpp_2m": ["sampler.spacing=linspace"],
        "dpmpp_2m_sde": [],
        "unipc": ["sampler.steps=[19,7,2]"],
    }
    few = ["sampler.steps=4", "trainer.preview_every=2", "trainer.preview_images=3", "optimizer.lr=0.01", "seed=3"]
    return [Recipe(f"previews_{name}", tiny(f"sampler={name}", *few, *values)) for name, values in samplers.items()]


def _optimizers_and_averages() -> list[Recipe]:
    return [
        Recipe("adam", tiny("optimizer=adam", "optimizer.betas=[0.8,0.95]", "optimizer.eps=1e-4")),
        Recipe("adamw", tiny("optimizer=adamw", "optimizer.weight_decay=0.1", "optimizer.lr=0.003")),
        Recipe("ema_standard", tiny("ema=standard", "ema.decays=[0.9999,0.9,0.1]")),
        Recipe("ema_short", tiny("ema=short")),
        Recipe("ema_none", tiny("ema=none")),
        Recipe("overfit", tiny("trainer.overfit_batches=1")),
        Recipe("ema_posthoc", tiny("ema=posthoc", "ema.posthoc=[0.05,0.1,0.2]", "trainer.checkpoint_every=2")),
    ]


def _trainer() -> list[Recipe]:
    dropout, labels = "model.dropout=0.2", "data.num_classes=10"
    return [
        Recipe("accumulate", tiny("trainer=default", "trainer.accumulate=4", dropout, labels)),
        Recipe("accumulate_auto", tiny("trainer.batch_size=auto", dropout)),
        Recipe("not_clipped", tiny("trainer.grad_clip=null", "optimizer.lr=0.01")),
        Recipe("clipped", tiny("trainer.grad_clip=0.05")),
        Recipe("warmup_cosine", tiny("trainer.warmup_steps=2", "trainer.lr_decay=cosine", "trainer.log_every=1")),
        Recipe("warmup_linear", tiny("trainer.warmup_steps=3", "trainer.lr_decay=linear", "trainer.log_every=1")),
        Recipe("label_dropout", tiny("trainer.label_dropout=0.5", labels)),
        Recipe("no_label_dropout", tiny("trainer.label_dropout=0", labels)),
        Recipe("activation_checkpointing", tiny("trainer.activation_checkpointing=true", dropout, labels)),
        Recipe("bf16", tiny("trainer.precision=bf16", "trainer.steps=2", "trainer.batch_size=2")),
        Recipe("deterministic", tiny("trainer.deterministic=true")),
        Recipe("kept", tiny("trainer.checkpoint_every=1", "trainer.keep_last=1", "trainer.keep_every=2", "seed=1")),
    ]


def _resumed() -> list[Recipe]:
    """From steps that have not been logged yet, by name and by directory, and beyond the end."""
    learned = ["variance=learned_range", "loss=hybrid", "prediction=v", "data.num_classes=10", "model.dropout=0.1"]
    more = ["ema.decays=[0.9,0.5]", "ema.posthoc=[0.1]", "timestep_sampler=loss_second_moment", "data.flip=horizontal"]
    kept = ["timestep_sampler.history=1", "schedule.timesteps=6", "trainer.log_every=4"]
    begun = tiny("name=resumed", *learned, *more, *kept)
    shards = ["data=webdataset", "data.path=../material/shards", *GREY_16, "data.window=2"]
    return [
        Recipe("resumed", begun, again=[begun, ["resume=RUN", "trainer.steps=8"]], forget_after=3),
        Recipe("resumed_shards", tiny(*shards), again=[["resume=RUN", "trainer.log_every=3"]], forget_after=3),
    ]


def _together() -> list[Recipe]:
    """Two processes: of two numbers a sum has the same bits in either order."""
    options = ["data.num_classes=10", "model.dropout=0.1", "trainer.accumulate=2", "ema=posthoc"]
    options.append("trainer.preview_every=3")
    return [
        Recipe("two_processes", tiny(*options), processes=2),
        Recipe("two_processes_fsdp", tiny(*options, "trainer.fsdp=true"), processes=2),
    ]
