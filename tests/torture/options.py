"""What the commands' options take, written down once more: the program is not its own judge of what is malformed."""

# Whole numbers, by the least that would do.
LEAST = {
    "train": {
        "trainer.steps": 1,
        "trainer.batch_size": 1,
        "trainer.accumulate": 1,
        "trainer.log_every": 1,
        "trainer.preview_images": 1,
        "trainer.keep_last": 1,
        "trainer.warmup_steps": 0,
        "trainer.preview_every": 0,
        "trainer.checkpoint_every": 0,
        "trainer.keep_every": 0,
        "schedule.timesteps": 1,
        "sampler.steps": 1,
        "model.in_channels": 1,
        "model.base_channels": 2,
        "model.num_res_blocks": 1,
        "model.num_heads": 1,
        "model.norm_groups": 1,
    },
    "sample": {"n": 1, "batch_size": 1, "sampler.steps": 1},
}
ANY_WHOLE = {"train": ["seed", "data.channels"], "sample": ["seed"]}
# Numbers, none of them negative, by others that are too large or too small.
NUMBERS = {
    "train": {
        "schedule.s": [],
        "schedule.beta_min": ["1", "1.5"],
        "schedule.beta_max": ["0", "1", "1.0"],
        "model.dropout": ["1", "1.5"],
        "optimizer.lr": ["0", "0.0"],
        "optimizer.eps": [],
        "optimizer.weight_decay": [],
        "sampler.eta": ["1.01", "2"],
        "trainer.grad_clip": ["0", "0.0"],
    },
    "sample": {"ema_length": ["0.3", "1"]},
}
SWITCHES = {
    "train": ["trainer.checkpoint_activations", "trainer.deterministic", "data.flip"],
    "sample": ["save_steps"],
}
CHOICES = {"train": ["trainer.precision", "trainer.lr_decay"], "sample": ["weights", "precision", "save"]}
TEXTS = {"train": ["output_dir", "name", "trainer.device"], "sample": ["ckpt", "device", "out", "ckpt_sha256"]}
LISTS = {
    "train": [
        "model.channel_mults",
        "model.attention_resolutions",
        "optimizer.betas",
        "ema.decays",
        "ema.posthoc",
        "trust",
    ],
    "sample": ["trust"],
}
NULLABLE = {"train": ["name", "trainer.grad_clip"], "sample": ["out", "ckpt_sha256", "sampler.steps", "ema_length"]}

# Values that cannot be, for reasons of their own.
IMPOSSIBLE = {
    "train": {
        "model.channel_mults": ["[]", "[0]", "[1,-2]", "[1,2,2,2,2,2,2]", "[1.5,2]"],
        "model.attention_resolutions": ["[3]", "[-1]", "[8,5]", "[8.0]"],
        "model.image_size": ["32", "[16,8]", "[8,16]", "12", "[16]", "x"],
        "data.image_size": ["0", "15", "-16", "[16]", "[]", "[16,15]", "[16.0,16]", "[16,16,16]", "[0,0]"],
        "data.channels": ["-1", "0", "2", "4"],
        "ema.decays": ["[]", "[1]", "[1.0]", "[2]", "[-0.1]", "[0.9,0.9]", "[nan]", "0.9", "[a]"],
        "ema.posthoc": ["[0]", "[-0.1]", "[0.3]", "[0.1,0.1]", "[1e-9]", "[nan]", "0.1", "[a]"],
        "optimizer.betas": ["[]", "[0.9]", "[1.0,0.999]", "[0.9,1]", "[-0.1,0.9]", "[nan,0.9]", "[0.9,0.9,0.9]"],
        "sampler.steps": ["1001", "2000", "1000000000000000000000"],
        "trainer.device": ["cuda:99", "cuda:-1", "tpu", "''", "meta", "'cuda:'", "cpu:x", "'a\nb'"],
        "name": ["''", "a/b", "..", ".a", "-a", "a:b", "'a b'", "'a\nb'", "'ä'", "'~'", "'\udcff'"],
        "trust": ["[1]", "[null]", "[[a]]"],
    },
    "sample": {
        "sampler.steps": ["21", "1000", "1000000000000000000000"],  # the run has 20
        "device": ["cuda:99", "cuda:-1", "tpu", "''", "meta", "'cuda:'", "cpu:x", "'a\nb'"],
        "trust": ["[1]", "[null]"],
    },
}
GROUPS = {
    "train": {
        "schedule": ["cosine", "linear"],
        "model": ["unet_16", "unet_28", "unet_32", "unet_64"],
        "prediction": ["eps"],
        "variance": ["fixed_large", "fixed_small"],
        "weighting": ["simple"],
        "sampler": ["ddim", "ddpm"],
        "optimizer": ["adam", "adamw"],
        "ema": ["none", "posthoc", "short", "standard"],
        "trainer": ["default"],
        "data": ["cifar10", "digits", "fashion_mnist", "folder", "mnist"],
        "experiment": ["cifar10_ddpm", "folder_64", "quickstart"],
    },
    "sample": {"sampler": ["ddim", "ddpm"], "variance": ["fixed_large", "fixed_small"]},
}
OPTIONAL_GROUPS = {"train": ["experiment"], "sample": ["variance"]}
REQUIRED = {  # and not null by default
    "train": ["trainer.steps", "trainer.batch_size", "seed", "resume", "trust", "output_dir", "model", "schedule"],
    "sample": ["n", "batch_size", "seed", "weights", "device", "save", "trust", "sampler"],
}
# Parts of keys of options that are not chosen: no misspellings, though wrong where they are not chosen.
ELSEWHERE = [
    *("root", "download", "path", "on_bad", "workers", "cache_dir", "memory_mb", "beta_start", "beta_end", "variance"),
    *("image_size", "resume"),
]

FINE = {
    "train": [
        *("trainer.steps=3", "trainer.batch_size=16", "trainer.log_every=5", "trainer.preview_every=0"),
        *("trainer.device=cpu", "trainer.precision=fp32", "trainer.lr_decay=linear", "++trainer.keep_last=1"),
        *("seed=7", "output_dir=elsewhere", "name=fine", "resume=null", "trust=[]", "model.base_channels=16"),
        *("optimizer=adam", "optimizer.lr=3e-4", "ema=none", "prediction=eps", "weighting=simple"),
        *("variance=fixed_large", "sampler=ddim", "schedule=cosine", "data=digits", "experiment=quickstart"),
        *("sampler.steps=20", "sampler.eta=0.5", "data.flip=true", "model.dropout=0.1", "trainer.grad_clip=null"),
    ],
    "sample": [
        *("n=3", "batch_size=2", "seed=7", "device=cpu", "precision=fp32", "out=elsewhere", "save=images"),
        *("save_steps=true", "trust=[]", "sampler.steps=3", "ckpt_sha256=null", "weights=model"),
    ],
    "resume": [
        *("trainer.steps=9", "trainer.log_every=5", "trainer.preview_every=0", "trainer.device=cpu"),
        *("name=other", "output_dir=elsewhere", "++trainer.keep_last=1", "trust=[]"),
    ],
}


def keys(program: str) -> list[str]:
    """Of single options, with what is chosen by default."""
    tables = (LEAST, ANY_WHOLE, NUMBERS, SWITCHES, CHOICES, TEXTS, LISTS)
    return sorted({key for table in tables for key in table[program]})


def names(program: str) -> set[str]:
    """Every part of a key, also of options that are not chosen."""
    everywhere = [*keys(program), *GROUPS[program], *REQUIRED[program], *IMPOSSIBLE[program]]
    return {part for key in everywhere for part in key.split(".")} | set(ELSEWHERE)
