"""Groups of options by a mixture model."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sigeo.errors import InputError
from sigeo.fewshot.partition.relation import Groups, Relation
from sigeo.fewshot.partition.rules import ordered
from sigeo.fewshot.partition.sets import check_groups
from sigeo.kinds import is_of


@dataclass(frozen=True)
class GaussianMixture:
    """The components of a Gaussian mixture over the options' rows of similarities (NAS-LID, code).

    An option is the point of its similarities to all options, to itself as to the one most like it.
    Components have one variance each: there are fewer points than a full covariance has numbers.
    Where fewer options differ than there are to be groups, their order tells equal ones apart.

    Attributes:
        starts: Of the fit; the likeliest counts.
    """

    starts: int = 10
    compares: bool = True

    def __post_init__(self) -> None:
        """Check the number.

        Raises:
            InputError: It is no whole number of at least 1.
        """
        if not is_of(self.starts, int) or self.starts < 1:
            raise InputError(
                f"partition: starts must be a whole number of at least 1, got {self.starts!r}"
            )

    def check(self, options: int, groups: int) -> None:
        """See `Partitioner`.

        Raises:
            InputError: More groups than options.
        """
        check_groups(options, groups)

    def __call__(self, relation: Relation, groups: int, rng: random.Random) -> Groups:
        """See `Partitioner`.

        Raises:
            InputError: A component that is nobody's.
        """
        import numpy as np
        from sklearn import mixture

        self.check(relation.count, groups)
        if groups == 1:
            return (tuple(range(relation.count)),)
        points = np.array(relation.similarities)
        np.fill_diagonal(points, -np.inf)
        np.fill_diagonal(points, points.max(1))
        if np.ptp(points) > 0:
            points = (points - points.min()) / np.ptp(points)  # the fit's least variance is fixed
        if len(np.unique(points, axis=0)) < groups:
            points = np.column_stack([points, np.linspace(0, 1e-2, relation.count)])
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
