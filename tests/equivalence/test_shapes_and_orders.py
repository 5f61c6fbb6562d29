"""Every shape and order of turns gives the ids of the family's own chat template, or a refusal where it has none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import families
from equivalence import oracle
from triptych.errors import Origin
from triptych.family.family import read_model_files
from triptych.sources.records import Record, Source
from triptych.text.conversation import parse
from triptych.text.tokens.chat_template import ORDERS, orders

sys.path.append(str(Path(__file__).parents[1] / "data"))
from test_format_page import READ, settings

TEXTS = ["One Two Three Four Five Six image old no yes the a system user assistant"] * 20


@pytest.fixture(scope="module", params=sorted(families.ARCHITECTURES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each family, under its released chat template."""
    path = tmp_path_factory.mktemp("orders") / "model"
    limits = {"shortest_edge": 3136, "longest_edge": 200_000}
    families.write_family(path, request.param, TEXTS, seed=0, limits=limits)
    return path


# What fills `<bbox>` depends on the sizes of images, and tools on the template: see test_boxes.py and test_tools.py.
PLAIN = [row for row in READ if not any(f'"{key}"' in row[1] for key in ("objects", "tools", "reasoning_content"))]


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row[0])
def test_every_shape_has_the_ids_of_the_chat_template(model_dir: Path, row: list[str]) -> None:
    source = Source("x", **settings(row[2] if len(row) > 2 else ""))
    conversation = parse(Record(json.loads(row[1].strip("`")), Origin("x", 1)), source)
    turns = [
        (turn.role, "".join(part if isinstance(part, str) else oracle.MARK for part in turn.parts))
        for turn in conversation.turns
    ]
    ids = read_model_files(str(model_dir)).template().encode(conversation).ids.tolist()
    assert ids == oracle.whole_ids(model_dir, turns, [1] * len(conversation.images))


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_of_turns_is_rendered_as_the_chat_template_does_or_refused(folder: Path, order: str) -> None:
    template = read_model_files(str(folder)).template()
    probe = ORDERS[order]
    assert orders([role for role, _ in probe]) == [order]
    data: dict[str, Any] = {"messages": [{"role": role, "content": text} for role, text in probe]}
    data["images"] = ["a.png"] * sum(text.count(oracle.MARK) for _, text in probe)
    conversation = parse(Record(data, Origin("x", 1)), Source("x", roles="keep"))
    refusal = template.refusal(conversation)
    if refusal is None:
        assert template.text(template.encode(conversation)) == oracle.rendered(folder, probe)
    else:
        assert order in refusal[1]
        try:
            rendered = oracle.rendered(folder, probe)
        except Exception:  # the template's own refusal
            return
        assert rendered != template.text(template.encode(conversation))
