"""Cuts of graphs with more options than can be enumerated."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

from sigeo.errors import InputError
from sigeo.fewshot.partition.relation import Groups, Relation
from sigeo.fewshot.partition.rules import ordered
from sigeo.fewshot.partition.sets import check_groups


def weights(relation: Relation) -> list[list[float]]:
    """Similarities as graph weights, which are from 0.

    Where one is negative, as all turned distances are, the smallest is moved to 0 and the others
    with it. A cut of many pairs then costs more than it did, so sides become less even than with
    `Exact`.
    """
    values = relation.similarities
    pairs = itertools.combinations(range(relation.count), 2)
    low = min(0.0, min((values[i][j] for i, j in pairs), default=0.0))
    return [[value - low for value in row] for row in values]


@dataclass(frozen=True)
class StoerWagner:
    """The global minimum cut into two sides of any sizes (Stoer and Wagner, 1997)."""

    compares: bool = True

    def check(self, options: int, groups: int) -> None:
        """See `Partitioner`.

        Raises:
            InputError: Other than two groups, or fewer than two options.
        """
        if groups != 2 or options < 2:
            raise InputError(
                f"partition: stoer_wagner makes 2 groups of 2 options or more, "
                f"got {groups} of {options}"
            )

    def __call__(self, relation: Relation, groups: int, rng: random.Random) -> Groups:
        """See `Partitioner`; works on `weights`."""
        import networkx

        self.check(relation.count, groups)
        graph = networkx.Graph()
        values = weights(relation)
        for i, j in itertools.combinations(range(relation.count), 2):
            graph.add_edge(i, j, weight=values[i][j])
        _, sides = networkx.stoer_wagner(graph)
        return ordered([tuple(side) for side in sides])


@dataclass(frozen=True)
class Spectral:
    """Groups of the spectral embedding of the graph (Damle et al., 2019, for the assignment)."""

    compares: bool = True

    def check(self, options: int, groups: int) -> None:
        """See `Partitioner`.

        Raises:
            InputError: More groups than options.
        """
        check_groups(options, groups)

    def __call__(self, relation: Relation, groups: int, rng: random.Random) -> Groups:
        """See `Partitioner`; works on `weights`.

        Raises:
            InputError: A group that stays empty.
        """
        import numpy as np
        from sklearn.cluster import SpectralClustering

        self.check(relation.count, groups)
        if groups in (1, relation.count):  # nothing to embed
            return tuple(
                (option,) if groups > 1 else tuple(range(relation.count))
                for option in range(groups)
            )
        affinity = np.array(weights(relation))
        affinity += 1e-6 * max(1.0, float(affinity.max()))  # the graph must be one piece
        np.fill_diagonal(affinity, 0.0)
        clusters = SpectralClustering(
            groups,
            affinity="precomputed",
            assign_labels="cluster_qr",
            random_state=rng.randrange(2**32),
        ).fit_predict(affinity)
        found = [
            tuple(np.flatnonzero(clusters == label).tolist()) for label in sorted(set(clusters))
        ]
        if len(found) != groups:
            raise InputError(f"partition: spectral found {len(found)} groups, wanted {groups}")
        return ordered(found)
