"""Keys of LLaMA-Factory's model, quantisation, processor, export and inference arguments."""

from __future__ import annotations

from triptych.compat.llamafactory.keys.key import Rows, becomes, group

_NO_EFFECT = "no effect on what is learned"
_TOKENS = "new tokens need new rows in the model: add them with transformers, save the folder, and train that"
_CHANGES = "changes the model, which is trained here as it is; leave it out"
_ENGINE = "belongs to an inference engine"
_EXPORT = "after training: `triptych export OUTPUT/final --to EXPORT_DIR`"
_NO_QUANTISED_EXPORT = "exports are not quantised: quantise what `triptych export` wrote"
_VIDEO = "there are no videos or audio; records that hold some are refused"

MODEL: Rows = {
    "model_name_or_path": becomes("`model.path`, from the current folder", kind="text"),
    "adapter_name_or_path": becomes(
        "`model.adapter`: it goes on learning. Of several, merge all but the last first", kind="names"
    ),
    "flash_attn": becomes(
        "`model.attention`: `auto`, `disabled` (eager), `sdpa`, `fa2` (flash_attention_2), `fa3` (flash_attention_3)",
        "auto",
    ),
    "disable_gradient_checkpointing": becomes("`train.gradient_checkpointing`, which is on there by default", False),
    "quantization_bit": becomes("4: `model.train: qlora`; any other number is refused", kind="whole"),
    "quantization_method": becomes("only `bnb`", "bnb"),
    "quantization_type": becomes("only `nf4`", "nf4"),
    "double_quantization": becomes("only `true`", True),
    "image_max_pixels": becomes(
        "`data.max_pixels`, with `data.resize: llamafactory`: images get the sizes that they have there, which may "
        "exceed the limit by some per cent",
        589_824,
    ),
    "image_min_pixels": becomes("`data.min_pixels`, likewise; the model's own minimum holds after it", 1024),
    "model_revision": becomes("only `main`: download another revision and give its folder", "main"),
    **group("dropped", "hub files are cached where HF_HOME says", cache_dir=None),
    **group("dropped", "set HF_TOKEN in the environment; a run file is saved with every checkpoint", hf_hub_token=None),
    **group("dropped", "models come from a folder or the Hugging Face hub", ms_hub_token=None, om_hub_token=None),
    **group("refused", "give the folder of the adapter itself in `adapter_name_or_path`", adapter_folder=None),
    **group(
        "refused",
        _TOKENS,
        resize_vocab=False,
        add_tokens=None,
        add_special_tokens=None,
        new_special_tokens_config=None,
    ),
    **group("unneeded", "only with new tokens", init_special_tokens="noise_init"),
    **group(
        "refused",
        _CHANGES,
        rope_scaling=None,
        shift_attn=False,
        mixture_of_depths=None,
        moe_aux_loss_coef=None,
        train_from_scratch=False,
    ),
    **group(
        "dropped",
        "a matter of speed and memory; losses are the same without",
        use_unsloth=False,
        use_unsloth_gc=False,
        enable_liger_kernel=False,
        use_v1_kernels=False,
    ),
    **group(
        "unneeded",
        "weights that learn and the loss are float32 here in any case",
        upcast_layernorm=False,
        upcast_lmhead_output=False,
    ),
    **group(
        "unneeded",
        _NO_EFFECT,
        use_fast_tokenizer=True,
        low_cpu_mem_usage=True,
        use_reentrant_gc=True,
        offload_folder="offload",
        use_kv_cache=True,
        print_param_status=False,
        trust_remote_code=False,
        infer_dtype="auto",
        quantization_device_map=None,
    ),
    **group(
        "dropped",
        "markup typed in the data is text here in any case, while Triptych's own markup never is",
        split_special_tokens=False,
    ),
    **group("unneeded", _ENGINE, infer_backend="huggingface"),
    **group("unneeded", "only other model families have it", image_do_pan_and_scan=False, crop_to_patches=False),
    **group(
        "unneeded",
        _VIDEO,
        video_max_pixels=65_536,
        video_min_pixels=256,
        video_fps=2.0,
        video_maxlen=128,
        use_audio_in_video=False,
        audio_sampling_rate=16_000,
    ),
    **group("after", _EXPORT, export_dir=None),
    **group(
        "unneeded",
        "belongs to `export_dir`",
        export_size=5,
        export_device="cpu",
        export_legacy_format=False,
        export_quantization_nsamples=128,
        export_quantization_maxlen=1024,
    ),
    **group(
        "after", "after training: `triptych export OUTPUT/final --to DIR --push USER/NAME`", export_hub_model_id=None
    ),
    **group("refused", _NO_QUANTISED_EXPORT, export_quantization_bit=None, export_quantization_dataset=None),
    **group("refused", "KTransformers is not used; leave it out", use_kt=False),
    **group(
        "unneeded",
        "only with `use_kt`",
        kt_cpu_activation=None,
        kt_weight_path=None,
        kt_non_expert_weight_path=None,
        kt_expert_checkpoint_path=None,
        kt_use_lora_experts=None,
        kt_lora_expert_num=None,
        kt_lora_expert_intermediate_size=None,
    ),
    **group(
        "unneeded",
        _ENGINE,
        vllm_maxlen=4096,
        vllm_gpu_util=0.7,
        vllm_enforce_eager=False,
        vllm_max_lora_rank=32,
        vllm_config=None,
        sglang_maxlen=4096,
        sglang_mem_fraction=0.7,
        sglang_tp_size=-1,
        sglang_config=None,
        sglang_lora_backend="triton",
    ),
}
