"""Statistics over the gradients of single samples, of any model, from one backward pass.

The way of a pass: `mode` hands every call of the model to the `session`, `recognised` knows the
layers among them and `functions` what needs no closer look, `follower` and `axis_rules` keep track
of where the samples are in between (`axis`); each layer call (`calls`, `scaled`, `embedding`)
measures its parameters on the way back and hands the results to `uses`; what no layer is known for
goes through `fallback`. `api` is what a user sees.
"""

from sigeo.capture.samples.api import SampleStatistics, capture
from sigeo.capture.samples.session import BatchNormPolicy

__all__ = ["BatchNormPolicy", "SampleStatistics", "capture"]
