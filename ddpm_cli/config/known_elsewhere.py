"""The names that other trainers use for options, and what the options are called here.

PyTorch Lightning and its Hydra template, Hugging Face's Trainer and diffusers' examples, improved-diffusion, EDM and
denoising-diffusion-pytorch. A name is listed only if it is not the name of one of our options.
"""

from collections.abc import Mapping

TRAIN = "ddpm_cli.config.train_options.TrainOptions"
SAMPLE = "ddpm_cli.config.sample_options.SampleOptions"
EVAL = "ddpm_cli.config.eval_options.EvalOptions"

_GO_ON = (
    "resume=RUN_DIR to resume a run; fork=RUN_DIR to start a new run from its whole state, with other settings; "
    "init=PATH to start one from trained weights alone"
)
_STEPS = "trainer.steps"
_NO_EPOCHS = "trainer.steps, in steps, not epochs; the log says how many epochs these are"
_LR = "optimizer.lr"
_BATCH = "trainer.batch_size, of all processes together"
_SAVE = "trainer.checkpoint_every, in steps"
_IMAGES = "trainer.preview_every, in steps"
_SIZE = "data.image_size, if the data set has a choice of sizes"
_DEVICES = "torchrun --nproc_per_node=N -m ddpm_cli.train for several processes; trainer.device chooses the device"
_PRECISION = "trainer.precision=bf16, fp16 or fp32"
_EMA = "ema.decays, a list; samples use the first"
_ACCUMULATE = "trainer.accumulate, the number of parts of a batch; trainer.batch_size counts the whole batch"
_TIMESTEPS = "schedule.timesteps"
_CLIP = "trainer.grad_clip"
_WARM_UP = "trainer.warmup_steps"
_WORKERS = "data.workers, for data=folder: images are decoded once, and a thread reads batches ahead"
_CHECKPOINT = "ckpt, a run directory or a checkpoint"
_DRAWN = "sampler.steps"
_SCALE = "guidance.scale"

_IN_TRAINING = {
    _GO_ON: (
        "ckpt",
        "ckpt_path",
        "resume_from_checkpoint",
        "resume_from",
        "resume_checkpoint",
        "resume_path",
        "checkpoint",
    ),
    "init=PATH": ("pretrained_model_name_or_path", "pretrained", "finetune", "finetune_from", "init_from", "load_from"),
    _STEPS: ("max_steps", "steps", "train_steps", "num_steps", "train_num_steps", "max_train_steps", "iterations"),
    _NO_EPOCHS: ("max_epochs", "epochs", "num_epochs", "num_train_epochs", "n_epochs", "min_epochs"),
    _LR: ("lr", "learning_rate"),
    _BATCH: ("batch_size", "train_batch_size", "per_device_train_batch_size", "microbatch"),
    _SAVE: ("save_every", "save_steps", "save_interval", "checkpointing_steps", "save_model_epochs"),
    _IMAGES: ("save_images_every", "save_images_epochs", "save_and_sample_every", "sample_every"),
    _SIZE: ("image_size", "resolution", "img_size"),
    _DEVICES: ("devices", "gpus", "num_gpus", "num_nodes", "strategy"),
    "trainer.device": ("device", "accelerator"),
    _PRECISION: ("precision", "mixed_precision", "amp", "fp16", "bf16", "use_fp16", "use_amp"),
    _EMA: ("ema_decay", "ema_rate", "ema_max_decay", "use_ema"),
    _ACCUMULATE: ("gradient_accumulation_steps", "gradient_accumulate_every", "accumulate_grad_batches"),
    _TIMESTEPS: ("timesteps", "num_timesteps", "diffusion_steps", "num_train_timesteps", "ddpm_num_steps", "T"),
    "schedule": ("noise_schedule", "beta_schedule", "ddpm_beta_schedule"),
    "prediction=eps, x0 or v": ("objective_type", "prediction_type", "parameterization", "predict_xstart"),
    "variance=learned_range loss=hybrid": ("learn_sigma",),
    _CLIP: ("max_grad_norm", "gradient_clip_val", "grad_clip", "clip_grad_norm"),
    _WARM_UP: ("warmup_steps", "lr_warmup_steps"),
    "trainer.lr_decay": ("lr_scheduler", "lr_scheduler_type"),
    _WORKERS: ("num_workers", "dataloader_num_workers", "workers"),
    "data=folder data.path=DIR": ("train_data_dir", "data_dir", "data_path", "dataset", "dataset_name", "folder"),
    "data.num_classes=N": ("num_classes", "class_cond", "class_conditional"),
    "trainer.log_every": ("log_every", "log_interval", "logging_steps", "log_every_n_steps"),
    "trainer.eval_every": ("eval_every", "eval_steps", "eval_interval", "val_check_interval"),
    "output_dir": ("out", "outdir", "out_dir", "logging_dir", "results_folder", "save_dir", "default_root_dir"),
    "name": ("run_name", "task_name", "experiment_name"),
    "trainer.label_dropout": ("label_dropout", "cond_drop_prob", "p_uncond"),
    "ddpm-eval ckpt=RUN_DIR, or trainer.eval_every while training": ("test", "fid"),
}
_IN_DRAWING = {
    _CHECKPOINT: (
        *("ckpt_path", "checkpoint", "checkpoint_path", "model_path", "resume_from_checkpoint", "resume", "network"),
        *("pretrained_model_name_or_path", "init", "init.path"),
    ),
    "n": ("num_samples", "n_samples", "num_images", "num_images_per_prompt", "samples_per_class"),
    _DRAWN: ("steps", "num_steps", "num_inference_steps", "timestep_respacing", "ddpm_num_inference_steps"),
    "sampler=ddim": ("use_ddim",),
    "sampler": ("scheduler", "solver"),
    "sampler.eta, for sampler=ddim": ("eta", "ddim_eta", "ddim_sampling_eta"),
    _SCALE: ("guidance_scale", "cfg_scale", "w", "scale"),
    "out": ("output_dir", "outdir", "out_dir", "save_dir"),
    "weights=ema or model": ("use_ema", "ema"),
}
_IN_SAMPLING = {"classes": ("class_labels", "labels", "class_idx")}
_IN_EVALUATION = {"metrics": ("metric", "fid"), "reference": ("ref", "ref_path", "dataset")}
# Inside the groups, of any command.
_IN_GROUPS = {
    _STEPS: ("trainer.max_steps", "training.steps", "training.max_steps"),
    _NO_EPOCHS: ("trainer.max_epochs", "trainer.min_epochs", "trainer.epochs", "training.num_epochs"),
    _DEVICES: ("trainer.devices", "trainer.gpus", "trainer.num_nodes", "trainer.strategy"),
    "trainer.device": ("trainer.accelerator",),
    _LR: ("trainer.lr", "trainer.learning_rate", "optimizer.learning_rate", "model.lr", "model.optimizer.lr"),
    _BATCH: ("data.batch_size", "optimizer.batch_size"),
    _WORKERS: ("data.num_workers", "trainer.num_workers", "trainer.workers"),
    _ACCUMULATE: ("trainer.accumulate_grad_batches", "trainer.gradient_accumulation_steps"),
    _CLIP: ("trainer.gradient_clip_val", "trainer.max_grad_norm", "optimizer.grad_clip"),
    "trainer.eval_every, in steps": ("trainer.check_val_every_n_epoch", "trainer.val_check_interval"),
    "trainer.log_every": ("trainer.log_every_n_steps",),
    _SAVE: ("trainer.save_every", "trainer.save_steps"),
    _EMA: ("ema.decay", "trainer.ema_decay", "ema.rate"),
    _TIMESTEPS: ("diffusion.timesteps", "diffusion.num_timesteps", "diffusion.steps", "schedule.num_timesteps"),
    _SIZE: ("data.resolution", "data.img_size"),
    "output_dir": ("trainer.default_root_dir", "paths.output_dir", "paths.log_dir"),
    "model.base_channels": ("model.dim", "model.num_channels", "model.ch", "model.model_channels"),
    "model.channel_mults": ("model.dim_mults", "model.channel_mult", "model.ch_mult"),
    "debug=limit": ("trainer.fast_dev_run", "trainer.limit_train_batches"),
    "trainer.profile_steps, or debug=profiler": ("trainer.profiler",),
}


def _by_name(*tables: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: ours for table in tables for ours, names in table.items() for name in names}


_OF_COMMANDS = {
    TRAIN: _by_name(_IN_TRAINING, _IN_GROUPS),
    SAMPLE: _by_name(_IN_DRAWING, _IN_SAMPLING),
    EVAL: _by_name(_IN_DRAWING, _IN_EVALUATION),
}
_ANYWHERE = _by_name(_IN_GROUPS)


def called_here(key: str, target: str) -> str | None:
    """Our name for an option that another trainer calls `key`, in the command whose options are those of `target`.

    Args:
        target: for a class that is not a command's, such as a group's, only the names inside groups are known.
    """
    return _OF_COMMANDS.get(target, _ANYWHERE).get(key)


def names_of(target: str) -> frozenset[str]:
    """The foreign names that are known for the command whose options are those of `target`."""
    return frozenset(_OF_COMMANDS[target])
