"""One experiment a file: `get_config(variant)` composes the settings, then overrides some."""
