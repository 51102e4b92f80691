"""The world behind ports: transports to hosts, stores, artifacts. Only the worker builds drivers."""
