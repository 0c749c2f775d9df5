"""CycleGAN's ResNet generator with bilinear upsampling (§4.2)."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F


class InstanceNorm(nn.Module):
    """Instance norm without affine. Group norm with one channel per group gives the same, faster on a CPU."""

    def forward(self, x):
        return F.group_norm(x, x.shape[1])


class UpConv(nn.Conv2d):
    """Bilinear ×2, then a 3×3 convolution padded by replication: B×C×H×W → B×O×2H×2W.

    `plain` is the definition. `forward` gives the same with a quarter of the arithmetic. Bilinear ×2 inserts zeros and
    then blurs with [1, 3, 3, 1]/4. The blur can come after the convolution, which then sees mostly zeros: it becomes a
    transposed convolution of stride 2.
    """

    def __init__(self, channels: int, out_channels: int):
        super().__init__(channels, out_channels, 3, bias=False)
        # on the device beforehand: making it there would wait for the device
        self.register_buffer("blur", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4, persistent=False)

    def plain(self, x):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), self.weight)

    def forward(self, x):
        # the same as F.pad's "replicate", whose gradient fails under torch.compile (2.14: unexpected strides)
        for dim in (2, 3):
            first, last = (x.narrow(dim, i, 1) for i in (0, x.shape[dim] - 1))
            x = torch.cat([first, first, x, last, last], dim)
        x = F.conv_transpose2d(x, self.weight.flip(2, 3).transpose(0, 1), stride=2)
        blur, channels = self.blur.to(x.dtype), x.shape[1]
        x = F.conv2d(x, blur.view(1, 1, 4, 1).repeat(channels, 1, 1, 1), groups=channels)
        x = F.conv2d(x, blur.view(1, 1, 1, 4).repeat(channels, 1, 1, 1), groups=channels)
        return x[..., 3:-3, 3:-3]


class RowConv(nn.Conv2d):
    """A square convolution to few channels, B×C×H×W → B×O×(H-K+1)×(W-K+1).

    `plain` is the definition. `forward` convolves with each of the kernel's K rows: one convolution of height 1 with
    O×K output channels. It then shifts the rows' results and adds them up. That is as many multiplications, but only 3
    output channels would leave most of a processor's vector units idle.
    """

    def plain(self, x):
        return super().forward(x)

    def forward(self, x):
        out_channels, channels, size, _ = self.weight.shape
        rows = self.weight.transpose(1, 2).reshape(out_channels * size, channels, 1, size)
        x = F.conv2d(x, rows).unflatten(1, (out_channels, size))
        height = x.shape[3] - size + 1
        return sum(x[:, :, i, i : i + height] for i in range(size)) + self.bias.view(-1, 1, 1)


class Residual(nn.Sequential):
    def __init__(self, channels: int):
        super().__init__(
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False), InstanceNorm(), nn.ReLU(),
            nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, bias=False), InstanceNorm(),
        )  # fmt: skip

    def forward(self, x):
        return x + super().forward(x)


class Generator(nn.Module):
    """G, an image → the same scene in the other domain: B×3×H×W in [-1, 1] → B×3×H×W in [-1, 1], any H and W.

    9 blocks and 64 filters are the paper's. Convolutions before an instance norm have no bias: the norm would subtract
    it. `upsample` is "bilinear" (§4.2: no checkerboards) or "deconv" (the original CycleGAN). `size` and `crop` say how
    the training images were resized and cropped (as the options; None: not known); they are saved with the model.
    """

    def __init__(
        self, blocks: int = 9, width: int = 64, upsample: str = "bilinear", size="native", crop: str | None = None
    ):
        super().__init__()
        self.config = {"blocks": blocks, "width": width, "upsample": upsample, "size": size, "crop": crop}
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7, bias=False), InstanceNorm(), nn.ReLU()]
        for c in (width, 2 * width):
            layers += [nn.Conv2d(c, 2 * c, 3, stride=2, padding=1, bias=False), InstanceNorm(), nn.ReLU()]
        layers += [Residual(4 * width) for _ in range(blocks)]
        deconv = partial(nn.ConvTranspose2d, kernel_size=3, stride=2, padding=1, output_padding=1, bias=False)
        up = UpConv if upsample == "bilinear" else deconv
        for c in (4 * width, 2 * width):
            layers += [up(c, c // 2), InstanceNorm(), nn.ReLU()]
        layers += [nn.ReflectionPad2d(3), RowConv(width, 3, 7), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(init)

    def forward(self, images):
        height, width = images.shape[-2:]
        # pad to a multiple of 4 and at least 16: by reflection, or by repeating the edge if the image is too small
        bottom, right = (max(16, -(-n // 4) * 4) - n for n in (height, width))
        if bottom or right:
            mode = "reflect" if bottom < height and right < width else "replicate"
            images = F.pad(images, (0, right, 0, bottom), mode=mode)
        return self.layers(images)[..., :height, :width]


def init(module):
    """N(0, 0.02), as in CycleGAN."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
