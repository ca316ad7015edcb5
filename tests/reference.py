"""The whole method in float64, written from the specification alone: no autograd, no hooks, nothing of the package.

Guided backpropagation of a TinyVGG by hand (transposed convolutions, unpooling, masks), and the three variants of DCSM
as loops over images, classes, layers, pairs; class activation maps as loops over scales and mirror images.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def layer_gradients(model, image, seed, guided=True):
    """Gradients at the input of every convolution and at the output of every module, for one image.

    ``seed`` is the gradient at the score maps. Returns two dicts from module to (C, h, w) arrays.
    """
    modules = [*model.features, *model.classifier]
    x = image[None].double()
    tape = []
    for module in modules:
        if isinstance(module, nn.Conv2d):
            y = F.conv2d(x, module.weight.detach().double(), module.bias.detach().double(), padding=module.padding)
            tape.append((module, x, None))
        elif isinstance(module, nn.ReLU):
            y = x.clamp(min=0)
            tape.append((module, x, None))
        else:
            y, indices = F.max_pool2d(x, 2, return_indices=True)
            tape.append((module, x, indices))
        x = y
    gradient = seed[None].double()
    at_input, at_output = {}, {}
    for module, x, indices in reversed(tape):
        at_output[module] = gradient[0].numpy()
        if isinstance(module, nn.Conv2d):
            gradient = F.conv_transpose2d(gradient, module.weight.detach().double(), padding=module.padding)
            at_input[module] = gradient[0].numpy()
        elif isinstance(module, nn.ReLU):
            gradient = gradient * (x > 0)
            if guided:
                gradient = gradient * (gradient > 0)
        else:
            gradient = F.max_unpool2d(gradient, indices, 2, output_size=x.shape)
    return at_input, at_output


def score_maps(model, image):
    """(C, h, w) float64."""
    return model.double()(image[None].double())[0].detach().numpy()


def one_hot_seed(maps, c):
    seed = torch.zeros(maps.shape, dtype=torch.float64)
    seed[c] = 1
    return seed


def upsample(values, size):
    """Bilinear with half-pixel centers and repeated edges, row by row."""

    def weights(source, target):
        matrix = np.zeros((target, source))
        for i in range(target):
            position = (i + 0.5) * source / target - 0.5
            low = math.floor(position)
            for j, weight in ((low, 1 - (position - low)), (low + 1, position - low)):
                matrix[i, min(max(j, 0), source - 1)] += weight
        return matrix

    return weights(values.shape[0], size[0]) @ values @ weights(values.shape[1], size[1]).T


def upsample_from_corner(values, size):
    def weights(source, target):
        matrix = np.zeros((target, source))
        for i in range(target):
            position = i * source / target
            low = i * source // target
            matrix[i, low] += 1 - (position - low)
            matrix[i, min(low + 1, source - 1)] += position - low
        return matrix

    return weights(values.shape[0], size[0]) @ values @ weights(values.shape[1], size[1]).T


def resized(image, scale, mode):
    """Resizing images is not the method's own: torch's antialiased kernels, at float32 as the package's."""
    size = [round(scale * side) for side in image.shape[1:]]
    if size == list(image.shape[1:]):
        return image
    return F.interpolate(image[None], size, mode=mode, antialias=True)[0]


def sigmoid(values):
    return 1 / (1 + np.exp(-values))


def paper(model, layers, image, candidates, scales=(0.8, 1.0, 1.2), alpha=3.0, guided=True, subtract=True):
    """Eq. 3 to 5 with each subtracted map divided by its maximum. Returns {class: (H, W)}."""
    size = tuple(image.shape[1:])
    result = {c: np.zeros(size) for c in candidates}
    for scale in scales:
        scaled = resized(image, scale, "bilinear")
        maps = score_maps(model, scaled)
        gradients = {c: layer_gradients(model, scaled, one_hot_seed(maps, c), guided)[0] for c in candidates}
        for layer in layers:
            raw = {c: upsample(np.abs(gradients[c][layer]).max(0), size) for c in candidates}
            for c in candidates:
                value = sum(np.maximum(raw[c] - raw[o], 0) for o in candidates if o != c) if subtract else raw[c]
                if value.max() > 0:
                    result[c] += np.tanh(alpha * value / value.max())
    return {c: value / (len(scales) * len(layers)) for c, value in result.items()}


def matconvnet(model, layers, image, scales=(0.8, 1.0, 1.2)):
    """dcsm.m from the forward pass on, with the guard. Returns candidates, {target: accumulated}, {target: picture}."""
    size = tuple(image.shape[1:])
    scaled = [resized(image, scale, "bicubic") for scale in scales]
    probabilities = [sigmoid(score_maps(model, one)).max((1, 2)) for one in scaled]
    targets = [c for c in range(len(probabilities[0])) if any(p[c] > 0.5 for p in probabilities)]
    fill = sorted(
        (c for c in range(len(probabilities[0])) if c not in targets), key=lambda c: -sum(p[c] for p in probabilities)
    )
    candidates = targets + fill[: max(0, 4 - len(targets))]
    accumulated = {t: np.zeros(size) for t in targets}
    for one, p in zip(scaled, probabilities, strict=True):
        maps = score_maps(model, one)
        gradients = {c: layer_gradients(model, one, one_hot_seed(maps, c))[0] for c in candidates}
        for t in targets:
            if p[t] <= 0.5:
                continue
            for layer in layers:
                for other in candidates:
                    if other == t:
                        continue
                    u = [upsample(np.abs(gradients[c][layer]).max(0), size) for c in (t, other)]
                    difference = u[0] - u[1]
                    if difference.max() <= 0:
                        continue
                    difference = np.tanh(3 * difference / difference.max())
                    difference[difference <= 0] = 1e-20
                    accumulated[t] += difference
    pictures = {}
    for t, value in accumulated.items():
        picture = np.tanh(3 * value / value.max())
        picture[picture <= 0] = 1e-20
        pictures[t] = picture
    return candidates, accumulated, pictures


def caffe(model, layers, image):
    """gdep.py on one scale. Returns {class: (H, W)} for the best three."""
    size = tuple(image.shape[1:])
    maps = score_maps(model, image)
    top = np.argsort(-maps.max((1, 2)), kind="stable")[:3]
    gradients = {c: layer_gradients(model, image, one_hot_seed(maps, c))[0] for c in top}
    result = {}
    for c in top:
        total = np.zeros(size)
        for layer in layers:
            signed = {e: gradients[e][layer].max(0) for e in top}
            stacked = np.zeros(signed[c].shape)
            for other in top:
                difference = signed[c] - signed[other]
                if other != c and difference.max() > 0:
                    stacked += np.tanh(3 * difference / difference.max())
            stacked = np.tanh(3 * stacked / stacked.max()) if stacked.max() > 0 else np.zeros_like(stacked)
            total += upsample_from_corner(stacked, size)
        result[int(c)] = np.maximum(total / total.max(), 0) if total.max() > 0 else np.zeros(size)
    return result


def class_activation_maps(features, weights, image, classes, scales=(1.0, 0.5, 1.5, 2.0), mirrored=True):
    """AffinityNet's sum over scales and mirror images. ``features``: (C, H, W) to (D, h, w). {class: (H, W)}."""
    size = tuple(image.shape[1:])
    result = {c: np.zeros(size) for c in classes}
    for scale in scales:
        scaled = resized(image, scale, "bicubic")
        for flip in (False, True) if mirrored else (False,):
            found = features(scaled.flip(-1) if flip else scaled)
            for c in classes:
                activation = sum(weight * channel for weight, channel in zip(weights[c], found, strict=True))
                value = upsample(np.maximum(activation, 0), size)
                result[c] += value[:, ::-1] if flip else value
    return {c: value / value.max() if value.max() > 0 else value for c, value in result.items()}
