"""The accuracy of a checkpoint, written a second time without any code of googlenet_train.

PIL decodes, torchvision's transforms resize and crop, torchvision's GoogLeNet carries the weights
(its "5x5" branch and last pool put right), plain loops count. `tests/test_accuracy.py` holds it
against `googlenet-train evaluate`; by hand:

    python tests/independent_evaluation.py runs/quickstart/checkpoints/step-00001234.safetensors \\
        googlenet_train/assets/clothing/val.tar
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from torch import nn
from torchvision import transforms


def network(weights: dict[str, torch.Tensor], num_classes: int) -> nn.Module:
    """torchvision's network with the paper's kernel and pool, carrying `weights`."""
    model = torchvision.models.googlenet(num_classes=num_classes, init_weights=False)
    for name, module in model.named_children():
        if name.startswith("inception"):
            conv = module.branch3[1].conv
            module.branch3[1].conv = nn.Conv2d(
                conv.in_channels, conv.out_channels, 5, padding=2, bias=False
            )
    model.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    model.load_state_dict(weights)
    return model.eval()


def photos(tar: Path) -> list[tuple[str, Image.Image]]:
    with tarfile.open(tar) as archive:
        found = []
        for member in archive.getmembers():
            file = archive.extractfile(member)
            assert file is not None
            image = Image.open(io.BytesIO(file.read())).convert("RGB")
            found.append((member.name.split("/")[0], image))
        return found


@torch.no_grad()
def top1(checkpoint: Path, tar: Path, kind: str = "ema") -> float:
    """Top-1 in percent of the `ema` (longest decay) or `model` weights of a checkpoint."""
    with safe_open(checkpoint, "pt") as file:
        info = json.loads(file.metadata()["info"])
        prefix = "model/"
        if kind == "ema":
            prefix = f"ema/{max(info['config']['ema']['decays'])}/"
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        weights = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    data = info["config"]["data"]
    size = info["config"]["evaluate"].get("image_size") or data["image_size"]
    transform = transforms.Compose(
        [
            transforms.Resize(round(size * 256 / 224)),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize(data["mean"], data["std"]),
        ]
    )
    model = network(weights, len(info["classes"]))
    right = 0
    found = photos(tar)
    for name, image in found:
        predicted = model(transform(image)[None]).argmax().item()
        right += info["classes"][predicted] == name
    return 100 * right / len(found)


if __name__ == "__main__":
    for kind in ("ema", "model"):
        print(f"{kind:5} top-1 {top1(Path(sys.argv[1]), Path(sys.argv[2]), kind):.2f} %")
