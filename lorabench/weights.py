"""Where the package keeps what it ships: the micro model, the micro scorers, descriptions of published backbones."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
