"""DenseNet-121 in PyTorch, timed in a process of its own by an interpreter that has it; nothing else is imported here.

    python densenet.py SIDE THREADS    reads an image on every line of its input, and says how many milliseconds it took

The network is TorchXRayVision's: one channel, 18 outputs, random weights. Source: Huang et al., "Densely Connected
Convolutional Networks", CVPR 2017, as torchvision has it, layer by layer.
"""

import sys
import time

import torch
from torch import nn

GROWTH, BLOCKS, STEM, WIDTH, OUTPUTS = 32, (6, 12, 24, 16), 64, 4, 18
PARAMETERS = 6_966_034
"""Of torchvision's densenet121 with one channel and 18 outputs."""


class DenseLayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.narrow = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, WIDTH * GROWTH, 1, bias=False)
        )
        self.wide = nn.Sequential(
            nn.BatchNorm2d(WIDTH * GROWTH),
            nn.ReLU(inplace=True),
            nn.Conv2d(WIDTH * GROWTH, GROWTH, 3, padding=1, bias=False),
        )

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.cat([maps, self.wide(self.narrow(maps))], 1)


def densenet121() -> nn.Module:
    parts = [nn.Conv2d(1, STEM, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(STEM), nn.ReLU(inplace=True)]
    parts.append(nn.MaxPool2d(3, stride=2, padding=1))
    channels = STEM
    for number, layers in enumerate(BLOCKS):
        for _ in range(layers):
            parts.append(DenseLayer(channels))
            channels += GROWTH
        parts.append(nn.BatchNorm2d(channels))
        parts.append(nn.ReLU(inplace=True))
        if number + 1 < len(BLOCKS):
            parts += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2, stride=2)]
            channels //= 2
    parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, OUTPUTS)]
    network = nn.Sequential(*parts)
    found = sum(parameter.numel() for parameter in network.parameters())
    if found != PARAMETERS:
        raise SystemExit(f"this network has {found} parameters, DenseNet-121 {PARAMETERS}")
    return network.eval()


def main() -> None:
    side, threads = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    network = densenet121()
    with torch.inference_mode():
        for _ in range(3):
            network(torch.rand(1, 1, side, side))
        print(torch.__version__, flush=True)
        for line in sys.stdin:
            image = torch.frombuffer(bytearray.fromhex(line), dtype=torch.float32).reshape(1, 1, side, side)
            began = time.perf_counter()
            network(image)
            print(1000 * (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
