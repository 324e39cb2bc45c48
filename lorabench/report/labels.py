"""Names of table rows. Imports nothing heavy, so that a finished run is recognized quickly."""

FLOORS = ("base", "content_only", "style_only")
CEILING = "oracle"
FRAMES = (*FLOORS, CEILING)


def label(method: str, ablation: str = "none") -> str:
    """Return the label of a table row: the method, followed by its ablation if there is one."""
    return method if method in FRAMES or ablation == "none" else f"{method} {ablation}"
