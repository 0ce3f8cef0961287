"""A tiny Qwen2-Audio with random weights."""

import torch

LABELS = ("angry", "happy", "sad")
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")


def make_folder(folder):
    """A tiny model and its processor, as `save_pretrained` writes them."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [
        "<unk>",
        "<pad>",
        *SPECIAL,
        *LABELS,
        "very",
        "emotion",
        "speaker",
        "user",
        ".",
        ",",
        "?",
    ]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        additional_special_tokens=list(SPECIAL),
    )
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    processor = transformers.Qwen2AudioProcessor(extractor, fast)
    config = transformers.Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 8,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "d_model": 16,
            "max_source_positions": 50,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(words),
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "pad_token_id": 1,
        },
        audio_token_index=words.index("<|AUDIO|>"),
    )
    torch.manual_seed(0)
    model = transformers.Qwen2AudioForConditionalGeneration(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
