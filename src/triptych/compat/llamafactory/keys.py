"""All rows of the table."""

from __future__ import annotations

from triptych.compat.llamafactory.data_keys import DATA
from triptych.compat.llamafactory.key import Key, Rows
from triptych.compat.llamafactory.method_keys import GENERATION, METHOD
from triptych.compat.llamafactory.model_keys import MODEL
from triptych.compat.llamafactory.trainer_keys import TRAINER

TABLES: dict[str, Rows] = {
    "Data": DATA,
    "Model, images, export": MODEL,
    "Method": METHOD,
    "Training": TRAINER,
    "Answers": GENERATION,
}
"""By the headings of docs/migrating.md."""

KEYS: dict[str, Key] = {name: key for rows in TABLES.values() for name, key in rows.items()}
