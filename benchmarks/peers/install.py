"""One virtual environment per peer, with versions that were released for each other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TORCH = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
PEERS: dict[str, tuple[str, ...]] = {
    "lf": ("llamafactory==0.9.5", "transformers==5.6.0"),
    "trl": ("trl==1.16.0", "transformers==5.23.0"),
    "swift": ("ms-swift==4.6.0", "transformers==5.19.0"),
}
"""The newest transformers that each takes."""
NEEDED = ("peft", "pillow", "datasets", "qwen-vl-utils")
"""What not all of them bring; ms-swift decodes images with the last one."""

# Of two distributions of one name, the first on the path is what is imported.
VERSIONS = """
from importlib.metadata import distributions
found = {each.name.lower().replace("_", "-"): each.version for each in reversed(list(distributions()))}
print(*(f"{name}=={version}" for name, version in found.items()))
"""


def install(folder: Path) -> None:
    """Make the environments in ``folder`` that are not there yet; Triptych's as its users get it, without tools."""
    _install_triptych(folder / "triptych")
    for name, pinned in PEERS.items():
        place = folder / name
        if _imports(place, pinned):
            print(f"{name}: there already")
            continue
        if not (place / "bin" / "pip").exists():
            subprocess.run([sys.executable, "-m", "venv", place], check=True)
        constraints = folder / f"{name}.constraints.txt"
        constraints.write_text("\n".join((*pinned, *TORCH)) + "\n")
        command = [place / "bin" / "pip", "install", "--quiet", "--constraint", constraints]
        subprocess.run([*command, *pinned, *TORCH, *NEEDED], check=True)
        print(f"{name}: {', '.join(pinned)}")


def _install_triptych(place: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    if not (place / "bin" / "pip").exists():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
    command = [place / "bin" / "pip", "install", "--quiet", "--constraint", root / "constraints.txt"]
    subprocess.run([*command, "--editable", f"{root}[track]"], check=True)


def _imports(place: Path, pinned: tuple[str, ...]) -> bool:
    """Whether the environment holds exactly these versions, and what they need beside."""
    found = versions(place)
    wanted = dict(package.split("==") for package in (*pinned, *TORCH))
    # A build of torch may carry a suffix: 2.11.0+cpu.
    exact = all(found.get(name, "").split("+")[0] == version for name, version in wanted.items())
    return exact and all(name in found for name in NEEDED)


def versions(place: Path) -> dict[str, str]:
    """Version of each package of an environment; nothing if it is none."""
    python = place / "bin" / "python"
    if not python.exists():
        return {}
    printed = subprocess.run([python, "-c", VERSIONS], capture_output=True, text=True, check=True).stdout
    return dict(package.split("==") for package in printed.split())
