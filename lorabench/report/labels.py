"""Names of table rows. Imports nothing heavy, so that a finished run is recognized quickly."""

BASELINES = ("base", "content_only", "style_only")
ORACLE = "oracle"
BASELINES_AND_ORACLE = (*BASELINES, ORACLE)


def label(method: str, ablation: str = "none") -> str:
    """Return the label of a table row: the method, followed by its ablation if there is one."""
    return method if method in BASELINES_AND_ORACLE or ablation == "none" else f"{method} {ablation}"
