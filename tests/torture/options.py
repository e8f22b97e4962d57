"""What the commands' options take, written down once more: the program is not its own judge of what is malformed.

Only the groups and their options are read, out of configs/: they are what its files are called.
"""

from collections.abc import Iterator

import yaml

from ddpm_cli.config.shipped import configs_directory

_CONFIGS = configs_directory()

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
        "trainer.eval_every": 0,
        "trainer.eval_images": 0,
        "data.holdout": 0,
        "schedule.timesteps": 1,
        "sampler.steps": 1,
        "model.in_channels": 1,
        "model.base_channels": 2,
        "model.num_res_blocks": 1,
        "model.num_heads": 1,
        "model.head_channels": 1,
        "model.norm_groups": 1,
    },
    "sample": {"n": 1, "batch_size": 1, "sampler.steps": 1},
    "eval": {"n": 2, "batch_size": 1, "likelihood_images": 1, "sampler.steps": 1},
}
ANY_WHOLE = {
    "train": ["seed", "data.channels", "data.num_classes", "model.num_classes"],
    "sample": ["seed"],
    "eval": ["seed"],
}
# Numbers, none of them negative, by others that are too large or too small.
NUMBERS = {
    "train": {
        "schedule.s": [],
        "schedule.beta_min": ["1", "1.5"],
        "schedule.beta_max": ["0", "1", "1.0"],
        "model.dropout": ["1", "1.5"],
        "model.norm_eps": ["0", "0.0", "2"],
        "model.time_scale": ["0", "0.0", "1e9"],
        "optimizer.lr": ["0", "0.0"],
        "optimizer.eps": [],
        "optimizer.weight_decay": [],
        "sampler.eta": ["1.01", "2"],
        "trainer.grad_clip": ["0", "0.0"],
        "trainer.label_dropout": ["1.5", "0.1"],  # without labels
    },
    "sample": {"ema_length": ["0.3", "1"], "guidance.scale": ["2"], "guidance.rescale": ["0.5", "1.5"]},
    "eval": {"ema_length": ["0.3", "1"], "guidance.scale": ["2"], "guidance.rescale": ["0.5", "1.5"]},
}
SWITCHES = {
    "train": [
        *("trainer.activation_checkpointing", "trainer.deterministic", "data.flip", "schedule.zero_terminal_snr"),
        *("model.learn_variance", "model.time_cos_first", "model.scale_shift_norm", "model.resblock_updown"),
        "model.null_label",
    ],
    "sample": ["save_trajectory", "compile"],
    "eval": ["per_class", "keep", "compile", "data.download"],
}
CHOICES = {
    "train": [
        *("trainer.precision", "trainer.lr_decay", "sampler.spacing", "trainer.keep_best", "objective"),
        "model.downsample_padding",
    ],
    "sample": ["weights", "precision", "save", "sampler.spacing"],
    "eval": ["weights", "precision", "checkpoints", "sampler.spacing", "reference.split"],
}
TEXTS = {
    "train": ["output_dir", "name", "trainer.device"],
    "sample": ["ckpt", "device", "out", "ckpt_sha256"],
    "eval": [
        *("ckpt", "samples", "device", "out", "ckpt_sha256", "data.path", "data.root", "data.cache_dir"),
        "reference.save",
    ],
}
LISTS = {
    "train": [
        "model.channel_mults",
        "model.attention_resolutions",
        "optimizer.betas",
        "ema.decays",
        "ema.posthoc",
    ],
    "sample": ["guidance.interval", "seeds"],
    "eval": ["metrics", "guidance.interval"],
}
NULLABLE = {
    "train": [
        *("name", "trainer.grad_clip", "trainer.label_dropout", "data.num_classes", "model.num_classes"),
        *("trainer.keep_best", "objective", "model.head_channels"),
    ],
    "sample": ["out", "ckpt_sha256", "sampler.steps", "ema_length", "guidance.interval", "seeds"],
    "eval": [
        *("samples", "checkpoints", "n", "out", "ckpt_sha256", "ema_length", "guidance.interval"),
        *("data.path", "data.root", "data.cache_dir", "reference.save"),
    ],
}

# Values that cannot be, for reasons of their own.
IMPOSSIBLE = {
    "train": {
        "model.channel_mults": ["[]", "[0]", "[1,-2]", "[1,2,2,2,2,2,2]", "[1.5,2]"],
        "model.attention_resolutions": ["[3]", "[-1]", "[8,5]", "[8.0]"],
        "model.image_size": ["32", "[16,8]", "[8,16]", "12", "[16]", "x"],
        "data.image_size": ["0", "15", "-16", "[16]", "[]", "[16,15]", "[16.0,16]", "[16,16,16]", "[0,0]"],
        "data.channels": ["-1", "0", "2", "4"],
        "ema.decays": ["[]", "[1]", "[1.0]", "[2]", "[-0.1]", "[0.9,0.9]", "[nan]", "0.9", "[a]"],
        "ema.posthoc": [
            "[0]",
            "[-0.1]",
            "[0.3]",
            "[0.1,0.1]",
            "[1e-9]",
            "[nan]",
            "0.1",
            "[a]",
            "[.1,.11,.12,.13,.14,.15,.16,.17,.18]",
        ],
        "schedule.zero_terminal_snr": ["true"],  # with prediction=eps
        "model.learn_variance": ["true"],  # with variance=fixed_small
        "model.head_channels": ["3", "1024"],  # which divide no level
        "model.time_freq_shift": ["2", "-1", "0.5", "x"],
        "model.null_label": ["false"],  # without labels
        "data.num_classes": ["-1", "0", "9", "11"],
        "model.num_classes": ["-1", "0", "10"],
        "optimizer.betas": ["[]", "[0.9]", "[1.0,0.999]", "[0.9,1]", "[-0.1,0.9]", "[nan,0.9]", "[0.9,0.9,0.9]"],
        "sampler.steps": ["1001", "2000", "1000000000000000000000"],
        "trainer.device": ["cuda:99", "cuda:-1", "tpu", "''", "meta", "'cuda:'", "cpu:x", "'a\nb'"],
        "trainer.eval_images": ["1"],
        "trainer.eval_every": ["3"],  # with nothing to measure
        "trainer.keep_best": ["heldout", "fd", "kd"],  # without eval_every
        "objective": ["heldout", "fd", "kd"],  # the same
        "data.holdout": ["1797", "5000", "1000000000000000000000"],  # of 1797
        "name": ["''", "a/b", "..", ".a", "-a", "a:b", "'a b'", "'a\nb'", "'ä'", "'~'", "'\udcff'"],
        "trust": ["[1]", "[null]", "[[a]]"],
    },
    "sample": {
        "sampler.steps": ["31", "1000", "1000000000000000000000"],  # the run has 30
        "device": ["cuda:99", "cuda:-1", "tpu", "''", "meta", "'cuda:'", "cpu:x", "'a\nb'"],
        "trust": ["[1]", "[null]"],
    },
    "eval": {
        "sampler.steps": ["31", "1000", "1000000000000000000000"],
        "device": ["cuda:99", "cuda:-1", "tpu", "''", "meta", "'cuda:'", "cpu:x", "'a\nb'"],
        "trust": ["[1]", "[null]"],
        "n": ["1", "100000000000", "1000000000000000000000"],  # more than any disk holds the features of
        "metrics": ["[]", "[fdd]", "[fd,fd]", "[heldout]", "[fd,heldout]", "[inception_score]", "[null]", "[[fd]]"],
        "per_class": ["true"],  # of a run without labels
        "likelihood_images": ["5"],  # without bpd and heldout
        "data.path": ["x"],  # of digits
        "data.root": ["x"],
        "data.cache_dir": ["x"],
        "data.download": ["true"],
        "reference.split": ["test", "holdout"],  # the same
        "reference.save": ["x", "x.txt", "nowhere/x.npz", "..", "''"],
    },
}


def _defaults(program: str) -> dict[str, str | None]:
    """The groups of a command, with what is chosen by default."""
    listed = yaml.safe_load((_CONFIGS / f"{program}.yaml").read_text(encoding="utf-8"))["defaults"]
    entries = [entry for entry in listed if isinstance(entry, dict)]
    return {key: value for entry in entries for key, value in entry.items() if not key.startswith("override ")}


def _parts(node: object) -> Iterator[str]:
    """Every part of every key of a YAML file but those that Hydra and our builder read."""
    if isinstance(node, dict):
        for key, value in node.items():
            if not key.startswith("_") and key != "defaults":
                yield key
                yield from _parts(value)


PROGRAMS = ("train", "sample", "eval")
GROUPS = {
    program: {group: sorted(file.stem for file in (_CONFIGS / group).glob("*.yaml")) for group in _defaults(program)}
    for program in PROGRAMS
}
OPTIONAL_GROUPS = {
    program: [group for group, chosen in _defaults(program).items() if chosen is None] for program in PROGRAMS
}
REQUIRED = {  # and not null by default
    "train": [
        "trainer.steps",
        "trainer.batch_size",
        "seed",
        "resume",
        "trust",
        "output_dir",
        "model",
        "schedule",
        "loss",
        "timestep_sampler",
    ],
    "sample": [
        "n",
        "batch_size",
        "seed",
        "weights",
        "device",
        "save",
        "trust",
        "sampler",
        "guidance",
        "threshold",
        "mode",
    ],
    "eval": [
        *("metrics", "per_class", "batch_size", "seed", "weights", "device", "precision", "compile", "keep"),
        *("likelihood_images", "trust", "data", "sampler", "guidance", "threshold", "reference"),
    ],
}
# Parts of keys of options that are not chosen: no misspellings, though wrong where they are not chosen.
ELSEWHERE = {part for file in _CONFIGS.rglob("*.yaml") for part in _parts(yaml.safe_load(file.read_text("utf-8")))}

FINE = {
    "train": [
        *("trainer.steps=3", "trainer.batch_size=16", "trainer.log_every=5", "trainer.preview_every=0"),
        *("trainer.device=cpu", "trainer.precision=fp32", "trainer.lr_decay=linear", "++trainer.keep_last=1"),
        *("seed=7", "output_dir=elsewhere", "name=fine", "resume=null", "trust=[]", "model.base_channels=16"),
        *("optimizer=adam", "optimizer.lr=3e-4", "ema=none", "prediction=eps", "weighting=uniform"),
        *("variance=fixed_large", "sampler=ddim", "schedule=cosine", "data=digits", "experiment=quickstart"),
        *("sampler.steps=20", "data.flip=horizontal", "model.dropout=0.1", "trainer.grad_clip=null"),
        *("loss=simple", "timestep_sampler=stratified", "sampler.spacing=trailing", "trainer.label_dropout=null"),
    ],
    "sample": [
        *("n=3", "batch_size=2", "seed=7", "device=cpu", "precision=fp32", "out=elsewhere", "save=images"),
        *("save_trajectory=true", "trust=[]", "sampler.steps=3", "ckpt_sha256=null", "weights=model"),
        *("mode=generate", "threshold=dynamic", "guidance.scale=1.0", "sampler.spacing=trailing", "compile=auto"),
    ],
    "eval": [
        *("n=6", "batch_size=4", "seed=7", "device=cpu", "precision=fp32", "out=elsewhere", "keep=true"),
        *("trust=[]", "sampler.steps=3", "ckpt_sha256=null", "weights=model", "metrics=[fd,kd]", "samples=null"),
        *("features=pixels", "reference=data", "reference.split=train", "threshold=dynamic", "guidance.scale=1.0"),
        *("sampler.spacing=trailing", "compile=auto", "per_class=false", "data.path=null", "checkpoints=null"),
    ],
    "resume": [
        *("trainer.checkpoint_every=7", "trainer.log_every=5", "trainer.preview_every=0", "trainer.device=cpu"),
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
    return {part for key in everywhere for part in key.split(".")} | ELSEWHERE
