"""Deployment: export, manifest, and pre- and post-processing around the runner."""
