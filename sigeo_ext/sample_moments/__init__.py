"""Statistics over the gradients of single samples, without one of them ever being stored.

A layer whose weight is shared over ``T`` positions has, for a *unit* u of one or more consecutive
samples, the gradient::

    g_u[o, i] = sum over the unit's samples b and positions t of  d[b, t, o] * x[b, t, i]

with x the layer's input and d the gradient of its output. The kernels form a tile of g_u in
registers, update the statistics over units there, and go on to the next unit: as many operations as
the ordinary weight gradient, which is one of the statistics (``sum``), and no memory for B x P.

Statistics: ``sum`` g, ``abs_sum`` |g|, ``sq_sum`` g^2, ``m2`` the sum of squared deviations from
the mean (from deviations from the first unit, never a difference of large sums), ``sign_sum`` the
sum of signs; and ``sq_norm``, each unit's sum of g^2 over the weight. All have at least float32;
sq_norm is float64.

No gradient goes through a statistic: results are not tied to the graph of what they are made of.

A *segment* is a run of consecutive units with statistics of its own, one subnet's samples, say.
"""

from sigeo_ext.sample_moments.embeddings import Tables, embedding, tables
from sigeo_ext.sample_moments.layers import convolution, linear
from sigeo_ext.sample_moments.precision import matmul_precision, set_matmul_precision
from sigeo_ext.sample_moments.reference import STATISTICS
from sigeo_ext.sample_moments.small_parameters import Scaled, rows, scale
from sigeo_ext.sample_moments.statistics import SampleMoments

__all__ = [
    "STATISTICS",
    "SampleMoments",
    "Scaled",
    "Tables",
    "convolution",
    "embedding",
    "linear",
    "matmul_precision",
    "rows",
    "scale",
    "set_matmul_precision",
    "tables",
]
