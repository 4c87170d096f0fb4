//! What Hugging Face's hub answers about one model, from the files of a directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use crate::server::Answer;
use crate::snapshot::sha256;

/// The commit that the model is at.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A model on the hub.
#[derive(Debug, Clone)]
pub struct FakeHub {
    name: String,
    files: BTreeMap<String, Vec<u8>>,
    about: Value,
}

impl FakeHub {
    /// The model `name`, with a directory's files.
    pub fn of(name: &str, directory: &Path) -> FakeHub {
        let entries = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path());
        let files: BTreeMap<String, Vec<u8>> = entries
            .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()))
            .collect();
        let about = |(file, content): (&String, &Vec<u8>)| {
            let git = Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content).finalize();
            let git: String = git.iter().map(|b| format!("{b:02x}")).collect();
            let mut about = json!({ "rfilename": file, "size": content.len(), "blobId": git });
            if file.ends_with(".safetensors") {
                about["lfs"] = json!({
                    "sha256": sha256(&directory.join(file)), "size": content.len(), "pointerSize": 134
                });
            }
            about
        };
        let about = json!({ "id": name, "sha": COMMIT, "siblings": files.iter().map(about).collect::<Vec<_>>() });
        FakeHub { name: name.to_owned(), files, about }
    }

    /// The hub's answer to a request for this path.
    pub fn answer(&self, path: &str) -> Answer {
        if path == format!("/api/models/{}/revision/main?blobs=true", self.name) {
            return Answer::file(self.about.to_string().as_bytes());
        }
        let file = path.strip_prefix(&format!("/{}/resolve/{COMMIT}/", self.name));
        file.and_then(|file| self.files.get(file)).map_or(Answer::status(404), |content| Answer::file(content))
    }

    /// Changes what the hub says of its files.
    pub fn edit(&mut self, change: impl FnOnce(&mut Value)) {
        change(&mut self.about);
    }
}
