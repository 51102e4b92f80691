"""The composition root: settings, wiring, client, engine, telemetry and the worker's entry point."""
