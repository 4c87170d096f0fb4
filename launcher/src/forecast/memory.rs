//! What a rank in training needs of memory: rules for CPUs in float32, compared with what was measured, and for GPUs, which were
//! not at hand to compare them with (`device_memory` in metrics.jsonl is there for it).
//!
//! With P bytes of parameters and L ranks on a host, which share parameters and moments: a rank touches P of parameters, its
//! share of 2P of moments, P of gradients of its own and its share of the others'. The first rank also reads all moments, and
//! keeps 3P, when it copies a checkpoint. On top of that come the program with its libraries, and what the backward pass needs
//! of the forward pass: for each token of a micro-batch and each layer, 8 values of the model's width and 2 of the feed-forward
//! layer's, and the attention weights.
//!
//! Against the peaks of docs/performance.md (two ranks, GLUE's small tasks, no checkpoint; MiniLM-L6, BERT-Base, BERT-Large:
//! 560, 1,969 and 4,810 MiB) it is within 5 %.
//!
//! On a GPU each rank has everything for itself: float32 parameters, moments and gradients, in bfloat16 a copy of the parameters,
//! and for each token and layer the values that `worker/device/layer` keeps, with a byte for each value that dropout decides on.

use bam_cluster::encoder::EncoderConfig;
use serde::Serialize;

/// Bytes of one float32.
pub const FLOAT: f64 = 4.0;
/// Program, libtorch, MPI and HDF5, and what the machine's speed is measured with.
const PROGRAM: f64 = 180.0 * (1 << 20) as f64;

/// A training, as far as its memory depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Training<'a> {
    /// The encoder.
    pub shape: &'a EncoderConfig,
    /// Values of encoder and heads.
    pub parameters: usize,
    /// Ranks on a host.
    pub ranks_on_a_node: usize,
    /// Examples of a micro-batch.
    pub micro_batch: usize,
    /// Whether a checkpoint is written while training goes on.
    pub copies_checkpoints: bool,
    /// Gradients that wait to be added up, besides a rank's own (`reproducible: world-size`).
    pub waiting_gradients: usize,
}

/// What the rank with most needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Memory {
    /// Parameters, which all ranks of a host share.
    pub parameters: f64,
    /// What the rank touches of Adam's two moments, which all ranks of a host share.
    pub moments: f64,
    /// Its gradients, and what it reads of others'.
    pub gradients: f64,
    /// What a forward pass leaves for its backward pass, where examples are as long as the mean.
    pub activations: f64,
    /// The same where all are as long as the longest.
    pub activations_longest: f64,
    /// The copy that a checkpoint is written from, on the first rank.
    pub checkpoint_copy: f64,
    /// The program itself.
    pub program: f64,
}

/// In which numbers a GPU computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GpuNumbers {
    /// Values of two bytes, and attention that keeps no weights.
    Bf16,
    /// Values of four bytes, and attention in rectangles.
    Float,
}

/// CUDA's context, libtorch's and NCCL's workspaces.
const CONTEXT: f64 = (1u64 << 30) as f64;

impl Memory {
    /// On a GPU; what a checkpoint is written from is in the host's memory.
    pub fn on_gpu(training: &Training, numbers: GpuNumbers, mean: usize, longest: usize) -> Memory {
        let parameters = training.parameters as f64 * FLOAT;
        let copy = if numbers == GpuNumbers::Bf16 { 0.5 * parameters } else { 0.0 };
        let activations = |length| gpu_activations(training.shape, numbers, training.micro_batch, length);
        Memory {
            parameters: parameters + copy,
            moments: 2.0 * parameters,
            gradients: parameters * (1.0 + training.waiting_gradients as f64),
            activations: activations(mean),
            activations_longest: activations(longest),
            checkpoint_copy: 0.0,
            program: CONTEXT,
        }
    }

    /// Of a training on examples of these numbers of tokens.
    pub fn of(training: &Training, mean: usize, longest: usize) -> Memory {
        let parameters = training.parameters as f64 * FLOAT;
        let share = 1.0 / training.ranks_on_a_node as f64;
        let copied = if training.copies_checkpoints { 1.0 } else { 0.0 };
        let activations = |length| activations(training.shape, training.micro_batch, length);
        Memory {
            parameters,
            moments: 2.0 * parameters * if training.copies_checkpoints { 1.0 } else { share },
            gradients: parameters * (2.0 - share + training.waiting_gradients as f64),
            activations: activations(mean),
            activations_longest: activations(longest),
            checkpoint_copy: 3.0 * parameters * copied,
            program: PROGRAM,
        }
    }

    /// All of it, with examples as long as the mean.
    pub fn usual(&self) -> f64 {
        self.fixed() + self.activations
    }

    /// All of it, should all examples of a micro-batch be as long as the longest.
    pub fn most(&self) -> f64 {
        self.fixed() + self.activations_longest
    }

    /// What so many ranks of one host need together, of whom one is the first of all.
    pub fn host(&self, ranks: usize) -> f64 {
        let own = self.parameters + self.activations + self.program;
        3.0 * self.parameters + self.checkpoint_copy + ranks as f64 * own
    }

    fn fixed(&self) -> f64 {
        self.parameters + self.moments + self.gradients + self.checkpoint_copy + self.program
    }
}

/// What so many sequences of so many tokens leave for the backward pass, in bytes.
fn activations(shape: &EncoderConfig, sequences: usize, length: usize) -> f64 {
    let (h, f, n) = (shape.hidden_size as f64, shape.intermediate_size as f64, length as f64);
    let tokens = sequences as f64 * n;
    let layers = shape.num_hidden_layers as f64;
    let attention = sequences as f64 * shape.num_attention_heads as f64 * n * n;
    // Of the last layer, input, keys and values alone are there for all tokens; while one layer is differentiated, it needs as
    // much again for gradients.
    let kept = (layers - 1.0) * (tokens * (8.0 * h + 2.0 * f) + attention) + tokens * 5.0 * h;
    (kept + tokens * (6.0 * h + 2.0 * f) + attention) * FLOAT
}

/// The same on a GPU.
fn gpu_activations(shape: &EncoderConfig, numbers: GpuNumbers, sequences: usize, length: usize) -> f64 {
    let (h, f, n) = (shape.hidden_size as f64, shape.intermediate_size as f64, length as f64);
    let (tokens, heads) = (sequences as f64 * n, shape.num_attention_heads as f64);
    let layers = shape.num_hidden_layers as f64;
    // Attention keeps a float32 for each token and head, or its weights, what dropout made of them and what it kept.
    let (value, attention) = match numbers {
        GpuNumbers::Bf16 => (2.0, tokens * heads * FLOAT),
        GpuNumbers::Float => (FLOAT, sequences as f64 * heads * n * n * (2.0 * FLOAT + 1.0)),
    };
    let masks = 2.0 * h;
    let kept = (layers - 1.0) * (tokens * ((8.0 * h + 2.0 * f) * value + masks) + attention) + tokens * 3.0 * h * value;
    kept + tokens * (6.0 * h + 2.0 * f) * value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_has_everything_for_itself() {
        let shape = shape(24, 1024, 16);
        let training = Training {
            shape: &shape,
            parameters: shape.parameters(),
            ranks_on_a_node: 8,
            micro_batch: 128,
            copies_checkpoints: true,
            waiting_gradients: 0,
        };
        let memory = Memory::on_gpu(&training, GpuNumbers::Bf16, 34, 128);
        // 18 bytes a parameter, and 34 KiB a token and layer.
        let states = memory.parameters + memory.moments + memory.gradients;
        assert_eq!(states, 18.0 * shape.parameters() as f64);
        let a_token = memory.activations / (128.0 * 34.0 * 24.0) / 1024.0;
        assert!((33.0..36.0).contains(&a_token), "{a_token} KiB a token and layer");
        let float = Memory::on_gpu(&training, GpuNumbers::Float, 34, 128);
        assert!(float.activations > 1.8 * memory.activations && float.parameters < memory.parameters);
    }

    fn shape(layers: usize, hidden: usize, heads: usize) -> EncoderConfig {
        serde_json::from_value(serde_json::json!({
            "vocab_size": 30522, "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
            "intermediate_size": 4 * hidden, "max_position_embeddings": 512
        }))
        .unwrap()
    }

    /// The figures of docs/performance.md: two ranks, 31 tokens an example, no checkpoint in the first steps.
    #[test]
    fn it_agrees_with_the_measured_peaks() {
        for (shape, batch, measured) in
            [(shape(6, 384, 12), 32, 560.0), (shape(12, 768, 12), 32, 1_969.0), (shape(24, 1024, 16), 8, 4_810.0)]
        {
            let training = Training {
                shape: &shape,
                parameters: shape.parameters(),
                ranks_on_a_node: 2,
                micro_batch: batch / 2,
                copies_checkpoints: false,
                waiting_gradients: 0,
            };
            let mib = Memory::of(&training, 31, 128).usual() / (1 << 20) as f64;
            assert!((0.95..1.05).contains(&(mib / measured)), "{mib} MiB, measured {measured}");
        }
    }
}
