"""Keys of LLaMA-Factory's data arguments."""

from __future__ import annotations

from triptych.compat.llamafactory.keys.key import Rows, becomes, group

DATA: Rows = {
    "template": becomes(
        "checked against the model: `qwen2_vl` for Qwen2-VL and Qwen2.5-VL, `qwen3_vl(_nothink)`, `qwen3_5(_nothink)`, "
        "`qwen3_6`. Triptych renders as the model folder's own chat template does",
        kind="text",
    ),
    "dataset": becomes("`data.train`: a source for each name, by its entry in dataset_info.json", kind="names"),
    "eval_dataset": becomes("`data.eval`, likewise", kind="names"),
    "dataset_dir": becomes(
        "where dataset_info.json and its files are, from the current folder, as there. `ONLINE` and `REMOTE:` are "
        "refused: download the data first",
        "data",
        "any",
    ),
    "media_dir": becomes("`media_dir` of every source; default `dataset_dir`, as there", kind="text"),
    "cutoff_len": becomes(
        "`data.max_tokens`, with `data.too_long: shrink`: over it images are made smaller, and nothing is cut. There "
        "the text is cut, even within an image. With packing `data.too_long: drop`, as there",
        2048,
    ),
    "train_on_prompt": becomes("`data.supervise: everything`", False),
    "mask_history": becomes("`data.supervise: last`", False),
    "mix_strategy": becomes(
        "`concat` and `interleave_once`: every sample once. `interleave_under` and `interleave_over`: `weight` of the "
        "sources; an epoch then has as many samples as all of them together",
        "concat",
    ),
    "interleave_probs": becomes("`weight` of each source", kind="names"),
    "max_samples": becomes("`first` of every source: the first so many, as there", kind="whole"),
    "val_size": becomes("`data.hold_out` with `hold_out_by: rows`: the same samples are held out as there", 0.0),
    "packing": becomes(
        "`batch.tokens: cutoff_len`. Samples of a row never see each other here; there they do without `neat_packing`",
        kind="flag",
    ),
    "neat_packing": becomes("as `packing`", False),
    "default_system": becomes("`data.system`", kind="text"),
    "enable_thinking": becomes(
        "only `true`, the default: thinking is rendered as the model's chat template does it. Templates without "
        "`_nothink` put an empty thinking block before each answer there, which is said when it applies",
        True,
        "any",
    ),
    **group(
        "dropped",
        "data files are read piece by piece in any case, and shuffled as a whole; `max_steps` carries over",
        streaming=False,
    ),
    **group(
        "unneeded",
        "there is no preprocessing pass whose cache could be old; the index follows the content of the files",
        overwrite_cache=False,
        preprocessing_batch_size=1000,
        preprocessing_num_workers=None,
        data_shared_file_system=False,
        buffer_size=16384,
    ),
    **group("refused", "answers are greedy; leave it out", eval_num_beams=None),
    **group("refused", "rows have no padding; leave it out", ignore_pad_token_for_loss=True),
    **group(
        "dropped",
        "one evaluation loss over all eval sources; `triptych eval` gives a score for each `task`",
        eval_on_each_dataset=False,
    ),
    **group("refused", "tools are rendered as the model's own chat template does; leave it out", tool_format=None),
    **group(
        "refused",
        "thinking of earlier answers is kept or left out as the model's chat template does; leave it out",
        preserve_thinking=False,
    ),
    **group(
        "refused",
        "tokenized data of LLaMA-Factory is not read; give `dataset` and `dataset_dir` (the index does its job)",
        tokenized_path=None,
    ),
}
