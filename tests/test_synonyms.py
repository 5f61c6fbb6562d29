"""Words of other tools in a native run file are answered with the setting that is meant."""

import pytest

from triptych.errors import ConfigError
from triptych.run import run_file
from triptych.run.settings import RunSettings
from triptych.run.settings.synonyms import SYNONYMS

LEAST = {"model": {"path": "m"}, "data": {"train": [{"path": "a.json"}]}, "batch": {"samples": 1}, "output": "o"}


def test_every_synonym_names_a_setting_that_there_is() -> None:
    for word, setting in SYNONYMS.items():
        group: object = RunSettings
        for name in setting.replace(".0", "").split("."):
            fields = getattr(group, "model_fields", None)
            if fields is None:
                break  # inside train.hf
            assert name in fields, (word, setting)
            annotation = fields[name].annotation
            group = next(
                (one for one in (annotation, *getattr(annotation, "__args__", ())) if isinstance(one, type)), 0
            )


@pytest.mark.parametrize(
    ("override", "setting"),
    [
        ("lr=1", "train.learning_rate"),
        ("train.lr=1", "train.learning_rate"),
        ("model.learning_rate=1", "train.learning_rate"),
        ("batch_size=1", "batch.samples"),
        ("train.batch_size=1", "batch.samples"),
        ("model_name_or_path=m", "model.path"),
        ("model.lora_rank=4", "model.lora.rank"),
        ("data.cutoff_len=4", "data.max_tokens"),
        ("data.image_max_pixels=4", "data.max_pixels"),
        ("num_train_epochs=4", "train.epochs"),
        ("epochs=4", "train.epochs"),
        ("output_dir=x", "output"),
        ("data.max_length=x", "data.max_tokens"),
    ],
)
def test_a_word_of_another_tool_is_answered_with_the_setting_meant(override: str, setting: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_file.from_mapping(LEAST, [override])
    assert str(caught.value).endswith(f"its name here is `{setting}`"), override
