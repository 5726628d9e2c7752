"""Tiny families that only the tests of the table of families walk through."""

from __future__ import annotations

from typing import Any

import torch
from tiny_family import FLUX, LUMINA, WAN, TinyFamily

SEEN = {"attention_mask": torch.ones(1, 5, dtype=torch.int64)}  # of the text's tokens
COSMOS = {
    **{"max_img_h": 48, "max_img_w": 48, "max_frames": 16, "in_channels": 16, "out_channels": 16, "patch_spatial": 2},
    **{"patch_temporal": 1, "model_channels": 64, "num_blocks": 2, "num_heads": 2, "crossattn_emb_channels": 24},
    **{"pos_emb_cls": "rope3d", "use_adaln_lora": True, "adaln_lora_dim": 16},
}
HUNYUAN = {
    **{key: value for key, value in FLUX.items() if key != "txt_ids_dims"},
    **{"image_model": "hunyuan_video", "byt5": False, "meanflow": False, "vec_in_dim": None, "guidance_embed": False},
    **{"use_cond_type_embedding": False, "vision_in_dim": None, "meanflow_sum": False},
}
OMNIGEN = {
    **{"hidden_size": 64, "num_attention_heads": 4, "num_kv_heads": 2, "num_layers": 2, "num_refiner_layers": 1},
    **{"multiple_of": 32, "axes_dim_rope": (8, 4, 4), "axes_lens": (64, 64, 64)},
}
KANDINSKY = {
    **{"image_model": "kandinsky5", "in_text_dim": 24, "in_text_dim2": 16, "time_dim": 32, "model_dim": 64},
    **{"ff_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (8, 12, 12)},
}
COGVIDEO = {
    **{"image_model": "cogvideox", "num_attention_heads": 2, "attention_head_dim": 32, "time_embed_dim": 32},
    **{"num_layers": 2, "text_embed_dim": 24, "use_rotary_positional_embeddings": True},
}
PIXELDIT = {
    **{"num_groups": 2, "hidden_size": 64, "pixel_hidden_size": 8, "pixel_attn_hidden_size": 32},
    **{"pixel_num_groups": 2, "patch_depth": 2, "pixel_depth": 1, "patch_size": 2, "txt_embed_dim": 24},
}
LTXAV = {
    **{"image_model": "ltxav", "in_channels": 128, "audio_in_channels": 128, "cross_attention_dim": 64},
    **{"audio_cross_attention_dim": 32, "attention_head_dim": 32, "audio_attention_head_dim": 16},
    **{"num_attention_heads": 2, "audio_num_attention_heads": 2, "caption_channels": 24, "num_layers": 2},
    **{"connector_attention_head_dim": 16, "connector_num_attention_heads": 2, "connector_num_layers": 1},
}


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(11))


def wan(host_class: str, in_dim: int = 16, extra: dict[str, Any] | None = None, **config: Any) -> TinyFamily:
    left_out = config.pop("left_out", ())
    sizes = {**WAN, "in_dim": in_dim, **config}
    return TinyFamily(host_class, sizes, (16, 3, 8, 12), frames=3, extra=extra or {}, left_out=left_out)


MORE: dict[str, TinyFamily] = {
    "aura": TinyFamily(
        "AuraFlow",
        {
            **{"max_seq": 64, "cond_seq_dim": 24, "n_double_layers": 2, "n_layers": 4, "dim": 64, "n_heads": 2},
            "global_conddim": 32,
        },
        (4, 8, 12),
    ),
    "radiance": TinyFamily(
        "ChromaRadiance",
        {
            **{key: value for key, value in FLUX.items() if key != "guidance_embed"},
            **{"image_model": "chroma_radiance", "in_channels": 3, "out_channels": 3, "in_dim": 64, "out_dim": 64},
            **{"hidden_dim": 32, "n_layers": 1, "nerf_hidden_size": 16, "nerf_mlp_ratio": 2, "nerf_depth": 1},
            **{"nerf_max_freqs": 4, "nerf_tile_size": 0, "nerf_final_head_type": "linear"},
            **{"nerf_embedder_dtype": torch.float32, "use_x0": False, "use_sequential_txt_ids": False},
        },
        (3, 8, 12),
    ),
    "mage": TinyFamily(
        "MageFlow",
        {
            **{"image_model": "mage_flow", "in_channels": 128, "num_layers": 2, "attention_head_dim": 32},
            **{"num_attention_heads": 2, "joint_attention_dim": 24, "axes_dims_rope": (8, 12, 12)},
        },
        (128, 4, 6),
    ),
    "lens": TinyFamily(
        "Lens",
        {
            **{"image_model": "lens", "in_channels": 128, "out_channels": 32, "num_layers": 2},
            **{"attention_head_dim": 32, "num_attention_heads": 2, "enc_hidden_dim": 12},
            **{"axes_dims_rope": (8, 12, 12), "selected_layer_index": (0, 1)},
        },
        (128, 4, 6),
        extra=SEEN,
    ),
    "joy": TinyFamily(
        "JoyImage",
        {
            **{"image_model": "joyimage", "hidden_size": 64, "num_attention_heads": 2, "text_dim": 24},
            **{"num_layers": 2, "rope_dim_list": [8, 12, 12], "theta": 256},
        },
        (16, 1, 8, 12),
    ),
    "zimage_pixel": TinyFamily(
        "ZImagePixelSpace",
        {
            **{**LUMINA, "image_model": "zimage_pixel", "in_channels": 3, "decoder_hidden_size": 16},
            **{"decoder_num_res_blocks": 1, "decoder_max_freqs": 2, "decoder_in_channels": 12},
        },
        (3, 8, 12),
    ),
    "hidream": TinyFamily(
        "HiDream",
        {
            **{"image_model": "hidream", "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 2},
            **{"num_single_layers": 2, "attention_head_dim": 32, "num_attention_heads": 2, "text_emb_dim": 16},
            **{"caption_channels": [24, 24], "num_routed_experts": 2, "num_activated_experts": 1},
            **{"axes_dims_rope": [16, 8, 8], "max_resolution": [32, 32], "llama_layers": [0, 1, 2, 3]},
        },
        (16, 8, 12),
        pooled=16,
        extra={"conditioning_llama3": randn(1, 4, 3, 24)},
    ),
    "hidream_o1": TinyFamily(
        "HiDreamO1",
        {
            "image_model": "hidream_o1",
            "text_config_overrides": {
                **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
                **{"num_key_value_heads": 2, "head_dim": 16, "rope_dims": [4, 2, 2]},
            },
            "vision_config_overrides": {
                **{"hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "depth": 1},
                **{"num_position_embeddings": 16, "deepstack_visual_indexes": ()},
            },
        },
        (3, 4 * 32, 6 * 32),
        extra={"text_input_ids": torch.tensor([[151644, 872, 198, 9, 7, 151673]])},
    ),
    "omnigen2": TinyFamily(
        "Omnigen2", {"image_model": "omnigen2", "text_feat_dim": 24, **OMNIGEN}, (16, 8, 12), extra=SEEN
    ),
    "boogu": TinyFamily(
        "Boogu",
        {"image_model": "boogu", "instruction_feat_dim": 24, "num_double_stream_layers": 2, **OMNIGEN},
        (16, 8, 12),
        extra=SEEN,
    ),
    "ideogram4": TinyFamily(
        "Ideogram4",
        {
            **{"image_model": "ideogram4", "in_channels": 128, "num_layers": 2, "num_attention_heads": 2},
            **{"attention_head_dim": 32, "intermediate_size": 64, "adaln_dim": 16, "llm_features_dim": 24},
            **{"rope_theta": 10000, "mrope_section": (8, 4, 4)},
        },
        (128, 4, 6),
    ),
    "krea2": TinyFamily(
        "Krea2",
        {
            **{"image_model": "krea2", "features": 64, "tdim": 32, "txtdim": 12, "heads": 4, "kvheads": 2},
            **{"layers": 2, "txtlayers": 2, "txtheads": 2, "txtkvheads": 2},
        },
        (16, 1, 8, 12),
    ),
    "pixeldit": TinyFamily("PixelDiTT2I", {"image_model": "pixeldit_t2i", **PIXELDIT}, (3, 8, 12)),
    "pid": TinyFamily(
        "PiD",
        {"image_model": "pid", "lq_latent_channels": 16, "lq_hidden_dim": 8, "lq_num_res_blocks": 1, **PIXELDIT},
        (3, 8, 12),
        cfg=1.0,
        extra={"lq_latent": randn(1, 16, 2, 3), "degrade_sigma": torch.tensor([0.5])},
    ),
    "cascade": TinyFamily(
        "Stable_Cascade_C",
        {
            **{"stable_cascade_stage": "c", "c_cond": 32, "c_hidden": [32, 32], "nhead": [2, 2], "c_clip_text": 24},
            **{"blocks": [[1, 1], [1, 1]], "c_clip_text_pooled": 16},
        },
        (16, 4, 6),
        pooled=16,
    ),
    "predict2": TinyFamily("CosmosT2IPredict2", {"image_model": "cosmos_predict2", **COSMOS}, (16, 3, 8, 12), frames=3),
    "anima": TinyFamily("Anima", {"image_model": "anima", **COSMOS}, (16, 1, 8, 12), left_out=("llm_adapter",)),
    "cosmos": TinyFamily(
        "CosmosT2V",
        {
            **{"image_model": "cosmos", **COSMOS, "block_x_format": "THWBD", "affline_emb_norm": True},
            **{"extra_per_block_abs_pos_emb": True, "extra_per_block_abs_pos_emb_type": "learnable"},
        },
        (16, 3, 8, 12),
        frames=3,
    ),
    "kandinsky5": TinyFamily("Kandinsky5", {**KANDINSKY, "visual_embed_dim": 132}, (16, 3, 8, 12), frames=3, pooled=16),
    "kandinsky5_image": TinyFamily("Kandinsky5Image", {**KANDINSKY, "visual_embed_dim": 64}, (16, 8, 12), pooled=16),
    "hunyuan15": TinyFamily(
        "HunyuanVideo15",
        {
            **{**HUNYUAN, "in_channels": 65, "out_channels": 32, "patch_size": [1, 1, 1]},
            **{"vision_in_dim": 16, "use_cond_type_embedding": True},
        },
        (32, 3, 4, 6),
        frames=3,
        pooled=16,
    ),
    "hunyuan_image": TinyFamily(
        "HunyuanImage21",
        {**HUNYUAN, "in_channels": 64, "out_channels": 64, "patch_size": [1, 1], "axes_dim": [16, 16]},
        (64, 4, 6),
    ),
    "ltx2": TinyFamily("LTXAV", LTXAV, (128, 3, 4, 6), frames=3, text=48, extra=SEEN),
    "mochi": TinyFamily(
        "GenmoMochi",
        {
            **{"image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 2, "hidden_size_x": 64},
            **{"hidden_size_y": 48, "mlp_ratio_x": 192.0, "mlp_ratio_y": 2.0, "learn_sigma": False, "in_channels": 12},
            **{"qk_norm": True, "qkv_bias": False, "out_bias": True, "timestep_scale": 1000.0, "use_t5": True},
            **{"t5_feat_dim": 24, "t5_token_length": 8},
        },
        (12, 3, 8, 12),
        frames=3,
        extra=SEEN,
    ),
    "cogvideo": TinyFamily("CogVideoX_T2V", COGVIDEO, (16, 3, 8, 12), frames=3, sampling={"zsnr": False}),
    "cogvideo15": TinyFamily(
        "CogVideoX_I2V",
        {**COGVIDEO, "in_channels": 32, "patch_size_t": 2, "patch_bias": True},
        (16, 5, 8, 12),
        frames=3,
        sampling={"zsnr": False},
    ),
    "wan_ar": wan("WAN21_CausalAR_T2V"),
    "wan_vace": wan("WAN21_Vace", model_type="vace", vace_layers=2, vace_in_dim=96),
    "wan_camera": wan("WAN21_Camera", 32, model_type="camera"),
    "wan_camera22": wan("WAN22_Camera", 36, model_type="camera_2.2"),
    "humo": wan(
        "WAN21_HuMo", extra={"reference_latents": [randn(1, 16, 1, 8, 12)]}, model_type="humo", left_out=("audio_proj",)
    ),
    "wan_s2v": wan(
        "WAN22_S2V",
        extra={"reference_latents": [randn(1, 16, 1, 8, 12)]},
        **{"model_type": "s2v", "audio_dim": 32, "audio_inject_layers": [0], "adain_mode": "attn_norm"},
        left_out=("casual_audio_encoder", "audio_injector", "frame_packer"),
    ),
    "wan_animate": wan("WAN22_Animate", 36, model_type="animate", left_out=("motion_encoder", "face_encoder")),
    "scail": wan(
        "WAN21_SCAIL",
        20,
        extra={"reference_latents": [randn(1, 16, 1, 8, 12)], "pose_video_latent": randn(1, 16, 3, 4, 6)},
        model_type="scail",
        left_out=("img_emb",),
    ),
    "scail2": wan("WAN21_SCAIL2", 20, model_type="scail2", left_out=("img_emb",)),
    "wandancer": wan(
        "WAN22_WanDancer",
        36,
        model_type="wandancer",
        left_out=("music_injector", "music_projection", "music_encoder"),
    ),
}
