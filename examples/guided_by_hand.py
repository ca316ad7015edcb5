"""DCSM step by step: guided gradients, Eq. 3, 4, 5 and 7, and the CRF.

    python examples/guided_by_hand.py

Runs offline, and checks that the steps give the maps of `DistinctClassSaliency`. It uses one layer and one scale; the
paper averages over nine layers of VGG-16 and three scales.
"""

import torch

from dcsm_attr import DenseCRF, DistinctClassSaliency, GuidedRectifiers
from dcsm_attr.attribution import maps as eq
from dcsm_attr.datasets.scenes import CLASS_NAMES, generate_scene
from dcsm_attr.models.scene_net import MEAN, STD, load_scene_net


def main() -> None:
    """Compute the maps of one layer step by step."""
    model = load_scene_net()
    scene = generate_scene(7, seed=1)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    x = ((scene.image / 255 - mean) / std)[None]
    classes = scene.present.nonzero()[:, 0]
    print("in the scene:", ", ".join(CLASS_NAMES[c] for c in classes))

    # Guided gradients of each class's score at the last convolution's input.
    convolution = [module for module in model.features if isinstance(module, torch.nn.Conv2d)][-1]
    kept = []
    handle = convolution.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with GuidedRectifiers() as rule:
        scores = model(x.requires_grad_())
    handle.remove()
    print(f"{rule.guided} rectifiers guided")
    gradients = [torch.autograd.grad(scores[0, c].sum(), kept[0], retain_graph=True)[0] for c in classes]

    # Eq. 3: channel maximum and upsampling. Eq. 4: subtraction. Eq. 5: tanh, here for one layer at one scale.
    raw = torch.cat([eq.absolute_channel_maximum(gradient) for gradient in gradients], dim=1)
    distinct = eq.squash(eq.subtract(eq.upsample(raw, (128, 128))), alpha=3.0)

    # Eq. 7, and the CRF of Eq. 6 and 8.
    probabilities = eq.label_probabilities(distinct, torch.ones(1, len(classes), dtype=torch.bool))
    refined = DenseCRF()(probabilities, scene.image[None])
    for label, name in enumerate(["background", *(CLASS_NAMES[c] for c in classes)]):
        print(f"  {name:<12}{(refined.argmax(1) == label).float().mean():.1%} of the image")

    name = next(name for name, module in model.named_modules() if module is convolution)
    dcs = DistinctClassSaliency(model, name, scales=(1.0,))
    same = dcs.class_maps(x.detach(), candidates=classes, attribute_to_layer_input=True).maps
    assert torch.allclose(same, distinct, atol=1e-5)
    print("DistinctClassSaliency gives the same maps")


if __name__ == "__main__":
    main()
