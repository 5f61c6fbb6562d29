"""The command line. Commands import what they need when they run, so that ``--help`` and ``check`` start at once."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal

import typer

from triptych import __version__
from triptych.commands.options import SourceOptions, takes_source
from triptych.errors import ConfigError, TriptychError
from triptych.run.environment import wait_asleep

app = typer.Typer(
    name="triptych",
    help="Fine-tune Qwen-VL models on samples with several images. The plan is exact before any pixel is decoded.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)


FIRST = """\
triptych quickstart                             try it: train a tiny model in minutes, on a CPU
triptych init --data train.json --model MODEL   your data: write a run file that fits
triptych train run.yaml                         train
triptych chat runs/first/final --image a.jpg    ask the result

`triptych --help` lists all commands, `triptych COMMAND --help` what one takes."""

EXAMPLES = {
    "init": "triptych init --data data/train.json --model Qwen/Qwen3-VL-4B-Instruct --gpu 24GB",
    "check": "triptych check data/train.json --media-dir data/images --columns images=photos",
    "inspect": "triptych inspect run.yaml --html inspection.html",
    "plan": "triptych plan run.yaml --gpu 24GB train.gradient_checkpointing=true",
    "train": "triptych train run.yaml train.epochs=2; several GPUs: accelerate launch -m triptych train run.yaml",
    "eval": "triptych eval run.yaml eval.limit=200",
    "report": "triptych report runs/first runs/second --html comparison.html",
    "export": "triptych export runs/first/final --to models/first",
    "chat": "triptych chat models/first --image left.jpg --image right.jpg",
    "index": "triptych index run.yaml --workers 16",
    "encode": "triptych encode data/train.json --model Qwen/Qwen3-VL-4B-Instruct --out encoded.jsonl",
    "convert": "triptych convert data/*.parquet --to plain.jsonl --columns images=photos",
    "quickstart": "triptych quickstart --out quickstart",
    "examples": "triptych examples --to runs",
    "cache": "triptych cache --prune 30",
}


def _example(command: str) -> str:
    return f"Example: {EXAMPLES[command]}"


def _print_version(asked: bool) -> None:
    if asked:
        print(f"triptych {__version__}")
        raise typer.Exit


def _say_untried() -> None:
    """One line on standard error if a package lies outside the range that the tests passed with."""
    from triptych.run.versions import untried_line

    line = untried_line()
    if line is not None and os.environ.get("RANK", "0") == "0":
        print(f"triptych: {line}", file=sys.stderr)


DataArgument = Annotated[
    list[str], typer.Argument(metavar="RUN.yaml | DATA...", help="A run file, or data files and globs.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key=value ...]", help="Settings to change, e.g. train.epochs=3.")
]

Near = Annotated[
    bool, typer.Option("--near", help="Also find images that look the same: decodes each once, small and grey.")
]


@app.callback()
def options(
    context: typer.Context,
    _: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Fine-tune Qwen-VL models on samples with several images. The plan is exact before any pixel is decoded."""
    if context.invoked_subcommand is None:
        print(FIRST)


@app.command(epilog=_example("quickstart"))
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("quickstart"),
) -> None:
    """Write the embedded data, train the embedded tiny model on it, evaluate before and after, show."""
    _say_untried()
    from triptych.quickstart.run import run

    run(out)


@app.command(epilog=_example("init"))
def init(
    data: Annotated[list[str], typer.Option("--data", metavar="FILE", help="Data file or glob; repeat for several.")],
    model: Annotated[str | None, typer.Option(help="Model folder or hub name; asked for if left out.")] = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="24GB", help="GPU to fit; default: the one here, or asked for.")
    ] = None,
    media_dir: Annotated[str | None, typer.Option(help="Folder of the images; default: searched for.")] = None,
    held_out: Annotated[
        str | None, typer.Option("--eval", metavar="FILE", help="Held-out data; default: a val or test file beside it.")
    ] = None,
    method: Annotated[Literal["full", "lora", "qlora"] | None, typer.Option(help="Default: what fits.")] = None,
    out: Annotated[Path, typer.Option(help="Run file to write.")] = Path("run.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite the run file.")] = False,
) -> None:
    """Look at your data and write a run file that fits it, the model and the GPU."""
    from triptych.first_run.init import InitOptions
    from triptych.first_run.init import init as run_init

    raise typer.Exit(run_init(data, InitOptions(model, media_dir, held_out, gpu, method, out, force)))


@app.command(epilog=_example("examples"))
def examples(
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Write them there; default: list them.")] = None,
) -> None:
    """List the example run files that come with Triptych, or write them to a folder."""
    from triptych.first_run.examples import examples as run_examples

    run_examples(to)


@app.command(epilog=_example("check"))
@takes_source
def check(
    data: DataArgument,
    source: SourceOptions,
    deep: Annotated[
        bool, typer.Option("--deep", help="Decode every image once, not only its header; remembered until it changes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Print every problem, not only some of each code.")] = False,
    near: Near = False,
) -> None:
    """Examine every record and every image header; exit 1 and show the problems if there are any."""
    from triptych.commands.check import check as run_check

    raise typer.Exit(run_check(data, source=source, as_json=as_json, everything=everything, deep=deep, near=near))


@app.command(epilog=_example("inspect"))
@takes_source
def inspect(
    data: DataArgument,
    source: SourceOptions,
    model: Annotated[str | None, typer.Option(help="Model of data files; a run file names its own.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with the images.")] = None,
    only: Annotated[
        str | None, typer.Option(metavar="KIND", help="leak, shrunk, longest, task=NAME, or the code of a problem.")
    ] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Show this sample as the model sees it.")] = None,
    near: Near = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Show what is in the data, what the limits do to it, what comes twice, and each sample as the model sees it."""
    from triptych.commands.pages import InspectOptions
    from triptych.commands.pages import inspect as run_inspection

    raise typer.Exit(run_inspection(data, source, InspectOptions(model, html, only, sample, near, as_json)))


@app.command(epilog=_example("index"))
def index(
    run: RunArgument,
    overrides: Overrides = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where to work: the cores of this machine, or a Ray cluster.")
    ] = "local",
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default: one per core.")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; default: as Ray finds it.")] = None,
) -> None:
    """Read, tokenize and measure the run's data ahead of training; what is done is never done again."""
    from triptych.commands.check import index as run_index

    run_index(run, overrides or (), engine=engine, workers=workers, address=address)


@app.command(epilog=_example("encode"))
@takes_source
def encode(
    data: Annotated[list[str], typer.Argument(metavar="DATA...", help="Data files and globs.")],
    source: SourceOptions,
    model: Annotated[str, typer.Option(help="Model folder or hub name; its weights are not read.")],
    min_pixels: Annotated[int | None, typer.Option(min=1, help="Smallest area of a resized image, px.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Largest area of a resized image, px.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write here instead of to standard output.")] = None,
    pixels: Annotated[Path | None, typer.Option(help="Also decode, and store pixel values in this .npz.")] = None,
) -> None:
    """Print one JSON line per sample: exactly what the model will see."""
    from triptych.commands.encode import PixelLimits
    from triptych.commands.encode import encode as run_encode

    limits = PixelLimits(min_pixels, max_pixels)
    raise typer.Exit(run_encode(data, model=model, source=source, limits=limits, out=out, pixels=pixels))


@app.command(epilog=_example("convert"))
@takes_source
def convert(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA... | THEIR.yaml", help="Data files and globs, or a run file of LLaMA-Factory."),
    ],
    source: SourceOptions,
    to: Annotated[
        Path | None, typer.Option(metavar="OUT.jsonl | RUN.yaml", help="File to write; default: print the run file.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write every image there, such that servers read it as training does."),
    ] = None,
) -> None:
    """Write records of any shape in the plainest one: messages with <image> marks. Or another tool's run file as one
    of Triptych's own."""
    if data[0].endswith((".yaml", ".yml")):
        from triptych.commands.convert import convert_run

        convert_run(Path(data[0]), data[1:], to, source=source)
        return
    from triptych.commands.convert import convert as run_convert

    if to is None:
        raise ConfigError("say with --to OUT.jsonl where to write the records")
    raise typer.Exit(run_convert(data, to, source=source, images=images))


@app.command(epilog=_example("plan"))
def plan(
    run: RunArgument,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None, typer.Option(metavar="24GB", help="GPU to compare memory and time with, by its size or name.")
    ] = None,
    fit: Annotated[bool, typer.Option("--fit", help="Find the largest rows that fit, as batch: auto does.")] = False,
    world_size: Annotated[int, typer.Option(min=1, help="Ranks that will share the rows.")] = 1,
    dry_run_worst: Annotated[
        bool, typer.Option("--dry-run-worst", help="Run the largest row forward and backward on this device.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")] = False,
) -> None:
    """Print what the run will do: rows, steps, longest samples; whether the largest row fits, and how long it takes."""
    from triptych.commands.plan import PlanOptions
    from triptych.commands.plan import plan as run_plan

    run_plan(run, overrides or (), PlanOptions(world_size, gpu, fit, dry_run_worst, as_json))


@app.command(epilog=_example("train"))
def train(
    run: RunArgument,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in the output folder.")
    ] = False,
) -> None:
    """Check, index, plan and train."""
    _say_untried()
    from triptych.commands.train import train as run_train

    raise typer.Exit(run_train(run, overrides or (), resume=resume))


@app.command("eval", epilog=_example("eval"))
def evaluate(
    run: RunArgument,
    overrides: Overrides = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="Model folder to evaluate; repeat to compare several; default: the run's final model."),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Also evaluate the base model, and compare.")] = False,
) -> None:
    """Answer the held-out samples, score them per task; write predictions.jsonl and a page with the images."""
    _say_untried()
    from triptych.commands.pages import evaluate as run_evaluation

    run_evaluation(run, overrides or (), checkpoint or (), base=base)


@app.command(epilog=_example("report"))
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Output folders of runs, or their run files.")],
    html: Annotated[Path, typer.Option(metavar="FILE", help="Page to write.")] = Path("comparison.html"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on standard output.")] = False,
) -> None:
    """Compare runs: curves over each other, the settings that differ, the same samples side by side."""
    from triptych.commands.pages import report as run_report

    run_report(runs, html, as_json=as_json)


@app.command(epilog=_example("export"))
def export(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Checkpoint, or the folder `final` of a run.", exists=True, file_okay=False),
    ],
    to: Annotated[Path, typer.Option(help="Folder to write to; new or empty.")],
    dtype: Annotated[
        Literal["auto", "bfloat16", "float32", "float16"],
        typer.Option(help="Precision; auto: that of the base's files."),
    ] = "auto",
    samples: Annotated[int, typer.Option(min=1, help="Samples of the run's data whose logits are compared.")] = 4,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Then upload to the hub, as a private repository.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Prove an existing export against DIR; write nothing.")
    ] = False,
) -> None:
    """Merge, save, read back and prove the model equal to the trained one; say how to serve it."""
    _say_untried()
    from triptych.exporting.export import ExportOptions
    from triptych.exporting.export import export as run_export
    from triptych.exporting.hub import check_push
    from triptych.terminal import Terminal

    target = None if push is None else check_push(push)
    proof = run_export(folder, to, Terminal(), ExportOptions(dtype, samples, check, target))
    print("\n\n".join(proof.commands))


@app.command(epilog=_example("chat"))
def chat(
    model: Annotated[str, typer.Argument(metavar="DIR", help="Exported folder, checkpoint, or any model.")],
    image: Annotated[list[str] | None, typer.Option(help="Image of the first message; repeat for several.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; default: the run's eval.max_new_tokens, else 512.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time.")] = 0.0,
    thinking: Annotated[
        bool | None, typer.Option("--thinking/--no-thinking", help="Where the model's template leaves a choice.")
    ] = None,
) -> None:
    """Talk with a model about several images: answers on standard output, everything else on standard error."""
    _say_untried()
    from triptych.commands.chat import chat as run_chat

    raise typer.Exit(
        run_chat(model, image or (), max_new_tokens=max_new_tokens, temperature=temperature, thinking=thinking)
    )


@app.command()
def env() -> None:
    """Print what a bug report needs: versions, device, cache folder, packages outside the tried range."""
    from triptych.commands.environment import report

    print("\n".join(report()))


@app.command(epilog=_example("cache"))
def cache(
    prune: Annotated[
        int | None, typer.Option(metavar="DAYS", min=0, help="First remove what was not used for so many days.")
    ] = None,
) -> None:
    """Show what the cache folder holds and how much space it takes; all of it can be made again."""
    from triptych.commands.environment import cache as show_cache

    show_cache(prune=prune)


def main() -> None:
    """Entry point: errors that are the user's to fix are printed without a traceback and exit with 1."""
    if sys.argv[1:2] == ["train"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command listens itself: no traceback, no "Aborted."
    wait_asleep()
    # Said aloud, or the tokenizer warns whenever a process that used its threads starts another.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Said by peft to transformers; nothing that a user could do about.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    try:
        app()
    except TriptychError as error:
        print(f"triptych: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
