"""An exported folder is the trained model, in every tensor and in what it says; what is not so does not pass."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import tiny
from triptych import cli
from triptych.cli import main
from triptych.errors import ConfigError, ModelError
from triptych.exporting.claims import PROOF, ProofError, check_logits, check_names
from triptych.exporting.export import ExportOptions, export
from triptych.exporting.hub import check_push
from triptych.exporting.proof_samples import ProofSamples
from triptych.exporting.serving import commands, notes
from triptych.exporting.serving.needs import demands
from triptych.exporting.trained_run import TrainedRun, open_run
from triptych.inference.answering import PromptDataset
from triptych.inference.evaluate import evaluate
from triptych.inference.generate import Prompt, answer
from triptych.model.loading import PixelNormalizer
from triptych.model.trained import as_trained, load_trained, merged
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal
from triptych.training.train import train

# peft 0.21 still reads the attribute that transformers 5.23 renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

RUNS: dict[str, dict[str, Any]] = {
    "full": {"freeze": ["vision"]},
    "lora": {"train": "lora", "freeze": ["vision"], "lora": {"rank": 4, "alpha": 64, "dropout": 0.1}},
    "mixed": {"train": "lora", "freeze": ["vision"], "full": ["merger"], "lora": {"rank": 4, "rslora": True}},
}
ALONE = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

def say(folder, pieces, paths):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    content = []
    for number, piece in enumerate(pieces):
        content += [{"type": "image"}] * bool(number) + [{"type": "text", "text": piece}] * bool(piece)
    turns = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    images = processor(images=[Image.open(path).convert("RGB") for path in paths], return_tensors="pt")
    for grid in images["image_grid_thw"]:
        text = text.replace("<|image_pad|>", "<|pad|>" * int(grid.prod() // 4), 1)
    ids = tokenizer(text.replace("<|pad|>", "<|image_pad|>"), return_tensors="pt")
    types = (ids["input_ids"] == model.config.image_token_id).int()
    inputs = {**ids, **images, "mm_token_type_ids": types}
    with torch.inference_mode():
        logits = model(**inputs).logits[0, -1].float()
        written = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1]:]
    return logits.tolist(), tokenizer.decode(written, skip_special_tokens=True)

asked = json.loads(sys.argv[1])
print(json.dumps({folder: say(folder, asked["pieces"], asked["paths"]) for folder in asked["folders"]}))
assert not [name for name in sys.modules if name.startswith("triptych")]
"""


@dataclass
class Exported:
    """A run of each kind, trained, evaluated and exported in float32."""

    final: Path
    out: Path
    run: TrainedRun


@pytest.fixture(scope="module")
def exported(small_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    found = {}
    for kind, model in RUNS.items():
        folder = tmp_path_factory.mktemp(kind)
        data = tiny.write_dataset(folder, 8)
        held_out = tiny.write_dataset(folder, 5, seed=3, name="held.json", max_images=3)
        sources = {"eval": [{"path": str(held_out)}], "max_pixels": 6400}
        optimisation = {"warmup": 0, "learning_rate": 2e-3, "epochs": 2}
        path = tiny.write_run(
            folder, small_model_dir, data, model=model, data=sources, train=optimisation, eval={"max_new_tokens": 8}
        )
        settings, out = load(path), Terminal()
        prepared = prepare(settings, ("train", "eval"), out)
        final = train(settings, prepared, out)
        evaluate(settings, prepared, final, out)
        export(final, folder / "out", out, ExportOptions(dtype="float32"))
        found[kind] = Exported(final, folder / "out", open_run(final, out))
    return found


@pytest.fixture
def copies(exported: dict[str, Exported], tmp_path: Path) -> dict[str, Path]:
    """Folders that a test may damage."""
    return {kind: Path(shutil.copytree(item.out, tmp_path / kind)) for kind, item in exported.items()}


def change(folder: Path, name: str, edit: Any) -> None:
    """Rewrite a weight file with one tensor changed; None removes it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edited = edit(tensors.pop(name).clone())
    if edited is not None:
        tensors[name] = edited
    save_file(tensors, path, metadata={"format": "pt"})


def nudge(tensor: torch.Tensor) -> torch.Tensor:
    """One value, by one unit in the last place."""
    tensor.view(torch.int32).flatten()[7] += 1
    return tensor


def check(item: Exported, out: Path) -> None:
    export(item.final, out, Terminal(), ExportOptions(check=True))


LAYER = "model.layers.1.mlp.down_proj.weight"


def test_transformers_alone_says_what_the_trained_model_says(exported: dict[str, Exported]) -> None:
    corpus, template = exported["full"].run.witnesses, exported["full"].run.files.template()
    index = next(index for index in range(len(corpus)) if corpus.image_counts[index] > 1 and index % 3)
    record = json.loads((exported["full"].out.parent / "held.json").read_text())[index]
    asked = {
        "pieces": record["conversations"][0]["value"].split("<image>"),
        "paths": [image.location for image in corpus.images(index)],
        "folders": [str(item.out) for item in exported.values()],
    }
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(asked)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    alone = json.loads(done.stdout.splitlines()[-1])
    for item in exported.values():
        prompt = PromptDataset(corpus, template, [index])[0]
        assert isinstance(prompt, Prompt)
        run, normalizer = item.run, PixelNormalizer(item.run.files)
        model = as_trained(run.settings.model, item.final, run.files.family, torch.float32)
        (written,) = answer(model, [prompt], template, normalizer, max_new_tokens=8)  # type: ignore[arg-type]
        with torch.inference_mode():
            logits = model(
                input_ids=torch.from_numpy(prompt.layout.input_ids)[None],
                position_ids=torch.from_numpy(prompt.layout.position_ids)[:, None],
                pixel_values=normalizer(torch.from_numpy(prompt.pixels)),
                image_grid_thw=torch.from_numpy(prompt.layout.grids),
            ).logits[0, -1]
        found, text = alone[str(item.out)]
        torch.testing.assert_close(torch.tensor(found), logits, atol=1e-4, rtol=0)
        assert text == template.decode(written.ids)


@pytest.mark.parametrize("kind", RUNS)
def test_what_is_proved_is_written_down(exported: dict[str, Exported], kind: str) -> None:
    found = json.loads((exported[kind].out / PROOF).read_text())
    assert found["holds"]
    assert [step["claim"] for step in found["steps"]] == [
        "names",
        "reading",
        "stopping",
        "weights",
        "changes",
        "merge",
        "logits",
        "answer",
    ]
    changed = {part["part"]: part["changed"] for part in found["parts"]}
    assert changed["vision"] == 0
    assert found["parts"][0]["frozen"] == found["parts"][0]["tensors"] > 0
    assert changed["merger"] > 0
    assert changed["language"] > 0
    assert len(found["samples"]) == 4
    assert all("held.json" in sample["origin"] for sample in found["samples"]), "held-out samples, where there are any"
    assert all(sample["difference"] <= found["tolerance"] < 1e-3 for sample in found["samples"])
    base = load_file(Path(found["base"]) / "model.safetensors")
    saved = load_file(exported[kind].out / "model.safetensors")
    differ = [name for name in base if not torch.equal(base[name], saved[name])]
    assert len(differ) == sum(changed.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", RUNS)
def test_a_half_precision_export_holds_what_rounding_once_gives(
    exported: dict[str, Exported], kind: str, dtype: str, tmp_path: Path
) -> None:
    proof = export(exported[kind].final, tmp_path / "out", Terminal(), ExportOptions(dtype=dtype, samples=2))
    assert proof.holds
    whole = load_file(exported[kind].out / "model.safetensors")
    half = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(half[name], whole[name].to(getattr(torch, dtype))) for name in whole)
    assert 1e-3 < (proof.tolerance or 0) < 1
    content = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {content["dtype"], content["text_config"]["dtype"], content["vision_config"]["dtype"]} == {dtype}


OTHERS: dict[str, tuple[str, dict[str, Any], int]] = {
    "dora": ("qwen2_vl", {"train": "lora", "freeze": ["vision"], "lora": {"rank": 4, "dora": True}}, 1),
    "layers": ("qwen2_vl", {"freeze": ["vision", "language[:1]"]}, 2),
    "embedding": ("qwen2_vl", {"train": "lora", "freeze": ["vision"], "full": ["language[:0]"]}, 1),
    "experts": ("qwen3_vl_moe", {"train": "lora", "freeze": ["vision"], "lora": {"rank": 4, "experts": True}}, 1),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_every_way_to_train_is_exported(kind: str, tmp_path: Path) -> None:
    family, settings, frozen_parts = OTHERS[kind]
    model = tiny.write_model(tmp_path / "model", family=family, max_pixels=84 * 84 if family == "qwen2_vl" else 96 * 96)
    data = tiny.write_dataset(tmp_path, 4)
    path = tiny.write_run(tmp_path, model, data, model=settings, train={"warmup": 0}, eval={"max_new_tokens": 4})
    read = load(path)
    final = train(read, prepare(read, ("train",), Terminal()), Terminal())
    proof = export(final, tmp_path / "out", Terminal(), ExportOptions(dtype="float32", samples=2))
    assert proof.holds
    assert sum(part.frozen > 0 for part in proof.parts) == frozen_parts
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert len(changed) == sum(part.changed for part in proof.parts)
    if kind == "embedding":
        assert "model.embed_tokens.weight" in changed
    if kind == "experts":
        assert any(".experts." in name for name in changed)
    if kind == "layers":
        assert not [name for name in changed if name.startswith(("model.embed_tokens", "model.layers.0."))]


@pytest.mark.parametrize("family", ["qwen3_vl_moe", "qwen3_5"])
def test_other_families_are_exported_alike(family: str, tmp_path: Path) -> None:
    model = tiny.write_model(tmp_path / "model", family=family, max_pixels=96 * 96)
    data = tiny.write_dataset(tmp_path, 4)
    path = tiny.write_run(tmp_path, model, data, model=RUNS["lora"], train={"warmup": 0}, eval={"max_new_tokens": 4})
    settings = load(path)
    final = train(settings, prepare(settings, ("train",), Terminal()), Terminal())
    assert export(final, tmp_path / "out", Terminal(), ExportOptions(samples=2)).holds


def test_an_untouched_export_passes_the_check_and_stays_as_it_is(exported: dict[str, Exported]) -> None:
    item = exported["lora"]

    def content() -> dict[Path, tuple[bytes, int]]:
        found = (path for path in item.out.rglob("*") if path.is_file())
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}

    before = content()
    check(item, item.out)
    assert before == content()


@pytest.mark.parametrize("kind", RUNS)
def test_one_value_off_by_one_in_its_last_place_fails_the_check(
    exported: dict[str, Exported], copies: dict[str, Path], kind: str
) -> None:
    change(copies[kind], LAYER, nudge)
    with pytest.raises(ProofError, match=r"weights: model\.language_model\.layers\.1\.mlp\.down_proj\.weight: 1 of"):
        check(exported[kind], copies[kind])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda _: None, f"{LAYER} is in the base and missing"),
        (lambda tensor: tensor[:, 1:].clone(), f"{LAYER}: shape"),
        (lambda tensor: tensor.to(torch.bfloat16), "read back as|differ from the merged"),
    ],
    ids=["missing", "shape", "precision"],
)
def test_tensors_that_are_missing_or_of_another_kind_fail_the_check(
    exported: dict[str, Exported], copies: dict[str, Path], edit: Any, message: str
) -> None:
    change(copies["full"], LAYER, edit)
    with pytest.raises(ProofError, match=message):
        check(exported["full"], copies["full"])


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("preprocessor_config.json", lambda text: text.replace("6400", "7056"), "images are cut otherwise"),
        ("preprocessor_config.json", lambda text: text.replace("0.48145466", "0.5"), "normalised otherwise"),
        ("tokenizer.json", lambda text: text.replace("\n", "\n ", 1), "tokenizer or the chat template"),
        ("chat_template.jinja", lambda text: text.replace("helpful", "hopeful"), "tokenizer or the chat template"),
        ("model.safetensors", lambda text: text[:-100], "cannot read the weights"),
    ],
    ids=["limits", "mean", "tokenizer", "template", "cut off"],
)
def test_files_that_would_make_something_else_of_samples_fail_the_check(
    exported: dict[str, Exported], copies: dict[str, Path], name: str, edit: Any, message: str
) -> None:
    path = copies["full"] / name
    before = path.read_bytes().decode("latin-1")
    path.write_bytes(edit(before).encode("latin-1"))
    assert path.read_bytes().decode("latin-1") != before
    with pytest.raises((ProofError, ModelError), match=message):
        check(exported["full"], copies["full"])


def test_a_tensor_that_the_base_does_not_have_fails_the_check(
    exported: dict[str, Exported], copies: dict[str, Path]
) -> None:
    path = copies["full"] / "model.safetensors"
    save_file({**load_file(path), "model.extra": torch.zeros(2)}, path, metadata={"format": "pt"})
    with pytest.raises(ProofError, match=r"model\.extra is in the export and not in the base"):
        check(exported["full"], copies["full"])


def test_a_head_tied_to_the_embedding_may_be_stored_or_not(
    exported: dict[str, Exported], copies: dict[str, Path]
) -> None:
    item = exported["full"]
    model = merged(item.run.settings.model, item.final, torch.float32)
    path = copies["full"] / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    assert "names and shapes" in check_names(item.run.base, copies["full"], model)
    assert "names and shapes" in check_names(copies["full"], item.out, model)
    model.config.tie_word_embeddings = False
    with pytest.raises(ProofError, match=r"lm_head\.weight"):
        check_names(item.run.base, copies["full"], model)


def test_a_frozen_part_that_changed_fails(exported: dict[str, Exported], tmp_path: Path) -> None:
    final = Path(shutil.copytree(exported["full"].final, tmp_path / "final"))
    change(final, "visual.blocks.0.attn.qkv.weight", nudge)
    with pytest.raises(
        ProofError, match=r"changes: model\.visual\.blocks\.0\.attn\.qkv\.weight changed.* it was frozen"
    ):
        export(final, tmp_path / "out", Terminal())
    proof = json.loads((tmp_path / "out" / PROOF).read_text())
    assert not proof["holds"]
    assert not (tmp_path / "out" / "README.md").exists()


def test_a_model_that_learned_nothing_fails(
    exported: dict[str, Exported], small_model_dir: Path, tmp_path: Path
) -> None:
    final = Path(shutil.copytree(exported["full"].final, tmp_path / "final"))
    shutil.copyfile(small_model_dir / "model.safetensors", final / "model.safetensors")
    with pytest.raises(ProofError, match="no tensor differs from the base"):
        export(final, tmp_path / "out", Terminal())


def test_logits_tell_a_wrong_weight_from_rounding(exported: dict[str, Exported]) -> None:
    """The claim about logits stands alone: it also catches weights that were merged wrongly before they were saved."""
    item = exported["lora"]
    run, settings = item.run, item.run.settings.model
    template, device = run.files.template(), torch.device("cpu")
    witness = ProofSamples(run.witnesses, template, run.files, samples=3, max_new_tokens=4, device=device)
    expected = witness.expected(settings, item.final, run.files, torch.float32, torch.float32)
    model = merged(settings, item.final, torch.float32)
    right = witness.logits(model)
    check_logits(expected, right, right)
    weight = model.get_parameter("model.language_model.layers.1.mlp.down_proj.weight")
    weight.data[3, 5] += 0.01
    wrong = witness.logits(model)
    with pytest.raises(ProofError, match="differs from the trainer's model by"):
        check_logits(expected, wrong, wrong)
    with pytest.raises(ProofError, match="differ from the merged ones"):
        check_logits(expected, right, wrong)
    with pytest.raises(ProofError):
        check_logits(expected, right, [logits * float("nan") for logits in right])


def test_a_merge_that_is_slightly_wrong_fails_though_every_file_holds_what_was_merged(
    exported: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any) -> Any:
        model = merged(*args)
        name = next(name for name, _ in model.named_parameters() if name.endswith("down_proj.weight"))
        model.get_parameter(name).data *= 1.002  # less than bfloat16 can tell from rounding
        return model

    export(exported["lora"].final, tmp_path / "right", Terminal(), ExportOptions(dtype="bfloat16"))
    monkeypatch.setattr("triptych.exporting.export.merged", wrong)
    with pytest.raises(ProofError, match=r"merge: .*merged in float32, a logit differs"):
        export(exported["lora"].final, tmp_path / "wrong", Terminal(), ExportOptions(dtype="bfloat16"))
    steps = json.loads((tmp_path / "wrong" / PROOF).read_text())["steps"]
    assert [step["holds"] for step in steps] == [True] * 5 + [False]


def test_the_command_exits_with_1_and_names_the_tensor(
    exported: dict[str, Exported],
    copies: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(copies["lora"], LAYER, nudge)
    final = str(exported["lora"].final)
    monkeypatch.setattr(sys, "argv", ["triptych", "export", final, "--to", str(copies["lora"]), "--check"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 1
    assert "layers.1.mlp.down_proj.weight: 1 of" in capsys.readouterr().err


def test_the_card_holds_the_numbers_of_the_run(exported: dict[str, Exported]) -> None:
    item = exported["lora"]
    card = (item.out / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    content = yaml.safe_load(front)
    assert content["pipeline_tag"] == "image-text-to-text"
    assert content["library_name"] == "transformers"
    assert {"triptych", "lora", "qwen2-vl"} <= set(content["tags"])
    assert "base_model" not in content, "a folder has no name on the hub"
    corpus = item.run.corpora["train"]
    row = f"| train | 8 | {corpus.image_counts.sum()} | {corpus.image_counts.max()} | {corpus.lengths.tokens.sum():,} |"
    assert row in text
    assert "| optimizer steps | 4 |" in text
    assert "| peak learning rate | 0.002, cosine |" in text
    assert "rank 4, alpha 64" in text
    scores = json.loads((item.final.parent / "eval" / "final" / "scores.json").read_text())
    assert f"| all | 5 | {100 * scores['all']['exact_match']:.1f}% |" in text
    longest = max(int(split.lengths.tokens.max()) for split in item.run.corpora.values())
    most = max(int(split.image_counts.max()) for split in item.run.corpora.values())
    assert f"--max-model-len {longest + 8} " in text
    assert f'--limit-mm-per-prompt \'{{"image": {most}, "video": 0}}\'' in text
    assert "(3,136 to 6,400 px per image)" in text
    assert text.rstrip().endswith("```")
    assert yaml.safe_load(text.rpartition("```yaml\n")[2].rstrip("`\n")) == yaml.safe_load(
        (item.final / "run.yaml").read_text()
    )


def test_a_server_is_given_room_for_images_that_only_training_made_smaller(exported: dict[str, Exported]) -> None:
    run = exported["full"].run
    options = {"new_tokens": 10}
    plain = demands(
        run.corpora.values(),
        run.files.template(),
        run.geometry,
        run.files.shapes.language.positions,
        shrunk=False,
        **options,
    )
    assert plain.tokens == max(int(corpus.lengths.tokens.max()) for corpus in run.corpora.values())
    shrunk = demands(
        run.corpora.values(),
        run.files.template(),
        run.geometry,
        run.files.shapes.language.positions,
        shrunk=True,
        **options,
    )
    assert shrunk.tokens > plain.tokens
    assert any("made smaller" in note for note in notes.notes(shrunk, run.geometry))
    assert not any("made smaller" in note for note in notes.notes(plain, run.geometry))
    tight = demands(run.corpora.values(), run.files.template(), run.geometry, 50, shrunk=False, **options)
    assert "--max-model-len 50" in commands.vllm("a folder", tight)
    assert "'a folder'" in commands.vllm("a folder", tight)


class FakeHub:
    """Remembers what a client of the hub would have done."""

    def __init__(self, *, private: bool = True) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.private = private

    def create_repo(self, name: str, **options: Any) -> None:
        self.calls.append(("create", (name, options)))

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", (options, sorted(path.name for path in Path(options["folder_path"]).iterdir()))))

    def repo_info(self, _: str, **__: Any) -> FakeHub:
        return self


def test_only_a_proved_folder_is_uploaded_and_as_a_private_one(
    exported: dict[str, Exported], copies: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    item, hub = exported["full"], FakeHub()
    export(item.final, copies["full"], Terminal(), ExportOptions(check=True, push=check_push("someone/digits", hub)))
    (create, (name, options)), (upload, (sent, files)) = hub.calls
    assert (create, name, options["private"], options["exist_ok"]) == ("create", "someone/digits", True, True)
    assert (upload, sent["repo_id"], sent["folder_path"]) == ("upload", "someone/digits", str(copies["full"]))
    assert {"README.md", "model.safetensors", "config.json", PROOF, "tokenizer.json"} <= set(files)
    assert "https://huggingface.co/someone/digits (private)" in capsys.readouterr().err
    change(copies["full"], LAYER, nudge)
    damaged = FakeHub()
    with pytest.raises(ProofError):
        export(
            item.final,
            copies["full"],
            Terminal(),
            ExportOptions(check=True, push=check_push("someone/digits", damaged)),
        )
    assert not damaged.calls


def test_an_upload_that_cannot_work_is_refused_before_the_work(
    exported: dict[str, Exported], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    def push(name: str) -> None:
        final, out = str(exported["full"].final), str(tmp_path / "out")
        monkeypatch.setattr("sys.argv", ["triptych", "export", final, "--to", out, "--push", name])
        with pytest.raises(SystemExit, match="1"):
            main()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # whatever the machine says
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    push("someone/digits")
    assert "hf auth login" in capsys.readouterr().err
    push("digits")
    assert "USER/NAME" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_a")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    push("someone/digits")
    assert "HF_HUB_OFFLINE" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_says_what_to_do(exported: dict[str, Exported], tmp_path: Path) -> None:
    item = exported["full"]
    with pytest.raises(ConfigError, match="not empty"):
        export(item.final, item.out, Terminal())
    with pytest.raises(ConfigError, match=r"no run\.yaml"):
        export(item.run.base, tmp_path / "out", Terminal())
    with pytest.raises(ConfigError, match="holds no exported model"):
        export(item.final, tmp_path / "nowhere", Terminal(), ExportOptions(check=True))


@pytest.mark.parametrize("thoughtful", [False, True])
def test_a_server_is_told_to_leave_thinking_out_where_no_learned_answer_thinks(
    tmp_path: Path, thoughtful: bool
) -> None:
    model = tiny.write_model(tmp_path / "model", family="qwen3_5", max_pixels=96 * 96)
    answers = ["Yes.", "<think>\nSo.\n</think>\n\nNo." if thoughtful else "No."]
    data = tmp_path / "data.json"
    data.write_text(json.dumps([tiny.record([], "?", answer) for answer in answers]))
    settings = load(tiny.write_run(tmp_path, model, data))
    prepared = prepare(settings, ("train",), Terminal())
    files = prepared.files
    wanted = demands(
        prepared.corpora.values(),
        files.template(),
        files.geometry,
        files.shapes.language.positions,
        new_tokens=8,
        shrunk=False,
    )
    told = "--default-chat-template-kwargs '{\"enable_thinking\": false}'" in commands.vllm("out", wanted)
    assert told is not thoughtful
    assert commands.chat("out", wanted).endswith("--no-thinking") is not thoughtful
    assert any("enable_thinking" in note for note in notes.notes(wanted, files.geometry)) is not thoughtful


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_eval_and_chat_score_the_weights_that_export_ships(exported: dict[str, Exported], dtype: torch.dtype) -> None:
    item = exported["lora"]
    scored = load_trained(item.run.settings.model, item.final, dtype).state_dict()
    shipped = merged(item.run.settings.model, item.final, dtype).state_dict()
    assert scored.keys() == shipped.keys()
    for name, value in shipped.items():
        assert torch.equal(scored[name], value), name
    if dtype == torch.float32:
        written = load_file(item.out / "model.safetensors")
        assert all(torch.equal(scored[name], value) for name, value in written.items() if name in scored)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"peft_type": "LORA", "r": "x"}'])
def test_a_damaged_adapter_config_is_one_sentence(exported: dict[str, Exported], tmp_path: Path, content: str) -> None:
    item = exported["lora"]
    final = Path(shutil.copytree(item.final, tmp_path / "final"))
    (final / "adapter_config.json").write_text(content, encoding="utf-8")
    for load_it in (load_trained, merged):
        with pytest.raises(ModelError, match=r"adapter_config\.json"):
            load_it(item.run.settings.model, final, torch.float32)
