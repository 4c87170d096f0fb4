//! A real BERT encoder in Hugging Face's layout, tiny and random: 2 layers of width 32 over a vocabulary of its own.

use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::stream::Stream;
use crate::tasks;

const HIDDEN: usize = 32;
const INTERMEDIATE: usize = 64;
const LAYERS: usize = 2;
const HEADS: usize = 4;
const POSITIONS: usize = 64;

/// Writes `config.json`, `vocab.txt` and `model.safetensors` (names without `bert.`, as most encoders on the hub have
/// them) to `directory`. Dropout is BERT's usual 0.1.
pub fn write_encoder(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    let vocabulary = tasks::vocabulary();
    fs::write(directory.join("vocab.txt"), vocabulary.join("\n") + "\n").unwrap();
    let config = json!({
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": vocabulary.len(),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "pad_token_id": 0,
    });
    fs::write(directory.join("config.json"), serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    write_weights(&directory.join("model.safetensors"), vocabulary.len());
}

fn write_weights(path: &Path, vocabulary: usize) {
    let mut random = Stream::new(20_190_710);
    let mut tensors: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
    // The matrices carry signals on at about their own size, as those of a pretrained encoder do.
    let mut matrix = |name: String, rows: usize, columns: usize| {
        let deviation = 1.0 / (columns as f32).sqrt();
        let values = (0..rows * columns).map(|_| random.normal() * deviation).collect();
        tensors.push((name, vec![rows, columns], values));
    };
    for (name, rows) in [("word", vocabulary), ("position", POSITIONS), ("token_type", 2)] {
        matrix(format!("embeddings.{name}_embeddings.weight"), rows, HIDDEN);
    }
    let mut dense = vec![("pooler.dense".to_owned(), HIDDEN, HIDDEN)];
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for i in 0..LAYERS {
        let layer = format!("encoder.layer.{i}");
        for part in ["self.query", "self.key", "self.value", "output.dense"] {
            dense.push((format!("{layer}.attention.{part}"), HIDDEN, HIDDEN));
        }
        dense.push((format!("{layer}.intermediate.dense"), INTERMEDIATE, HIDDEN));
        dense.push((format!("{layer}.output.dense"), HIDDEN, INTERMEDIATE));
        norms.extend([format!("{layer}.attention.output.LayerNorm"), format!("{layer}.output.LayerNorm")]);
    }
    for (name, outputs, inputs) in &dense {
        matrix(format!("{name}.weight"), *outputs, *inputs);
    }
    let mut vector = |name: String, length: usize, value: f32| tensors.push((name, vec![length], vec![value; length]));
    for (name, outputs, _) in &dense {
        vector(format!("{name}.bias"), *outputs, 0.0);
    }
    for name in &norms {
        vector(format!("{name}.weight"), HIDDEN, 1.0);
        vector(format!("{name}.bias"), HIDDEN, 0.0);
    }
    let views = tensors.iter().map(|(name, shape, values)| {
        let bytes = bytemuck::cast_slice(values);
        (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}
