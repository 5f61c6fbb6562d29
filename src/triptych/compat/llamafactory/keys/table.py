"""All rows of the table."""

from __future__ import annotations

from triptych.compat.llamafactory.keys.data import DATA
from triptych.compat.llamafactory.keys.key import Key, Rows
from triptych.compat.llamafactory.keys.method import GENERATION, METHOD
from triptych.compat.llamafactory.keys.model import MODEL
from triptych.compat.llamafactory.keys.trainer import TRAINER

TABLES: dict[str, Rows] = {
    "Data": DATA,
    "Model, images, export": MODEL,
    "Method": METHOD,
    "Training": TRAINER,
    "Answers": GENERATION,
}
"""By the headings of docs/llamafactory-keys.md."""

KEYS: dict[str, Key] = {name: key for rows in TABLES.values() for name, key in rows.items()}
