"""Names of table rows. Imports nothing heavy, so that a finished run is recognized quickly."""

BASELINES = ("base", "content_only", "style_only")
ORACLE = "oracle"
BASELINES_AND_ORACLE = (*BASELINES, ORACLE)
IMPORTED = "(imported: "  # start of the origin in the label of an imported row


def label(method: str, ablation: str = "none") -> str:
    """Return the label of a table row: the method, followed by its ablation if there is one."""
    return method if method in BASELINES_AND_ORACLE or ablation == "none" else f"{method} {ablation}"


def row_order(labels: list[str]) -> list[str]:
    """Order labels: baselines first, then methods in their given order, the oracle last."""
    unique = list(dict.fromkeys(labels))
    methods = [name for name in unique if name not in BASELINES_AND_ORACLE]
    return [f for f in BASELINES if f in unique] + methods + [ORACLE] * (ORACLE in unique)


def provenance(origin: str) -> str:
    """Return the part of an imported row's label that names its origin."""
    return f"{IMPORTED}{' '.join(origin.split())})"


def is_imported(label: str) -> bool:
    """Return whether a row was imported.

    >>> is_imported(f"duolora {provenance('NVIDIA A100')}"), is_imported("duolora no_cycle")
    (True, False)
    """
    return IMPORTED in label
