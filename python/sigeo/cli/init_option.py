"""The value of ``--init``: where weights come from."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sigeo.cli import options, warmup_options
from sigeo.errors import InputError

if TYPE_CHECKING:
    from sigeo.scoring.networks import Init as Origin
    from sigeo.scoring.shared_weights import SharedWeights
    from sigeo.spaces import SearchSpace


class Loaded(NamedTuple):
    """Weights that were there already, and the space that they were read for."""

    space: SearchSpace[Any]
    weights: SharedWeights


@dataclass(frozen=True)
class Init:
    """The value of ``--init``: where weights come from, and the file or folder it names."""

    kind: str
    path: Path | None = None

    @classmethod
    def parse(cls, args: argparse.Namespace) -> Init:
        """Read it.

        Raises:
            InputError: It is none of the forms that the option takes.
        """
        if args.init is None:
            return cls("supernet" if warmup_options.warms_up(args) else "scratch")
        kind, _, path = args.init.partition(":")
        if path and kind in ("supernet", "family"):
            return cls(kind, Path(path))
        if args.init in ("scratch", "candidate", "supernet"):
            return cls(args.init)
        raise InputError(
            "--init: must be scratch, candidate, supernet, supernet:PATH or family:DIR, "
            f"got {args.init!r}"
        )

    @property
    def weights(self) -> Origin:
        """Where weights come from as a protocol knows it."""
        return "supernet" if self.kind == "family" else self.kind  # type: ignore[return-value]

    def loaded(self, args: argparse.Namespace, outlined: SearchSpace[Any]) -> Loaded | None:
        """The weights that are there already, read before the images, if the value names some.

        Args:
            args: The options, of the space among others.
            outlined: The space as they alone describe it.

        Returns:
            None as well where the files do not say for which images they are.

        Raises:
            InputError: They cannot be ranked on, whatever the images.
        """
        if self.path is None:
            return None
        space = self._made_for(args, outlined)
        return None if space is None else Loaded(space, self._read(space, args.seed))

    def fitting(
        self, found: Loaded | None, space: SearchSpace[Any], seed: int
    ) -> SharedWeights | None:
        """What `loaded` found, for the images that there are.

        Raises:
            InputError: The weights are for others.
        """
        if self.path is None:
            return None
        if found is not None and found.space.describe() == space.describe():
            return found.weights
        return self._read(space, seed)

    def _made_for(
        self, args: argparse.Namespace, outlined: SearchSpace[Any]
    ) -> SearchSpace[Any] | None:
        """The space of the options, for images as the weights were trained on.

        That of the options alone where the weights are refused in any case; None if not known.

        Raises:
            InputError: The files are damaged, or of another space.
        """
        from sigeo import spaces
        from sigeo.fewshot.family import PLAN, leaf_file
        from sigeo.fewshot.plan_file import load_plan
        from sigeo.supernet import load_checkpoint

        assert self.path is not None
        if self.kind == "family":
            if not (self.path / PLAN).is_file():
                return outlined
            study = load_plan(self.path / PLAN, outlined)[1].get("study")
            sizes = study.get("space") if isinstance(study, dict) else None
            if sizes is None and leaf_file(self.path, 0).is_file():
                return None
        else:
            try:
                sizes = load_checkpoint(self.path)[1].get("space")
            except InputError:
                return outlined
        if not isinstance(sizes, dict):
            return outlined
        spaces.described(sizes)  # whole
        shape = spaces.InputShape(sizes["in_channels"], sizes["image_size"], sizes["classes"])
        return options.space_before_images(args, shape)

    def _read(self, space: SearchSpace[Any], seed: int) -> SharedWeights:
        """The weights of the file or folder.

        Raises:
            InputError: They cannot be ranked on.
        """
        from sigeo.fewshot.family import PLAN, NoWeights, family_weights, leaf_file
        from sigeo.fewshot.plan_file import is_plan
        from sigeo.scoring.shared_weights import SystemWeights, load_shared_weights

        assert self.path is not None
        if self.kind == "family":
            try:
                return family_weights(self.path, space)
            except NoWeights as error:
                raise InputError(f"{error}; warmup --recipe leaves both, split the plan") from None
        try:
            return load_shared_weights(self.path, space, seed)
        except SystemWeights as error:
            folder = self.path if self.path.is_dir() else self.path.parent
            whole = (folder / PLAN).is_file() and leaf_file(folder, 0).is_file()
            raise InputError(
                f"{error}; the folder that warmup --recipe leaves is taken by "
                f"--init family:{folder if whole else 'DIR'}"
            ) from None
        except InputError:
            if not is_plan(self.path):
                raise
            raise InputError(
                f"--init supernet:{self.path}: a plan, which says which supernet serves which part "
                "of a space and holds no weights; --init family:DIR takes the folder in which "
                "warmup --recipe leaves a plan and its weights"
            ) from None
