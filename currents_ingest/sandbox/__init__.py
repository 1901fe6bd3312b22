"""A local server that answers as Braze's REST API does; see `docs/sandbox.md`."""
