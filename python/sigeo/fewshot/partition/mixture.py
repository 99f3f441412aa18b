"""Groups of options by a mixture model."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sigeo.errors import InputError
from sigeo.fewshot.partition.relation import Groups, Relation
from sigeo.fewshot.partition.rules import ordered


@dataclass(frozen=True)
class GaussianMixture:
    """The components of a Gaussian mixture over the options' rows of similarities (NAS-LID, code).

    An option is the point of its similarities to all options, to itself as to the one most like it.
    Components have one variance each: there are fewer points than a full covariance has numbers.

    Attributes:
        starts: Of the fit; the likeliest counts.
    """

    starts: int = 10
    compares: bool = True

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            InputError: It is below 1.
        """
        if self.starts < 1:
            raise InputError(f"partition: starts must be at least 1, got {self.starts}")

    def __call__(self, relation: Relation, groups: int, rng: random.Random) -> Groups:
        """See `Partitioner`.

        Raises:
            InputError: More groups than options that differ, or a component that is nobody's.
        """
        import numpy as np
        from sklearn import mixture

        if relation.count == 1 and groups == 1:
            return ((0,),)
        points = np.array(relation.similarities)
        np.fill_diagonal(points, -np.inf)
        np.fill_diagonal(points, points.max(1))
        differ = len(np.unique(points, axis=0))
        if not 1 <= groups <= differ:
            raise InputError(f"partition: expected 1 to {differ} groups, got {groups}")
        points /= max(np.ptp(points), np.finfo(float).tiny)  # the fit's floor of variances is fixed
        found = mixture.GaussianMixture(
            groups,
            covariance_type="spherical",
            n_init=self.starts,
            random_state=rng.randrange(2**32),
        ).fit_predict(points)
        chosen = [tuple(np.flatnonzero(found == label).tolist()) for label in sorted(set(found))]
        if len(chosen) != groups:
            raise InputError(f"partition: mixture found {len(chosen)} groups, wanted {groups}")
        return ordered(chosen)
