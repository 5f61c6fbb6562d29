"""The files of ``serving/`` in an export: scripts that parse, a client whose messages are what training read."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import yaml
from jinja2 import Environment

import tiny
from triptych.exporting.serving.adapters import Adapters, read_adapters
from triptych.exporting.serving.kit import FILES, FOLDER, KitFacts, commands, fill_kit, write_kit
from triptych.exporting.serving.needs import ServingNeeds
from triptych.family.family import read_model_files
from triptych.run.prepare import prepare
from triptych.run.run_file import load
from triptych.terminal import Terminal

NAME = "it's a 模型"
LORA = Adapters("base dir", "runs/x/final", 12, True, None)
GREEDY = '{"temperature": 0.0, "repetition_penalty": 1.0}'


def facts(small_model_dir: Path, **changed: Any) -> KitFacts:
    files = read_model_files(str(small_model_dir))
    wanted = ServingNeeds(5, 150, 24, False, 4096, changed.pop("skip_thinking", False))
    return KitFacts(NAME, wanted, files.geometry, files.template().image_pad, **changed)


def arguments(folder: Path, server: str, **environment: str) -> list[str]:
    """What the script hands to a server, which only writes it down."""
    for name in ("vllm", "transformers"):
        path = folder / name
        path.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
        path.chmod(0o755)
    script = folder / FOLDER / "serve.sh"
    done = subprocess.run(
        [script, server, "--port", "8001"],
        env={"PATH": f"{folder}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


def test_scripts_parse_and_hand_on_the_numbers(small_model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    write_kit(folder, fill_kit(facts(small_model_dir, adapters=LORA, skip_thinking=True)))
    assert sorted(path.name for path in (folder / FOLDER).iterdir()) == sorted(FILES)
    for name in ("serve.sh", "gguf.sh"):
        subprocess.run(["bash", "-n", folder / FOLDER / name], check=True)
    served = arguments(folder, "vllm")
    assert served[:4] == ["serve", str(folder), "--served-model-name", NAME]
    assert served[-2:] == ["--port", "8001"]
    options = dict(zip(served[2::2], served[3::2], strict=False))
    assert options["--limit-mm-per-prompt"] == '{"image": 5, "video": 0}'
    assert (options["--max-model-len"], options["--override-generation-config"]) == ("174", GREEDY)
    assert options["--default-chat-template-kwargs"] == '{"enable_thinking": false}'
    assert "--allowed-local-media-path" not in served
    assert arguments(folder, "vllm", MEDIA="/some images")[-4:-2] == ["--allowed-local-media-path", "/some images"]
    expected = ["serve", str(folder), "--chat-template-kwargs", '{"enable_thinking": false}', "--port", "8001"]
    assert arguments(folder, "transformers") == expected
    unmerged = arguments(folder, "adapters", ADAPTERS="other/final")
    assert unmerged[:4] == ["serve", "base dir", "--lora-modules", f"{NAME}=other/final"]
    assert unmerged[unmerged.index("--max-lora-rank") + 1] == "16"
    assert {"--enable-lora", "--enable-tower-connector-lora", "--mm-processor-kwargs"} <= set(unmerged)
    wrong = subprocess.run([folder / FOLDER / "serve.sh", "other"], capture_output=True, text=True, check=False)
    assert (wrong.returncode, "vllm | transformers | adapters" in wrong.stderr) == (2, True)


def test_compose_file_and_recipes_parse(small_model_dir: Path) -> None:
    content = fill_kit(facts(small_model_dir))
    service = yaml.safe_load(content["compose.yaml"])["services"]["model"]
    assert service["command"][:3] == ["/model", "--served-model-name", NAME]
    assert service["command"][3:5] == ["--limit-mm-per-prompt", '{"image": 5, "video": 0}']
    for name in ("client.py", "quantize.py"):
        compile(content[name], name, "exec")
    assert "adapters)" not in content["serve.sh"]
    assert "num_ctx 174" in content["Modelfile"]
    for name in ("gguf.sh", "Modelfile", "quantize.py", "compose.yaml"):
        assert "not run" in content[name].lower(), name


def test_commands_name_what_serves_adapters_only_where_it_can(small_model_dir: Path) -> None:
    def shown(adapters: Adapters | None) -> list[str]:
        return commands("out", facts(small_model_dir, adapters=adapters))

    assert [shlex.split(command)[0] for command in shown(LORA)] == ["vllm", "transformers", "vllm", "triptych"]
    refused = Adapters("base", "final", 8, False, "vLLM does not serve DoRA unmerged.")
    assert len(shown(refused)) == len(shown(None)) == 3
    script = fill_kit(facts(small_model_dir, adapters=refused))["serve.sh"]
    assert "does not serve DoRA" in script
    assert "adapters)" not in script


def test_adapters_are_read_from_their_files(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    assert read_adapters(tmp_path, "base") is None
    names = {"base_model.model.model.visual.blocks.0.attn.qkv.lora_A.weight": torch.zeros(1)}
    save_file(names, tmp_path / "adapter_model.safetensors")
    for config, rank, obstacle in (
        ({"r": 4}, 8, None),
        ({"r": 4, "rank_pattern": {"q_proj": 20}}, 32, None),
        ({"r": 4, "use_dora": True}, 8, "DoRA"),
        ({"r": 4, "modules_to_save": ["merger"]}, 8, "in full"),
        ({"r": 4, "target_parameters": ["experts.down_proj"]}, 8, "experts"),
        ({"r": 600}, 600, "up to rank 512"),
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        found = read_adapters(tmp_path, "base")
        assert found is not None
        assert (found.max_rank, found.tower) == (rank, True), config
        assert (found.obstacle is None) if obstacle is None else obstacle in str(found.obstacle), config


def test_messages_of_the_client_are_what_training_read(small_model_dir: Path, tmp_path: Path) -> None:
    texts = ["A: <image> B: <image>\nWhich is larger?", "<image><image>Compare.", "No image?"]
    data = tiny.write_dataset(tmp_path, 1)
    images = sorted((tmp_path / "images").glob("*"))[:2]
    assert len(images) == 2
    names = [str(path) for path in images]
    records = [tiny.record(names if "<image>" in text else [], text, "Yes.") for text in texts]
    data.write_text(json.dumps(records))
    prepared = prepare(load(tiny.write_run(tmp_path, small_model_dir, data)), ("train",), Terminal())
    template, corpus = prepared.encoder.template, prepared.corpora["train"]
    path = tmp_path / "client.py"
    path.write_text(fill_kit(facts(small_model_dir))["client.py"])
    spec = spec_from_file_location("client", path)
    assert spec is not None
    assert spec.loader is not None
    client = module_from_spec(spec)
    spec.loader.exec_module(client)
    jinja = Environment().from_string(prepared.files.chat_template.source)
    for index, text in enumerate([*texts, "Compare."]):
        shown = names if "No image" not in text else []
        asked = client.messages(text, shown)
        for part in asked[0]["content"]:
            part["type"] = part["type"].removesuffix("_url")  # as servers hand it to the template
        rendered = jinja.render(messages=asked, add_generation_prompt=True)
        number = index if index < len(texts) else 1  # without marks, images come first
        assert rendered == template.text(template.split_answer(corpus.encoded(number))[0]), text
    (part,) = client.content("<image>", [names[0]], as_file=True)
    assert part["image_url"]["url"] == Path(names[0]).as_uri()
    with pytest.raises(SystemExit, match="2 <image> marks, for 1 images"):
        client.messages(texts[0], names[:1])


def test_gguf_script_needs_llama_cpp(small_model_dir: Path, tmp_path: Path) -> None:
    write_kit(tmp_path, fill_kit(facts(small_model_dir)))
    bash = shutil.which("bash")
    assert bash is not None
    done = subprocess.run([bash, tmp_path / FOLDER / "gguf.sh"], env={}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "LLAMA_CPP" in done.stderr
