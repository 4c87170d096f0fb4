//! Real BERT encoders in Hugging Face's layout, with random weights: a tiny one over a vocabulary of its own for the tests,
//! and any other shape for the benches.

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::stream::Stream;
use crate::tasks;

/// An encoder's shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Width of a token's state.
    pub hidden: usize,
    /// Attention heads of a layer.
    pub heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Longest input.
    pub positions: usize,
    /// Outputs of the head that makes it a model of one task; none for an encoder.
    pub outputs: Option<usize>,
}

const TINY: Shape = Shape { layers: 2, hidden: 32, heads: 4, intermediate: 64, positions: 64, outputs: None };

/// Writes the tiny encoder to `directory`.
pub fn write_encoder(directory: &Path) {
    write_encoder_of(&TINY, &(tasks::vocabulary().join("\n") + "\n"), directory);
}

/// Writes `config.json`, `vocab.txt` (a token a line) and `model.safetensors` (names without `bert.`, as most encoders on
/// the hub have them) to `directory`. Dropout is BERT's usual 0.1.
pub fn write_encoder_of(shape: &Shape, vocabulary: &str, directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("vocab.txt"), vocabulary).unwrap();
    let tokens = vocabulary.lines().count();
    let config = json!({
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": tokens,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "pad_token_id": 0,
    });
    fs::write(directory.join("config.json"), serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    write_weights(shape, &directory.join("model.safetensors"), tokens);
}

/// Makes of a model directory what transformers 5 would have saved: the vocabulary is in `tokenizer.json` alone.
pub fn keep_tokenizer_json_alone(directory: &Path) {
    let path = directory.join("vocab.txt");
    let tokens: Vec<String> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"].map(|token| {
        let id = tokens.iter().position(|t| t == token).unwrap();
        json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                "special": true })
    });
    let ids: serde_json::Map<_, _> = tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let saved = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special,
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                        "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": null,
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100, "vocab": ids },
    });
    fs::write(directory.join("tokenizer.json"), saved.to_string()).unwrap();
    let settings = json!({ "backend": "tokenizers", "do_lower_case": true, "strip_accents": null,
                           "tokenize_chinese_chars": true, "tokenizer_class": "BertTokenizer" });
    fs::write(directory.join("tokenizer_config.json"), settings.to_string()).unwrap();
    fs::remove_file(path).unwrap();
}

fn write_weights(shape: &Shape, path: &Path, vocabulary: usize) {
    let Shape { hidden, intermediate, .. } = *shape;
    let mut random = Stream::new(20_190_710);
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    // The matrices carry signals on at about their own size, as those of a pretrained encoder do.
    let mut matrix = |name: String, rows: usize, columns: usize| {
        let deviation = 1.0 / (columns as f32).sqrt();
        let values = (0..rows * columns).map(|_| random.normal() * deviation).collect();
        tensors.push((name, vec![rows, columns], values));
    };
    for (name, rows) in [("word", vocabulary), ("position", shape.positions), ("token_type", 2)] {
        matrix(format!("embeddings.{name}_embeddings.weight"), rows, hidden);
    }
    let mut dense = vec![("pooler.dense".to_owned(), hidden, hidden)];
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for i in 0..shape.layers {
        let layer = format!("encoder.layer.{i}");
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            dense.push((format!("{layer}.attention.{part}"), hidden, hidden));
        }
        dense.push((format!("{layer}.intermediate.dense"), intermediate, hidden));
        dense.push((format!("{layer}.output.dense"), hidden, intermediate));
        norms.extend([format!("{layer}.attention.output.LayerNorm"), format!("{layer}.output.LayerNorm")]);
    }
    dense.extend(shape.outputs.map(|outputs| ("classifier".to_owned(), outputs, hidden)));
    for (name, outputs, inputs) in &dense {
        matrix(format!("{name}.weight"), *outputs, *inputs);
    }
    let mut vector = |name: String, length: usize, value: f32| tensors.push((name, vec![length], vec![value; length]));
    for (name, outputs, _) in &dense {
        vector(format!("{name}.bias"), *outputs, 0.0);
    }
    for name in &norms {
        vector(format!("{name}.weight"), hidden, 1.0);
        vector(format!("{name}.bias"), hidden, 0.0);
    }
    let views = tensors.iter().map(|(name, shape, values)| {
        let bytes = bytemuck::cast_slice(values);
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}
