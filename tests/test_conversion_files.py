"""Files of tensors: whose they are, that no code in them runs, and what is said of those that cannot be read."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from other_networks import HoNetwork, of_diffusers, ours, with_other_weights
from safetensors.torch import save_file
from torch import Tensor

from ddpm_cli.conversion.imported import ConversionError, Given
from ddpm_cli.conversion.read import read_source

CIFAR10 = {"channels": 3, "base": 32, "mults": (1, 2, 2, 2), "blocks": 2, "attended": (1,)}
LSUN = {"channels": 3, "base": 32, "mults": (1, 1, 2, 2, 4, 4), "blocks": 1, "attended": (4,)}


def of_ho(**sizes) -> HoNetwork:
    torch.manual_seed(0)
    return with_other_weights(HoNetwork(**sizes)).eval()


# Ho et al.'s networks -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("sizes", "image_size", "variance"),
    [
        (CIFAR10, 32, "FixedLarge"),
        (LSUN, 256, "FixedSmall"),
        (CIFAR10 | {"channels": 1, "blocks": 1}, 32, "FixedLarge"),
    ],
    ids=["cifar10", "lsun", "grey"],
)
def test_a_network_of_ho_et_al_is_the_same_function_here(sizes: dict, image_size: int, variance: str, tmp_path: Path):
    theirs = of_ho(**sizes)
    torch.save(theirs.state_dict(), tmp_path / "model-790000.ckpt")
    found = read_source(tmp_path / "model-790000.ckpt")
    assert (found.step, found.unet["image_size"]) == (790_000, image_size)
    assert found.unet["attention_resolutions"] == [16]
    assert found.groups["variance"]["_target_"].endswith(variance)
    assert (found.groups["schedule"]["beta_start"], found.groups["schedule"]["beta_end"]) == (1e-4, 0.02)
    assert any(f"image_size {image_size}: their self-attention always stands at 16" in line for line in found.remarks)
    network, side = ours(found.unet, found.tensors), 2 ** len(sizes["mults"])
    x = torch.randn(2, sizes["channels"], side, side)
    for t in (0, 1, 500, 999):
        times = torch.tensor([t, 999 - t])
        expected = theirs(x, times)
        assert expected.std() > 0.01
        torch.testing.assert_close(network(x, times), expected, rtol=1e-5, atol=1e-5)


def test_as_safetensors_too_and_of_another_size(tmp_path: Path):
    tensors = {name: tensor.contiguous() for name, tensor in of_ho(**CIFAR10).state_dict().items()}
    save_file(tensors, tmp_path / "ema.safetensors")
    found = read_source(tmp_path / "ema.safetensors", Given(image_size=[64, 32]))
    assert (found.unet["image_size"], found.unet["attention_resolutions"]) == ([64, 32], [16])
    assert found.step == 0
    assert len(found.remarks) == 1
    with pytest.raises(ConversionError, match="preset= has no effect"):
        read_source(tmp_path / "ema.safetensors", Given(preset=object()))


def test_every_tensor_of_theirs_has_its_place_or_is_refused(tmp_path: Path):
    tensors = of_ho(**CIFAR10).state_dict()
    torch.save(tensors | {"down.9.block.0.conv1.weight": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(ConversionError, match=r"no down\.4\.block\.0\.conv1\.weight of a convolution"):
        read_source(tmp_path / "a.pt")
    torch.save(tensors | {"head.weight": torch.zeros(1, 2)}, tmp_path / "b.pt")
    with pytest.raises(ConversionError, match=r"does not have head.weight \[1, 2\]"):
        read_source(tmp_path / "b.pt")
    torch.save(tensors | {"conv_in.weight": torch.zeros(0, 3, 3, 3)}, tmp_path / "c.pt")
    with pytest.raises(ConversionError, match="no multiples of the first layer's 0"):
        read_source(tmp_path / "c.pt")


# Whose it is ----------------------------------------------------------------------------------------------------------


def _of_lucidrains(place: Path) -> Path:
    from denoising_diffusion_pytorch import Unet

    state = {f"model.{name}": tensor for name, tensor in Unet(8, dim_mults=(1, 2)).state_dict().items()}
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    content = {"step": 3, "model": state, "opt": optimizer.state_dict(), "ema": state, "scaler": None, "version": "2"}
    torch.save(content, place / "model-3.pt")
    return place / "model-3.pt"


def _its_network_alone(place: Path) -> Path:
    from denoising_diffusion_pytorch import Unet

    torch.save(Unet(8, dim_mults=(1, 2)).state_dict(), place / "unet.pt")
    return place / "unet.pt"


def _weights_of_diffusers(place: Path) -> Path:
    of_diffusers().save_pretrained(place)
    return place / "diffusion_pytorch_model.safetensors"


def _of_nobody(place: Path) -> Path:
    torch.save({"a": torch.zeros(1), "b": torch.zeros(2)}, place / "x.pt")
    return place / "x.pt"


def _of_lightning(place: Path) -> Path:
    torch.save({"epoch": 1, "state_dict": {"a": torch.zeros(1)}}, place / "last.ckpt")
    return place / "last.ckpt"


def _json(place: Path) -> Path:
    _weights_of_diffusers(place)
    return place / "config.json"


def _empty_directory(place: Path) -> Path:
    return place


def _config_alone(place: Path) -> Path:
    _weights_of_diffusers(place).unlink()
    return place


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_of_lucidrains, "is from denoising-diffusion-pytorch, whose network has another architecture"),
        (_its_network_alone, "is from denoising-diffusion-pytorch, whose network has another architecture"),
        (_weights_of_diffusers, "diffusers' weights do not describe their network; give the directory"),
        (_of_nobody, r"x.pt holds no known network \(its tensors are a, b...\); expected a directory of diffusers"),
        (_of_lightning, "last.ckpt is not a state dict, .*: it is a dict of epoch, state_dict"),
        (_json, r"config.json is neither a file of tensors \(.*; give the directory "),
        (_empty_directory, "holds no known model; expected a directory of diffusers"),
        (_config_alone, "has no diffusion_pytorch_model.safetensors or .bin; there are config.json"),
        (lambda place: place / "none", "none does not exist"),
    ],
)
def test_what_is_no_model_of_ours_is_named_as_what_it_is(make: Callable[[Path], Path], says: str, tmp_path: Path):
    with pytest.raises(ConversionError, match=says):
        read_source(make(tmp_path))


# Hostile files --------------------------------------------------------------------------------------------------------


class Code:
    """Pickled, it is a call that leaves a file behind."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3000])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    with zipfile.ZipFile(file) as archive:
        place = archive.getinfo(next(name for name in archive.namelist() if "/data/" in name)).header_offset + 200
    content[place] ^= 1
    file.write_bytes(content)


def _bomb(file: Path) -> None:
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/99", bytes(2**26))


def _giant(file: Path) -> None:
    """A tensor of one number that says it is millions."""
    torch.save({"temb.dense.0.weight": torch.zeros(1).expand(2**20, 2**10)}, file)


def _code(file: Path) -> None:
    torch.save({"model": Code(file.with_name("pwned"))}, file)


def _bare_code(file: Path) -> None:
    file.write_bytes(pickle.dumps(Code(file.with_name("pwned"))))


def _legacy_code(file: Path) -> None:
    torch.save({"model": Code(file.with_name("pwned"))}, file, _use_new_zipfile_serialization=False)


def _pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _device(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_cut, "is damaged"),
        (_empty, "is damaged, or was not written by torch.save"),
        (_bit, "is damaged: the checksum of .* is wrong"),
        (_bomb, "is damaged: its parts are longer than the file"),
        (_giant, "is damaged: 4,294,967,296 bytes of tensors in a file of"),
        (_code, "asks for posix.mkdir: loading it could run any code"),
        (_bare_code, "asks for|is damaged, or was not written by torch.save"),
        (_legacy_code, "asks for posix.mkdir: loading it could run any code"),
        (_pipe, "is not a plain file"),
        (_device, "is not a plain file"),
    ],
)
def test_a_hostile_file_of_torch_save_is_one_message(spoil: Callable[[Path], None], says: str, tmp_path: Path):
    file = tmp_path / "model.pt"
    torch.save(of_ho(**CIFAR10 | {"blocks": 1}).state_dict(), file)
    spoil(file)
    with pytest.raises(ConversionError, match=says) as refused:
        read_source(file)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000
    assert not (tmp_path / "pwned").exists()


def _header(file: Path) -> None:
    file.write_bytes((2**40).to_bytes(8, "little") + bytes(100))


def _long_header(file: Path) -> None:
    text = json.dumps(
        {f"{number:0100}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(10**4)}
    )
    file.write_bytes(len(text).to_bytes(8, "little") + text.encode())


@pytest.mark.parametrize("spoil", [_cut, _empty, _header, _long_header, _pipe, _device])
def test_a_hostile_safetensors_file_is_one_message(spoil: Callable[[Path], None], tmp_path: Path):
    file = tmp_path / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in of_ho(**CIFAR10).state_dict().items()}, file)
    spoil(file)
    with pytest.raises(ConversionError, match=r"is damaged|is not a plain file"):
        read_source(file)


def _huge(file: Path) -> None:
    file.write_text("{" + " " * 2**23 + "}")


def _nested(file: Path) -> None:
    file.write_text("[" * 100_000)


def _numbers(file: Path) -> None:
    file.write_text('{"in_channels": ' + "9" * 5000 + "}")


def _list(file: Path) -> None:
    file.write_text("[]")


def _bytes(file: Path) -> None:
    file.write_bytes(b"\xff\xfe{}")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_huge, "is larger than"),
        (_nested, "not JSON"),
        (_numbers, "not JSON"),
        (_list, "expected a JSON object"),
        (_bytes, "not JSON"),
        (_device, "is not a plain file|holds no known model"),
        (_pipe, "is not a plain file|holds no known model"),
    ],
)
def test_a_hostile_config_is_one_message(spoil: Callable[[Path], None], says: str, tmp_path: Path):
    of_diffusers().save_pretrained(tmp_path)
    spoil(tmp_path / "config.json")
    with pytest.raises(ConversionError, match=says):
        read_source(tmp_path)


@pytest.mark.parametrize(
    "weight_map", [{"a": "../../x.safetensors"}, {"a": "/etc/passwd"}, {"a": ".."}, {"a": 3}, {}, 7]
)
def test_an_index_leads_nowhere_else(weight_map: object, tmp_path: Path):
    of_diffusers().save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConversionError, match="weight_map does not name a file beside it for each tensor"):
        read_source(tmp_path)


def test_memory_is_taken_for_no_more_than_the_network_has(tmp_path: Path):
    """A tensor of another shape is refused before it is copied, however large it says it is."""
    buffer = io.BytesIO()
    tensors: dict[str, Tensor] = of_ho(**CIFAR10 | {"blocks": 1}).state_dict()
    base = torch.zeros(1)
    for name in list(tensors):
        tensors[name] = base.expand(tensors[name].shape) if name.endswith("bias") else tensors[name]
    torch.save(tensors | {"conv_out.bias": base.expand(1000)}, buffer)
    (tmp_path / "model.pt").write_bytes(buffer.getvalue())
    with pytest.raises(ConversionError, match=r"conv_out.bias is \[1000\]"):
        read_source(tmp_path / "model.pt")
