//! Encoders from Hugging Face's hub, put into the hub's own cache, where transformers and others find them, too.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bam_cluster::encoder::{Encoder, EncoderError, Vocabulary};
use bam_cluster::files;
use bam_cluster::hub_cache::{self, HubCache, REVISION, is_model_name};
use serde::Deserialize;

use super::download::{Downloads, Remedies, Sum, Wanted};
use super::{FetchError, io_error, this_host};
use crate::shell::quoted;

const HUB_URL: &str = "https://huggingface.co";
const CONFIG: &str = "config.json";
/// Of these one says how text becomes tokens; without either there is no use for a model.
const VOCABULARY: [&str; 2] = ["vocab.txt", "tokenizer.json"];
/// What is taken along where it is there.
const WELCOME: [&str; 2] = ["tokenizer_config.json", "special_tokens_map.json"];
const WEIGHTS: &str = "model.safetensors";
const SHARDS: &str = "model.safetensors.index.json";
const PICKLE: &str = "pytorch_model.bin";

/// The hub, and this user's cache of it.
#[derive(Debug)]
pub struct Hub {
    downloads: Downloads,
    url: String,
    cache: HubCache,
    is_offline: bool,
}

/// What the hub says of a model.
#[derive(Debug, Deserialize)]
struct Model {
    /// The commit that the branch is at.
    sha: String,
    #[serde(rename = "siblings")]
    files: Vec<ModelFile>,
}

#[derive(Debug, Clone, Deserialize)]
struct ModelFile {
    #[serde(rename = "rfilename")]
    name: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    git_sum: Option<String>,
    lfs: Option<LargeFile>,
}

/// Of a file that is too large for git.
#[derive(Debug, Clone, Deserialize)]
struct LargeFile {
    sha256: String,
    size: u64,
}

impl ModelFile {
    /// Its size and sum, if the hub says them and they are what they look like.
    fn known(&self) -> Option<(u64, Sum)> {
        let (size, sum, digits) = match &self.lfs {
            Some(LargeFile { sha256, size }) => (*size, Sum::Sha256(sha256.clone()), 64),
            None => (self.size?, Sum::Git(self.git_sum.clone()?), 40),
        };
        let text = sum.text();
        (text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit())).then_some((size, sum))
    }
}

impl Hub {
    /// The hub, as the usual variables describe it: `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// There is no place for a cache.
    pub fn of_environment(name: &str) -> Result<Hub, FetchError> {
        let said = |variable: &str| env::var(variable).ok().filter(|value| !value.is_empty());
        let no_place = || FetchError::Usage("HOME is not set; set HF_HOME to where models are to be kept".to_owned());
        let cache = HubCache::of_this_user().ok_or_else(no_place)?;
        let is_offline =
            said("HF_HUB_OFFLINE").is_some_and(|v| ["1", "on", "yes", "true"].contains(&&*v.to_lowercase()));
        let url = said("HF_ENDPOINT").unwrap_or_else(|| HUB_URL.to_owned()).trim_end_matches('/').to_owned();
        let downloads = Downloads::new(said("HF_TOKEN").or_else(logged_in), remedies(name));
        Ok(Hub { downloads, url, cache, is_offline })
    }

    /// Brings a model into the cache and returns the directory with its files.
    ///
    /// # Errors
    /// It does not come, or is no encoder that bam can train.
    pub fn fetch(&self, name: &str) -> Result<PathBuf, FetchError> {
        if !is_model_name(name) {
            let problem = "is no name of a model; write bert-base-uncased, or ORGANISATION/NAME";
            return Err(FetchError::Usage(format!("{name}: {problem}")));
        }
        if self.is_offline {
            let why = "HF_HUB_OFFLINE is set, and it is not in the cache".to_owned();
            let remedy = remedies(name).unreachable;
            return self.cache.find(name).ok_or(FetchError::Unreachable { url: self.url.clone(), why, remedy });
        }
        let model = self.ask(name)?;
        let snapshot = self.cache.snapshot(name, &model.sha);
        for file in model.small_files()? {
            self.bring(name, &model.sha, file)?;
        }
        // A vocabulary of another kind of model is known before its weights come.
        Vocabulary::read(&snapshot).and_then(|vocabulary| vocabulary.special_ids()).map_err(content)?;
        for file in model.weights(&snapshot)? {
            self.bring(name, &model.sha, file)?;
        }
        inspect(&snapshot)?;
        let reference = self.cache.reference(name);
        files::write_atomically(&reference, model.sha.as_bytes()).map_err(io_error(&reference))?;
        Ok(snapshot)
    }

    fn ask(&self, name: &str) -> Result<Model, FetchError> {
        let url = format!("{}/api/models/{name}/revision/{REVISION}?blobs=true", self.url);
        let answer = self.downloads.read(&url)?;
        let garbled = |problem: String| FetchError::Content { path: url.clone().into(), problem };
        let model: Model = serde_json::from_slice(&answer)
            .map_err(|e| garbled(format!("is not what the hub says of a model: {e}\n  look at HF_ENDPOINT")))?;
        let is_commit = !model.sha.is_empty() && model.sha.bytes().all(|b| b.is_ascii_alphanumeric());
        if is_commit { Ok(model) } else { Err(garbled("names no commit".to_owned())) }
    }

    /// Brings one file, and links it into the snapshot.
    fn bring(&self, name: &str, commit: &str, file: &ModelFile) -> Result<(), FetchError> {
        let url = format!("{}/{name}/resolve/{commit}/{}", self.url, file.name);
        let Some((size, sum)) = file.known() else {
            let problem =
                "the hub says no size or sum of it, so that it cannot be checked\n  look at HF_ENDPOINT".to_owned();
            return Err(FetchError::Content { path: url.into(), problem });
        };
        let blob = self.cache.model(name).join("blobs").join(sum.text());
        self.downloads.fetch(&Wanted { url, name: file.name.clone(), size, sum }, &blob)?;
        let link = self.cache.snapshot(name, commit).join(&file.name);
        if link.exists() {
            return Ok(());
        }
        let directory = self.cache.snapshot(name, commit);
        fs::create_dir_all(&directory).map_err(io_error(&directory))?;
        // One whose blob was removed.
        let _ = fs::remove_file(&link);
        symlink(Path::new("../../blobs").join(blob.file_name().unwrap_or_default()), &link).map_err(io_error(&link))
    }
}

impl Model {
    fn file(&self, name: &str) -> Option<&ModelFile> {
        self.files.iter().find(|file| file.name == name)
    }

    fn needed(&self, name: &str) -> Result<&ModelFile, FetchError> {
        self.file(name).ok_or_else(|| {
            let has: Vec<&str> = self.files.iter().map(|f| f.name.as_str()).take(20).collect();
            let problem = format!("the model has no such file: bam trains BERT encoders (it has {})", has.join(", "));
            FetchError::Content { path: name.into(), problem }
        })
    }

    /// All but the weights.
    fn small_files(&self) -> Result<Vec<&ModelFile>, FetchError> {
        let config = self.needed(CONFIG)?;
        let mut vocabulary: Vec<&ModelFile> = VOCABULARY.iter().filter_map(|name| self.file(name)).collect();
        if vocabulary.is_empty() {
            vocabulary.push(self.needed(VOCABULARY[0])?);
        }
        let index = self.file(SHARDS).filter(|_| self.file(WEIGHTS).is_none());
        let welcome = WELCOME.iter().filter_map(|name| self.file(name));
        Ok([config].into_iter().chain(vocabulary).chain(welcome).chain(index).collect())
    }

    /// The weights, in the format that bam looks for first; of shards, those that the index in `snapshot` names.
    fn weights(&self, snapshot: &Path) -> Result<Vec<&ModelFile>, FetchError> {
        if self.file(WEIGHTS).is_none() && self.file(SHARDS).is_some() {
            let path = snapshot.join(SHARDS);
            let index: serde_json::Value =
                fs::read(&path).and_then(|text| Ok(serde_json::from_slice(&text)?)).map_err(io_error(&path))?;
            let names = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
            let names: BTreeSet<&str> = names.filter_map(|name| name.as_str()).collect();
            // A name with a folder in it is among the model's files, and yet not what bam reads.
            return names.into_iter().filter(|name| !name.contains('/')).map(|name| self.needed(name)).collect();
        }
        let whole = self.file(WEIGHTS).or_else(|| self.file(PICKLE));
        whole.map_or_else(|| self.needed(WEIGHTS), Ok).map(|file| vec![file])
    }
}

/// Copies a model to a directory of its own, which is not there yet, so that it can be taken elsewhere.
///
/// # Errors
/// Something is there already, or cannot be written.
pub fn copy_to(snapshot: &Path, directory: &Path) -> Result<(), FetchError> {
    if directory.exists() {
        return Err(FetchError::Usage(format!(
            "--to {}: is there already; name another directory",
            directory.display()
        )));
    }
    let mut name = std::ffi::OsString::from(".");
    name.push(directory.file_name().unwrap_or_default());
    name.push(".incomplete");
    let aside = directory.with_file_name(name);
    fs::create_dir_all(&aside).map_err(io_error(&aside))?;
    for entry in fs::read_dir(snapshot).map_err(io_error(snapshot))? {
        let entry = entry.map_err(io_error(snapshot))?;
        let to = aside.join(entry.file_name());
        fs::copy(entry.path(), &to).map_err(io_error(&to))?;
    }
    inspect(&aside)?;
    fs::rename(&aside, directory).map_err(io_error(directory))
}

/// Has a model looked at as a run would.
fn inspect(directory: &Path) -> Result<(), FetchError> {
    Ok(Encoder::inspect(directory, None, 8).map_err(content)?.check_weights()?)
}

fn content(EncoderError { path, problem }: EncoderError) -> FetchError {
    FetchError::Content { path, problem }
}

/// The token that `hf auth login` has left.
fn logged_in() -> Option<String> {
    let path = env::var_os("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(hub_cache::home()?.join("token")))?;
    Some(fs::read_to_string(path).ok()?.trim().to_owned()).filter(|token| !token.is_empty())
}

fn remedies(name: &str) -> Remedies {
    let folder = quoted(name.rsplit('/').next().unwrap_or(name));
    let name = quoted(name);
    let whole = std::path::absolute(&folder).unwrap_or_else(|_| PathBuf::from(&folder));
    let here = quoted(&format!("{}:{}/", this_host(), whole.display()));
    Remedies {
        unreachable: format!(
            "  if this machine has no internet: run 'bam fetch model {name} --to {folder}' on one that has,\n  copy \
             what it brings: rsync -a {folder}/ {here}\n  and name the directory in the recipe: model: {{ path: {folder} }}\n  \
             HTTPS_PROXY names a proxy, HF_ENDPOINT a mirror of the hub"
        ),
        denied: format!(
            "  the model may be private, gated or misspelt: look at https://huggingface.co/{name}, and give HF_TOKEN a token \
             (https://huggingface.co/settings/tokens) of somebody who may read it"
        ),
        missing: format!("  is it '{name}'? look at https://huggingface.co/models, and at HF_ENDPOINT if it is set"),
    }
}
