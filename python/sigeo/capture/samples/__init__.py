"""Statistics over the gradients of single samples, of any model, from one backward pass.

The way of a pass: `mode` hands every call of the model to the `session`, which finds its
`parameters` among the arguments; `recognised` knows the layers among the calls, `following` runs
all others, of which `functions` says what needs no closer look, and `follower` and `axis_rules`
keep track of where the samples are in between (`axis`). Each layer call (`calls`, `scaled`,
`embedding`) measures its parameters on the way back and hands the results to `uses`; for a
parameter that no layer is known for, or that the `graph` alone knows of, a module takes over
(`takeover`, `fallback`), and `combined` checks what comes of it. `api` is what a user sees.
"""

from sigeo.capture.samples.api import SampleStatistics, capture
from sigeo.capture.samples.recognised.norms import SamplesCoupled
from sigeo.capture.samples.session import BatchNormPolicy
from sigeo.capture.samples.unserved import all_served

__all__ = ["BatchNormPolicy", "SampleStatistics", "SamplesCoupled", "all_served", "capture"]
