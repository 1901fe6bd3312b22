"""Braze Currents in, Parquet feeds for Amperity out; see ``currents_ingest.api``."""
