"""Tidecell: training and serving on one pool of machines; capacity moves between them like a tide."""

__version__ = "0.1.0"
