"""The site's navigation: decisions are found, not listed, so that a new one needs no second place."""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Append every page of docs/adr/, in the order of its number."""
    decisions = sorted(path.name for path in (Path(config.docs_dir) / "adr").glob("*.md"))
    config.nav = [*(config.nav or []), {"Decisions": [f"adr/{name}" for name in decisions]}]
    return config
