"""A small VGG for the generated scenes, fully convolutional from the start."""

from torch import Tensor, nn


class SceneNet(nn.Module):
    def __init__(self, classes: int = 8, w=(16, 32, 64, 96), f=128, k=3) -> None:
        super().__init__()
        a, b, c, d = w
        self.features = nn.Sequential(
            *_conv(3, a),
            nn.MaxPool2d(2),
            *_conv(a, b),
            *_conv(b, b),
            nn.MaxPool2d(2),
            *_conv(b, c),
            *_conv(c, c),
            nn.MaxPool2d(2),
            *_conv(c, d),
            *_conv(d, d),
        )
        self.classifier = nn.Sequential(*_conv(d, f, k), *_conv(f, f, 1), nn.Conv2d(f, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def _conv(i, o, k=3):
    m = nn.Conv2d(i, o, k, padding=k // 2)
    nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
    nn.init.zeros_(m.bias)
    return m, nn.ReLU(inplace=True)
