"""What diffusers' unconditional training script does with its defaults, and its DDIM pipeline."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from bench import network
from bench.cases import STEPS, Place
from bench.clock import Turn


class Pictures(Dataset):
    """Files, decoded and augmented whenever one is asked for."""

    def __init__(self, place: Place):
        size, channels = place.config["data"]["image_size"], place.config["data"]["channels"]
        self.files = sorted(Path(place.pictures).iterdir())
        self.mode = "L" if channels == 1 else "RGB"
        flip = [transforms.RandomHorizontalFlip()] if place.config["data"]["flip"] == "horizontal" else []
        self.augment = transforms.Compose(
            [
                transforms.Resize(size, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.CenterCrop(size),
                *flip,
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            pixels: Any = image.convert(self.mode)
            return self.augment(pixels)


class Training:
    """The inner loop: accelerate, AdamW, a cosine learning rate, clipping, EMA, the loss read in every step."""

    def __init__(self, place: Place, mixed_precision: str, loaders: int):
        from accelerate import Accelerator
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel

        self.accelerator = Accelerator(mixed_precision=mixed_precision, cpu=place.device == "cpu")
        model = network.of_diffusers(place)
        self.ema = EMAModel(
            model.parameters(),
            decay=0.9999,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
            model_cls=type(model),
            model_config=model.config,
        )
        self.noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        loader = DataLoader(
            Pictures(place), batch_size=place.batch_size, shuffle=True, num_workers=loaders, drop_last=True
        )
        rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=STEPS)
        self.model, self.optimizer, self.loader, self.rate = self.accelerator.prepare(model, optimizer, loader, rate)
        self.ema.to(self.accelerator.device)
        self.model.train()
        self.batches = self._epochs()

    def _epochs(self) -> Iterator[Tensor]:
        while True:
            yield from self.loader

    def __call__(self, repetitions: int) -> None:
        for _ in range(repetitions):
            self._step(next(self.batches))

    def _step(self, clean: Tensor) -> None:
        noise = torch.randn(clean.shape, device=clean.device)
        t = torch.randint(self.noise_scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
        noisy = self.noise_scheduler.add_noise(clean, noise, t)
        with self.accelerator.accumulate(self.model):
            predicted = self.model(noisy, t).sample
            loss = F.mse_loss(predicted.float(), noise.float())
            self.accelerator.backward(loss)
            if self.accelerator.sync_gradients:
                self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.rate.step()
            self.optimizer.zero_grad()
        if self.accelerator.sync_gradients:
            self.ema.step(self.model.parameters())
        loss.detach().item()  # it shows the loss of every step


def sampling(place: Place, images: int, calls: int) -> Turn:
    """Its DDIM pipeline, at the precision that is compared."""
    from diffusers import DDIMPipeline, DDIMScheduler

    torch.manual_seed(0)
    pipeline = DDIMPipeline(network.of_diffusers(place), DDIMScheduler(num_train_timesteps=1000)).to(place.device)
    pipeline.set_progress_bar_config(disable=True)

    def turn(repetitions: int) -> None:
        with network.autocast(place):
            for _ in range(repetitions):
                pipeline(batch_size=images, num_inference_steps=calls, output_type="np")

    return turn
