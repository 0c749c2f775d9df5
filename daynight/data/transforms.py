"""Sizes, crops, the augmentations A_w and A_s (§3.3), and translators that need no training."""

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF


def target_size(height: int, width: int, size: str) -> tuple[int, int]:
    """The height and width that `size` asks for: "512" the shorter side, "512x1024" exact, "native" as it is."""
    if size == "native":
        return height, width
    if "x" in size:
        exact_height, exact_width = size.split("x")
        return int(exact_height), int(exact_width)
    scale = int(size) / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(image: Image.Image, height: int, width: int) -> Image.Image:
    """Bilinear, anti-aliased when it shrinks."""
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def resize_label(label: np.ndarray, height: int, width: int) -> np.ndarray:
    """Nearest neighbour: H×W train ids are names, not numbers to average."""
    if label.shape == (height, width):
        return label
    return np.asarray(Image.fromarray(label).resize((width, height), Image.Resampling.NEAREST))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image → 3×H×W float32 in [-1, 1]."""
    return scaled(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def scaled(levels: torch.Tensor) -> torch.Tensor:
    """0 to 255 (uint8) → float32 in [-1, 1]."""
    return levels.float() / 127.5 - 1


def to_levels(tensor: torch.Tensor) -> torch.Tensor:
    """[-1, 1] → 0 to 255 (uint8), of any shape."""
    return (tensor.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)


def to_image(tensor: torch.Tensor) -> Image.Image:
    """3×H×W in [-1, 1] → RGB image."""
    return Image.fromarray(to_levels(tensor).permute(1, 2, 0).cpu().numpy())


def uniform(low: float, high: float, generator) -> float:
    return low + (high - low) * torch.rand((), generator=generator).item()


def random_box(height: int, width: int, crop: tuple[int, int], generator) -> tuple[int, int]:
    """Top and left of a random crop, inside the image where it is large enough, else 0."""
    spare = (height - crop[0], width - crop[1])
    return tuple(int(torch.randint(max(0, s) + 1, (), generator=generator)) for s in spare)


def cut(tensor: torch.Tensor, box: tuple[int, int], crop: tuple[int, int], fill: float | None = None) -> torch.Tensor:
    """C×H×W → C×crop, from `box`; where the image is too small, its edge goes on or, if given, `fill`."""
    tensor = tensor[:, box[0] : box[0] + crop[0], box[1] : box[1] + crop[1]]
    padding = (0, crop[1] - tensor.shape[2], 0, crop[0] - tensor.shape[1])
    if not any(padding):
        return tensor
    if fill is not None:
        return F.pad(tensor, padding, value=fill)
    # as F.pad's "replicate", which takes no bytes
    rows, columns = (torch.arange(n).clamp(max=there - 1) for n, there in zip(crop, tensor.shape[1:], strict=True))
    return tensor[:, rows[:, None], columns]


def add_noise(image: torch.Tensor, sigma: float, generator) -> torch.Tensor:
    """3×H×W in [-1, 1] with Gaussian noise; `sigma` in the same units, so that 0.02 is 2.55 of 255 levels."""
    return (image + sigma * torch.randn(image.shape, generator=generator)).clamp(-1, 1)


def jitter(image: torch.Tensor, strength: float, generator) -> torch.Tensor:
    """Colour jitter of 3×H×W in [-1, 1]: brightness, contrast and saturation by a factor of 1 ± strength, hue by up to
    strength/4 of the circle."""
    levels = image * 0.5 + 0.5
    for adjust in (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation):
        levels = adjust(levels, uniform(max(0, 1 - strength), 1 + strength, generator))
    levels = TF.adjust_hue(levels, uniform(-strength / 4, strength / 4, generator))
    return levels * 2 - 1


def half_of_classes(labels: torch.Tensor, generator) -> torch.Tensor:
    """ClassMix (Olsson et al. 2021): H×W train ids (255: none) → H×W, true where one of half of their classes is."""
    there = labels.unique()
    there = there[there != 255]
    chosen = torch.randperm(len(there), generator=generator)[: (len(there) + 1) // 2]
    return torch.isin(labels, there[chosen])


def darken(image: torch.Tensor, generator) -> torch.Tensor:
    """A night of sorts without training: 3×H×W in [-1, 1] made dark by a random gamma, gain, tint and sensor noise."""
    levels = (image * 0.5 + 0.5).clamp(0, 1) ** uniform(1.2, 2.8, generator) * uniform(0.15, 0.7, generator)
    tint = torch.tensor([uniform(0.8, 1.2, generator) for _ in range(3)]).view(3, 1, 1)
    return add_noise(levels * tint * 2 - 1, uniform(0.01, 0.1, generator), generator)


def fourier(image: torch.Tensor, night: torch.Tensor, beta: float = 0.01) -> torch.Tensor:
    """Yang and Soatto 2020: the amplitudes of the lowest frequencies come from a night image, phases stay.

    Both 3×H×W in [-1, 1]; `beta` is the half side of the replaced square, as a share of the image's shorter side.
    """
    night = F.interpolate(night[None], image.shape[-2:], mode="bilinear", antialias=True, align_corners=False)[0]
    spectrum, other = torch.fft.fft2(image + 1), torch.fft.fft2(night + 1)
    reach = int(min(image.shape[-2:]) * beta)
    rows, columns = (torch.fft.fftfreq(n, 1 / n).abs() <= reach for n in image.shape[-2:])
    low = rows[:, None] & columns[None, :]
    spectrum = torch.where(low, torch.polar(other.abs(), spectrum.angle()), spectrum)
    return (torch.fft.ifft2(spectrum).real - 1).clamp(-1, 1)
