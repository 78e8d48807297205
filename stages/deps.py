"""Write the code dependencies of every stage into dvc.yaml: exactly what the stage imports, one by one.

Run it after changing an import; tests/test_contracts.py fails when the lists are out of date.
"""

from pathlib import Path

from ruamel.yaml import YAML

from vw2.closure import import_closure
from vw2.console import run, say

ALLOWED = {"vw2/console.py"}  # what a stage prints changes no result
FILES = (Path("dvc.yaml"), Path("plain_ldm/dvc.yaml"))


def code_of(command: str) -> list[str]:
    """Code dependencies of `python -m stages.x ...`, relative to the repository."""
    module = command.split("python -m ")[1].split()[0]
    file = Path(module.replace(".", "/") + ".py")
    return sorted(str(path) for path in import_closure(file) if str(path) not in ALLOWED)


def main() -> None:
    """Renew the code dependencies in dvc.yaml and plain_ldm/dvc.yaml."""
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    for file in filter(Path.exists, FILES):
        tree = yaml.load(file)
        for name, stage in tree["stages"].items():
            data = [each for each in stage.get("deps", []) if not str(each).endswith(".py")]
            stage["deps"] = code_of(stage["cmd"]) + data
            say(f"{name}: {len(stage['deps']) - len(data)} modules")
        yaml.dump(tree, file)


if __name__ == "__main__":
    run(main)
