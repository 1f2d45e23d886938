"""The report of an import: what was taken, what was not and why, what was changed on the way."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightspace.zoo.importers.found import Skipped

FILE = "import.json"
"""Where a zoo keeps its report."""


@dataclass(frozen=True, kw_only=True)
class ImportedLayout:
    """One architecture of an imported zoo."""

    digest: str
    tensors: int
    parameters: int
    checkpoints: int


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What an import did; `import.json` in the zoo's folder holds the same."""

    source: str
    """Name of what was imported."""
    format: str
    zoo: Path
    checkpoints: int
    models: int
    layouts: tuple[ImportedLayout, ...]
    skipped: tuple[Skipped, ...]
    """Everything that was not taken, each with its reason."""
    notes: Mapping[str, int]
    """What was changed or left out within checkpoints, and how many that concerns."""

    @property
    def reasons(self) -> Counter[str]:
        """Reasons for skipping, without what only one file has in them, and how often."""
        return Counter(item.reason.partition(":")[0] for item in self.skipped)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return json.loads(json.dumps(asdict(self) | {"zoo": self.zoo.name}))
