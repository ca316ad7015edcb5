"""The options of the random walk, and of the background that walks with the classes."""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcsm_attr.cli.options import Background, Beta, MethodChoice, Radius, WalkNet, WalkSteps

if TYPE_CHECKING:
    import torch

__all__ = ["WalkOptions"]


@dataclass(frozen=True)
class WalkOptions:
    """What the command line says of the walk.

    Attributes:
        walk, radius, beta, walk_steps, background: as the options of these names.
    """

    walk: WalkNet = None
    radius: Radius = 5
    beta: Beta = 16.0
    walk_steps: WalkSteps = 32
    background: Background = None

    def __post_init__(self) -> None:
        """Check that the options go together."""
        changed = [name for name in self._changed() if name != "background"]
        if self.walk is None and changed:
            told = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
            raise ValueError(f"{told}: there is no walk without a network; pass --walk FILE.")

    def settings(self, device: "torch.device", method: MethodChoice) -> dict[str, Any]:
        """What these options change of a segmenter.

        Args:
            device: where AffinityNet is put.
            method: whose maps walk.

        Raises:
            WeightsError: if the file is missing, incomplete, or no AffinityNet.
            ValueError: if a number is out of its range, or the background is not given for maps of which none is known.
        """
        from dcsm_attr.affinity.exponents import exponents_of
        from dcsm_attr.affinity.network import load_affinity_net
        from dcsm_attr.affinity.walk import SemanticWalk

        if self.walk is None:
            return {} if self.background is None else {"background_exponent": self.background}
        net = load_affinity_net(self.walk)
        net.network.to(device)
        return {
            "walk": SemanticWalk(net, self.radius, self.beta, self.walk_steps),
            "background_exponent": exponents_of(method.value).walk if self.background is None else self.background,
        }

    def absolute(self) -> "WalkOptions":
        """The same, for processes at work in another folder."""
        return self if self.walk is None else replace(self, walk=self.walk.absolute())

    def arguments(self) -> list[str]:
        """The command-line arguments that give these options, the file by its name alone."""
        return [
            f"--{name.replace('_', '-')}={value.name if isinstance(value, Path) else value}"
            for name, value in self._changed().items()
        ]

    def _changed(self) -> dict[str, Any]:
        """The options that are not as they would be anyway."""
        given = {field: getattr(self, field.name) for field in fields(self)}
        return {field.name: value for field, value in given.items() if value != field.default}
