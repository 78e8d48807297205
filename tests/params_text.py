"""A parameter file as DVC writes it back (`dvc exp run -S`)."""

import re


def as_dvc_writes(text: str) -> list[str]:
    """Lines with an explicit null dropped and one blank before a comment; all else as it is."""
    return [re.sub(r"\s+#", " #", re.sub(r":\s+null\b", ":", line)) for line in text.splitlines()]
