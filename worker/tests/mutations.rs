//! Damaged files that a rank reads: logits, tokens and weights are what they were, or an error, and never a panic.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../cluster/tests/mutation/mod.rs"]
mod mutation;

use std::fs;
use std::io::Write;
use std::path::Path;

use bam_cluster::encoder::Weights;
use bam_cluster::files;
use bam_cluster::teacher::{FORMAT_VERSION, LogitsManifest, Provenance, shard_name};
use bam_worker::data::{TokenFile, TokenSet};
use bam_worker::shard::{read_logits, write_shard};
use bam_worker::weights::WeightStore;
use mutation::{Mutator, replace};
use safetensors::tensor::{Dtype, TensorView};

const IDS: [u64; 5] = [4, 0, 9, 2, 7];

fn provenance() -> Provenance {
    Provenance {
        task: "rte".into(),
        label_names: vec!["entailment".into(), "not_entailment".into()],
        teacher_sha256: "0123456789abcdef".repeat(4),
        data_sha256: "123456789abcdef0".repeat(4),
        vocab_sha256: "23456789abcdef01".repeat(4),
    }
}

/// Two shards and their manifest, and the logits in them.
fn write_logits(directory: &Path) -> Vec<f32> {
    let write = |(i, ids): (usize, &[u64])| {
        let logits: Vec<f32> = ids.iter().flat_map(|&id| [id as f32, -0.5 * id as f32]).collect();
        write_shard(&directory.join(shard_name(i, 2)), &provenance(), ids, &logits).unwrap()
    };
    let shards = [&IDS[..3], &IDS[3..]].into_iter().enumerate().map(write).collect();
    let manifest =
        LogitsManifest { format_version: FORMAT_VERSION, provenance: provenance(), examples: IDS.len(), shards };
    files::write_json(&directory.join("manifest.json"), &manifest).unwrap();
    read_logits(directory, &provenance(), &IDS).unwrap()
}

#[test]
fn damaged_logits_are_refused_or_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let logits = write_logits(directory.path());
    let mut mutator = Mutator::new(11);
    let try_with = |name: &str, damaged: &[u8]| {
        let path = directory.path().join(name);
        let whole = fs::read(&path).unwrap();
        replace(&path, damaged);
        if let Ok(read) = read_logits(directory.path(), &provenance(), &IDS) {
            assert_eq!(read, logits);
            assert!(name == "manifest.json" || damaged == whole, "a changed {name} is believed");
        }
        replace(&path, whole);
    };
    let read = |name: &str| fs::read(directory.path().join(name)).unwrap();
    let manifest = read("manifest.json");
    for end in 0..manifest.len() {
        try_with("manifest.json", &manifest[..end]);
    }
    for _ in 0..4_000 {
        try_with("manifest.json", &mutator.text(str::from_utf8(&manifest).unwrap()));
        try_with("manifest.json", &mutator.bytes(&manifest));
    }
    let shard = read(&shard_name(0, 2));
    for end in (0..shard.len()).step_by(7) {
        try_with(&shard_name(0, 2), &shard[..end]);
    }
    for _ in 0..5_000 {
        try_with(&shard_name(0, 2), &mutator.bytes(&shard));
    }
}

#[test]
fn damaged_tokens_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data/rte-train.h5");
    let set = TokenSet {
        task: "rte".into(),
        split: "train".into(),
        input_ids: vec![101, 7, 102, 101, 8, 9, 102],
        token_type_ids: vec![0; 7],
        offsets: vec![0, 3, 7],
        labels: vec![0.0, 1.0],
        example_ids: vec![3, 5],
        label_names: provenance().label_names,
        max_length: 8,
        source_sha256: "ab".into(),
        vocab_sha256: "cd".into(),
    };
    let sum = TokenFile::write(&path, &set).unwrap();
    let whole = fs::read(&path).unwrap();
    let mut mutator = Mutator::new(12);
    let try_with = |damaged: &[u8]| {
        replace(&path, damaged);
        match TokenFile::read(&path, Some(&sum)) {
            Ok(read) => assert!(read == set && damaged == whole, "a changed file is believed"),
            Err(e) => assert_ne!(damaged, whole, "{e}"),
        }
    };
    for end in (0..=whole.len()).step_by(7) {
        try_with(&whole[..end]);
    }
    for _ in 0..6_000 {
        try_with(&mutator.bytes(&whole));
    }
}

/// Reads the one tensor that `weights` should hold, under every shape that fits and one that does not.
fn read_weights(weights: &Weights) -> Option<Vec<f32>> {
    let store = WeightStore::open(weights).ok()?;
    let mut values = vec![0.0; 4];
    let mut found = None;
    for shape in [&[2, 2][..], &[4], &[1, 4], &[4, 1], &[2, 1, 2]] {
        for name in ["a", "b"] {
            if store.read(&[name.to_owned()], shape, &mut values).is_ok() {
                found = Some(values.clone());
            }
        }
    }
    // An empty tensor may claim any length besides.
    for shape in [&[0][..], &[0, 2], &[2, 0]] {
        let _ = store.read(&["a".to_owned()], shape, &mut []);
    }
    found
}

fn try_weights(weights: &Weights, seed: u64, times: usize) {
    let path = &weights.files()[0];
    let whole = fs::read(path).unwrap();
    assert_eq!(read_weights(weights), Some(vec![1.0, 2.0, 3.0, 4.0]));
    for end in 0..whole.len() {
        replace(path, &whole[..end]);
        read_weights(weights);
    }
    let mut mutator = Mutator::new(seed);
    for _ in 0..times {
        replace(path, mutator.bytes(&whole));
        read_weights(weights);
    }
}

fn numbers() -> Vec<u8> {
    [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn damaged_safetensors_do_not_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let data = numbers();
    let tensor = TensorView::new(Dtype::F32, vec![2, 2], &data).unwrap();
    safetensors::serialize_to_file([("a", tensor)], None, &path).unwrap();
    let weights = Weights::Safetensors(vec![path.clone()]);
    try_weights(&weights, 13, 6_000);
    // Headers that are well-formed, with tensors of every kind and shape.
    for kind in ["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "F4", "F6_E2M3", "C64", "x"] {
        for shape in [
            "[2,2]",
            "[4]",
            "[0]",
            "[0,18446744073709551615,18446744073709551615]",
            "[-1]",
            "[4294967296,4294967296]",
            "[]",
        ] {
            for bytes in 0..=40u64 {
                let header =
                    format!("{{\"a\":{{\"dtype\":\"{kind}\",\"shape\":{shape},\"data_offsets\":[0,{bytes}]}}}}");
                let length = (header.len() as u64).to_le_bytes();
                replace(&path, [&length, header.as_bytes(), &vec![0; bytes as usize]].concat());
                read_weights(&weights);
            }
        }
    }
}

/// A mapping of `a` to a tensor [2, 2] in the storage `0`.
const PICKLE: &[u8] = b"\x80\x02}q\x00X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\nq\x01((X\x07\x00\x00\x00storageq\
    \x02ctorch\nFloatStorage\nq\x03X\x01\x00\x00\x000q\x04X\x03\x00\x00\x00cpuq\x05K\x04tq\x06QK\x00K\x02K\x02\x86q\x07K\x02\
    K\x01\x86q\x08\x89ccollections\nOrderedDict\nq\x09)Rq\x0atq\x0bRq\x0cs.";

#[test]
fn damaged_pickles_do_not_panic() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pytorch_model.bin");
    let weights = Weights::Pickle(path.clone());
    let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
    let stored = zip::write::FileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in [("model/data.pkl", PICKLE), ("model/data/0", &numbers())] {
        zip.start_file(name, stored).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap();
    drop(zip);
    try_weights(&weights, 14, 4_000);
    let rezip = |pickle: &[u8]| {
        fs::remove_file(&path).unwrap();
        let mut zip = zip::ZipWriter::new(fs::File::create(&path).unwrap());
        for (name, content) in [("model/data.pkl", pickle), ("model/data/0", &numbers())] {
            zip.start_file(name, stored).unwrap();
            zip.write_all(content).unwrap();
        }
        zip.finish().unwrap();
    };
    // Past the container's own checksum.
    let mut mutator = Mutator::new(15);
    for _ in 0..6_000 {
        rezip(&mutator.bytes(PICKLE));
        read_weights(&weights);
    }

    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    let (version, machine, keys) =
        (b"\x80\x02M\xe9\x03.", b"\x80\x02}q\x00.", b"\x80\x02]q\x00X\x01\x00\x00\x000q\x01a.");
    let old = [&magic[..], version, machine, PICKLE, keys, &4u64.to_le_bytes(), &numbers()].concat();
    replace(&path, old);
    try_weights(&weights, 16, 8_000);
}
