"""Checks of numbers in configs: each ends in one sentence that names the key of params.yaml."""


def at_least(group: str, config: object, **least: float) -> None:
    """Raise ValueError unless each named field, or every number of a tuple, is at least so much; never for NaN."""
    for name, low in least.items():
        found = getattr(config, name)
        if not all(each >= low for each in (found if isinstance(found, tuple) else (found,))):
            raise ValueError(f"{group}.{name} must be at least {low}, got {found}; raise it")


def multiples(group: str, config: object, **units: int) -> None:
    """Raise ValueError unless each named field is a positive multiple of its unit."""
    for name, unit in units.items():
        found = getattr(config, name)
        if found < unit or found % unit:
            raise ValueError(f"{group}.{name} must be a multiple of {unit}, at least {unit}, got {found}; change it")
