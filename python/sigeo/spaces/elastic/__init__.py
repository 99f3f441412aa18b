"""Search spaces whose networks are parts of one largest network."""

from sigeo.spaces.elastic.groups import Groups
from sigeo.spaces.elastic.space import ElasticSpace
from sigeo.spaces.elastic.supernet import ElasticSupernet

__all__ = ["ElasticSpace", "ElasticSupernet", "Groups"]
