"""A checkpoint of every format is kept here: every later version must compute with them what theirs computed.

What is expected was computed by the last version that wrote the format, for format 1 by the last that wrote format 2,
for format 3 by the first that wrote it. All were saved at step 3 of 4, and between two entries of the log.
Images are expected as they became with Philox's noise; with that of before they were those versions' to the bit. So
were the weights after the last step until group norm was computed in another layout on a CPU, which rounds otherwise.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import sample, train
from digests import hashing, recorded

from ddpm_cli.checkpoint.pretrained import load

ENVIRONMENT = {"torch": "2.14.1+cu130", "numpy": "2.4.6", "pillow": "13.0.0", "cpu": "AVX2"}  # that made the digests


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A checkpoint, and what is expected of it.

    Args:
        size: bytes that it may take at most.
        t, label: asked of its network, with a ramp from -1 to 1 as the image.
        answers: some numbers of the answer, by the options of `load`.
        classes: arguments that draw four images of it.
        pixels: four of the first image.
        loss: of the last two steps, of which one is still to be done.
        digests: of everything after the last step, and of the images.
    """

    format: int
    size: int
    t: int
    label: int | None
    answers: dict[str, list[float]]
    classes: tuple[str, ...]
    pixels: list[int]
    loss: float
    digests: dict[str, str] = field(repr=False)

    @property
    def directory(self) -> Path:
        return Path(__file__).parent / "kept" / f"format_{self.format}"


KEPT = [
    Kept(
        format=1,
        size=50_000,
        t=5,
        label=None,
        answers={"": [-0.0064537986, -0.0024505276, 0.0020317566, 0.0041775648]},
        classes=("n=4",),
        pixels=[22, 187, 90, 208],
        loss=0.98923141,
        digests={
            "ema": "14be1dbf70dbeeee5400b430816f68e33b8ad80e0a3a216eb7c8fe091395ca3a",
            "images": "be0e577bbcf7c0cf50cc6c15db35c37fb3a51a8a3b7e738065db8f9ddc16740a",
            "metrics": "bb8781119f636a24b5dad96e9a13b10c3ac3d734424727f96364572572314182",
            "picture": "677031205757de753cd7167252b59e23fce082bfa838dff686e03c4a9337b0e9",
            "training/counter": "254b8ee2cbf3f9760ae95e0021b32e02f6a3ad6fc5752f37181358d407955008",
            "training/model": "aae49f2d9c969a4afb4931a6801499a8176711214412b8f32a9cdeec4b7ce758",
            "training/optimizer": "7321fc23ebbed8ffbf75899934df13b14957916cb59c2c794ab678662242dc71",
            "training/unlogged": "3a50ab87792db8773fe4dce49857bfeea8b52bbb38112aa6fd65da7fc7acc7b7",
        },
    ),
    Kept(
        format=2,
        size=80_000,  # most of it are the names of 366 tensors
        t=2,
        label=7,
        answers={
            "": [-0.0119501501, -0.0134324357, 0.0673895031, 0.0392806754],
            "weights=model": [-0.0150823910, -0.0131061766, 0.0734204724, 0.0412226282],
            "ema_length=0.1": [-0.0146132335, -0.0130918593, 0.0726133958, 0.0409242809],
        },
        classes=("n=2", "classes=[3,5]"),
        pixels=[123, 179, 136, 225],
        loss=2.69407201,
        digests={
            "averages": "f2a948d27621c660a2a924e40f8b69d563b2a939dae29f402ca5bca52063032a",
            "ema": "326243b1c171cc74dbbc18e6952451c02fa340c9dd9a999c722180fe27743abf",
            "images": "fe2db015ce4a46089af00ab7859b70d2382013597f0b801199e5f6ca1b0d3210",
            "metrics": "3c8d800beeb749a8574d174a446de547ff4b8b75d9a39e03cc1e8618c450ae5d",
            "picture": "ccb9a01d8ea15447630a8ff2a4690d11ed76c5e5ff26230ed827c57f3a5170da",
            "training/counter": "254b8ee2cbf3f9760ae95e0021b32e02f6a3ad6fc5752f37181358d407955008",
            "training/model": "da3a242edf75acd6f854a4dabafa6ba36c6c6fab947be02b2fc49f207d2a0168",
            "training/optimizer": "426efdf09d770f13e6e9fc2d27c578562b8ffee1f26bda99b57df586ce0db947",
            "training/posthoc": "2fe9ff9dda550adbd00d361e0327461a5c21e3858bec1c32ae3e7022503eb143",
            "training/timesteps": "1f730af64c96928a7aad3afbb261cafd20466c0c2b2f040e258adf7251cd2c1c",
            "training/unlogged": "a612d5d80f68147ecdb415464c05e3523f5d61674cf0901c7208c39c603b309a",
        },
    ),
    Kept(
        format=3,
        size=50_000,
        t=4,
        label=None,
        answers={
            "": [-0.0555975549, 0.0864981264, 0.0171933416, 0.0531483181],
            "weights=model": [-0.0618315153, 0.1026509255, 0.0200856775, 0.0568397455],
        },
        classes=("n=4",),
        pixels=[109, 179, 126, 106],
        loss=0.38843435,
        digests={
            "ema": "2f34e3df34fe8525265d8525e79743696ebed0aac5a8e9aaf68cb62e23a7e770",
            "images": "035fb07185ce4f881b068b68b9503c355040da55b243fb0360aadb31ee3729af",
            "metrics": "08cd2f819491fd436a1e1ecdb21a2dd250fce61123e5e879e2a4ff5d91a9ae3f",
            "picture": "d58d81d980999255b192b74e6b419d87885fe487013b65f9bac0075926fd554b",
            "training/counter": "254b8ee2cbf3f9760ae95e0021b32e02f6a3ad6fc5752f37181358d407955008",
            "training/model": "5094706db2793abbd0d9a869b1dee5cf5a40c4f823d87726a057a0623925e47d",
            "training/optimizer": "c4ddc511c923a49db748e5a079de8940ccf765309cf20c4fa88a125d05c6a760",
            "training/unlogged": "3b1bfad5a62cc8dafe91b1a0d9d875084ff60f8ae1ccdaa27502c60429e9bb6d",
        },
    ),
]
BY_FORMAT = pytest.mark.parametrize("kept", KEPT, ids=lambda kept: f"format {kept.format}")


@BY_FORMAT
def test_it_is_small(kept: Kept):
    assert sum(file.stat().st_size for file in kept.directory.rglob("*") if file.is_file()) < kept.size


@BY_FORMAT
def test_it_computes_what_it_computed(kept: Kept):
    """The answer for one image, as the version that wrote the checkpoint gave it."""
    x = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    label = () if kept.label is None else (torch.tensor([kept.label]),)
    for option, expected in kept.answers.items():
        key, _, value = option.partition("=")
        options = {} if not key else {key: float(value) if key == "ema_length" else value}
        found = load(kept.directory, **options)
        assert found.step == 3
        assert found.image_shape == (1, 8, 8)
        with torch.no_grad():
            out = found.ddpm.model(x, torch.tensor([kept.t]), *label).flatten()
        places = [0, 9, 33, 63] if len(out) == 64 else [0, 33, 64, 127]
        assert out[places].tolist() == pytest.approx(expected, abs=1e-6), option


@BY_FORMAT
def test_it_is_sampled_from_and_gone_on_with(kept: Kept, tmp_path: Path):
    run = shutil.copytree(kept.directory, tmp_path / "run")
    drawn = sample(f"ckpt={run}", *kept.classes, "device=cpu", "save=npz", "out=drawn", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    resumed = train(f"resume={run}", "trainer.device=cpu", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed  at step 3" in resumed.stdout
    assert "step 4/4" in resumed.stdout

    with np.load(tmp_path / "drawn" / "samples.npz") as archive:
        images = archive["arr_0"]
    assert images.shape == (4, 8, 8, 1)
    assert images[0].flatten()[[2, 10, 27, 42]].tolist() == pytest.approx(kept.pixels, abs=1)
    logged = json.loads((run / "metrics.jsonl").read_text())
    assert logged["loss/mean"] == pytest.approx(kept.loss, rel=1e-4)
    if recorded.environment() == ENVIRONMENT:  # others may round otherwise
        assert hashing.of_run(run) | hashing.of_samples(tmp_path / "drawn") == kept.digests
