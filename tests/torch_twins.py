"""The paper's networks in PyTorch, with the module names of the original code; for comparison only."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


def conv(channels, width, size, stride=1, bias=False):
    return nn.Conv2d(channels, width, size, stride, size // 2, bias=bias)


class Block(nn.Module):
    expansion = 1

    def __init__(self, channels, width, stride, shortcuts):
        super().__init__()
        self.conv1, self.bn1 = conv(channels, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.around(channels, width, stride, shortcuts)

    def around(self, channels, width, stride, shortcuts):
        self.shortcuts = shortcuts
        if shortcuts:
            self.shortcut = nn.Sequential()
            if stride != 1 or channels != width:
                self.shortcut = nn.Sequential(conv(channels, width, 1, stride), nn.BatchNorm2d(width))

    def residual(self, x):
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))

    def forward(self, x):
        y = self.residual(x)
        return F.relu(y + self.shortcut(x) if self.shortcuts else y)


class Bottleneck(Block):
    expansion = 4

    def __init__(self, channels, width, stride, shortcuts):
        nn.Module.__init__(self)
        self.conv1, self.bn1 = conv(channels, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.around(channels, 4 * width, stride, shortcuts)

    def residual(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(F.relu(self.bn2(self.conv2(x)))))


class ResNet(nn.Module):
    def __init__(self, blocks, widths, block=Block, shortcuts=True, channels=3, classes=10):
        super().__init__()
        self.conv1, self.bn1 = conv(channels, widths[0], 3), nn.BatchNorm2d(widths[0])
        last = widths[0]
        self.stages = len(blocks)
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), 1):
            layers = []
            for i in range(count):
                layers.append(block(last, width, 2 if stage > 1 and i == 0 else 1, shortcuts))
                last = width * block.expansion
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(last, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.linear(x.mean((2, 3)))


class VGG9(nn.Module):
    def __init__(self, channels=3, classes=10, pixels=16):
        super().__init__()
        layers = []
        for width in (64, 64, "M", 128, 128, "M", 256, 256, 256, "M"):
            if width == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [conv(channels, width, 3, bias=True), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Sequential(nn.Linear(256 * pixels, 256), nn.BatchNorm1d(256), nn.ReLU())
        self.classifier = nn.Linear(256, classes)

    def forward(self, x):
        return self.classifier(self.fc(self.features(x).flatten(1)))


class DenseLayer(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, 128, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(128), conv(128, 32, 3)

    def forward(self, x):
        y = self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))
        return torch.cat([y, x], 1)


class Transition(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(channels), conv(channels, channels // 2, 1)

    def forward(self, x):
        return F.avg_pool2d(self.conv(F.relu(self.bn(x))), 2)


class DenseNet121(nn.Module):
    def __init__(self, channels=3, classes=10):
        super().__init__()
        self.conv1 = conv(channels, 64, 3)
        width = 64
        for i, count in enumerate((6, 12, 24, 16), 1):
            layers = [DenseLayer(width + 32 * j) for j in range(count)]
            setattr(self, f"dense{i}", nn.Sequential(*layers))
            width += 32 * count
            if i < 4:
                setattr(self, f"trans{i}", Transition(width))
                width //= 2
        self.bn, self.linear = nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, x):
        x = self.conv1(x)
        for i in range(1, 5):
            x = getattr(self, f"dense{i}")(x)
            x = getattr(self, f"trans{i}")(x) if i < 4 else x
        return self.linear(F.relu(self.bn(x)).mean((2, 3)))


def cifar(depth, widen=1):
    return lambda **options: ResNet([(depth - 2) // 6] * 3, [16 * widen, 32 * widen, 64 * widen], **options)


def imagenet(blocks, block):
    return lambda **options: ResNet(blocks, (64, 128, 256, 512), block, **options)


TWINS = {
    **{f"resnet{depth}": cifar(depth) for depth in (20, 32, 44, 56, 110)},
    "resnet50_16": cifar(50),
    **{f"wrn{depth}_{k}": cifar(depth, k) for depth, k in ((56, 2), (56, 4), (56, 8), (110, 2), (110, 4))},
    "resnet18": imagenet((2, 2, 2, 2), Block),
    "resnet34": imagenet((3, 4, 6, 3), Block),
    "resnet50": imagenet((3, 4, 6, 3), Bottleneck),
    "resnet101": imagenet((3, 4, 23, 3), Bottleneck),
    "resnet152": imagenet((3, 8, 36, 3), Bottleneck),
    "vgg9": VGG9,
    "densenet121": DenseNet121,
}
