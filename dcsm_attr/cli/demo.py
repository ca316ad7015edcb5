"""``dcsm-attr demo``: the whole method, offline, in under two minutes."""

import time
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write demo.png.")] = Path("out"),
    scenes: Annotated[int, typer.Option(min=1, help="How many unseen scenes to measure on.")] = 200,
    retrain: Annotated[
        bool, typer.Option("--retrain", help="First train the network again, into FOLDER, and use that one.")
    ] = False,
) -> None:
    """Show what the method does, without a network or a download.

    Draws scenes that the shipped network has never seen, finds where it sees each class, subtracts the classes from
    each other, segments with the dense CRF, prints the mean IoU of each step, and writes one figure. The network is a
    small CNN that this project trained from image-level labels alone.

    Examples:
      dcsm-attr demo

      dcsm-attr demo --scenes 20 --output pictures

      dcsm-attr demo --retrain
    """
    from dcsm_attr.backbones.scene_net import load_scene_net
    from dcsm_attr.demo.figure import demo_figure
    from dcsm_attr.demo.run import STEPS, run_demo
    from dcsm_attr.files import atomic_buffer, writable_folder
    from dcsm_attr.training.scenes import train_scene_net

    start = time.perf_counter()
    output = writable_folder(output)
    checkpoint = None
    if retrain:
        checkpoint = output / "scene_net.safetensors"
        train_scene_net(checkpoint)
        typer.echo(f"trained in {time.perf_counter() - start:.0f} s: {checkpoint}")
    result = run_demo(load_scene_net(checkpoint), scenes)
    typer.echo(f"mean IoU over {scenes} unseen scenes, background and 8 classes, classes detected by the network:")
    before = None
    for step, value in zip(STEPS, result.mean_iou, strict=True):
        gain = "" if before is None else f"  ({100 * (value - before):+.1f})"
        typer.echo(f"  {step:<18}{100 * value:5.1f}{gain}")
        before = value
    picture = output / "demo.png"
    with atomic_buffer(picture) as file:
        demo_figure(result).savefig(file, dpi=130)
    typer.echo(f"{picture} shows how; {time.perf_counter() - start:.0f} s in all.")
