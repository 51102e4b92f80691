"""kedge moves a fleet of nodes from one release to the next as a durable workflow."""

__version__ = "0.1.0"
