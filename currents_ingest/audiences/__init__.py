"""Audiences: from an export to Braze, the difference alone."""
