//! The cache of Hugging Face's hub on this machine, which bam shares with all other tools that use it: where it is, and where in
//! it a model's files are.
//!
//! `models--ORG--NAME/` has `refs/main`, which holds a commit, `snapshots/COMMIT/`, whose files are links into `blobs/`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// The organisation that has held BERT's own models, once known by their plain names, since 2024.
const OLD_NAMES: &str = "google-bert/";
/// The branch that is fetched and looked for.
pub const REVISION: &str = "main";

/// The cache, which need not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubCache(PathBuf);

impl HubCache {
    /// The cache in this directory.
    pub fn new(directory: impl Into<PathBuf>) -> HubCache {
        HubCache(directory.into())
    }

    /// The one that all tools use: `HF_HUB_CACHE`, or `hub` in `HF_HOME`, which is `~/.cache/huggingface` unless said
    /// otherwise. None without a home.
    pub fn of_this_user() -> Option<HubCache> {
        HubCache::by(|name| env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn by(variable: impl Fn(&str) -> Option<OsString>) -> Option<HubCache> {
        variable("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home_by(&variable)?.join("hub"))).map(HubCache)
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Where everything of one model is.
    pub fn model(&self, name: &str) -> PathBuf {
        self.0.join(format!("models--{}", name.replace('/', "--")))
    }

    /// The file that names the commit of a model that was fetched last.
    pub fn reference(&self, name: &str) -> PathBuf {
        self.model(name).join("refs").join(REVISION)
    }

    /// The files of one commit of a model.
    pub fn snapshot(&self, name: &str, commit: &str) -> PathBuf {
        self.model(name).join("snapshots").join(commit)
    }

    /// The directory with a model's files, if it is here, under this name or, for BERT's own models, under their old one.
    pub fn find(&self, name: &str) -> Option<PathBuf> {
        let other = match name.strip_prefix(OLD_NAMES) {
            Some(old) => old.to_owned(),
            None if !name.contains('/') => format!("{OLD_NAMES}{name}"),
            None => String::new(),
        };
        [name, &other].into_iter().filter(|name| is_model_name(name)).find_map(|name| {
            let commit = fs::read_to_string(self.reference(name)).ok()?;
            let commit = commit.trim();
            let is_commit = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_alphanumeric());
            let directory = self.snapshot(name, commit);
            (is_commit && directory.join("config.json").exists()).then_some(directory)
        })
    }
}

/// Where Hugging Face's tools keep what is this user's: the cache, the token.
pub fn home() -> Option<PathBuf> {
    home_by(&|name: &str| env::var_os(name).filter(|value| !value.is_empty()))
}

fn home_by(variable: &impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let caches = || {
        let of_user = || Some(PathBuf::from(variable("HOME")?).join(".cache"));
        variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(of_user)
    };
    variable("HF_HOME").map(PathBuf::from).or_else(|| Some(caches()?.join("huggingface")))
}

/// Whether the hub could have a model of this name: `NAME` or `ORGANISATION/NAME`.
pub fn is_model_name(text: &str) -> bool {
    let is_part = |part: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        part.bytes().all(allowed) && part.starts_with(|c: char| c.is_ascii_alphanumeric()) && !part.contains("--")
    };
    let mut parts = text.split('/');
    parts.clone().count() <= 2 && text.len() <= 96 && parts.all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_usual_variables_say() {
        let cache = |set: &[(&str, &str)]| {
            let find = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
            HubCache::by(find).map(|cache| cache.path().display().to_string())
        };
        let all = [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/d")];
        let expected = ["/a", "/b/hub", "/c/huggingface/hub", "/d/.cache/huggingface/hub"];
        for (i, expected) in expected.iter().enumerate() {
            assert_eq!(cache(&all[i..]).as_deref(), Some(*expected));
        }
        assert_eq!(cache(&[]), None);
    }

    #[test]
    fn names_of_models_are_told_from_paths() {
        for name in ["bert-base-uncased", "google/bert_uncased_L-2_H-128_A-2", "encoder", "a/b.c"] {
            assert!(is_model_name(name), "{name}");
        }
        for path in ["", ".", "..", "./a", "../a", "/a", "a/b/c", "a//b", "a/", "~/a", "a b", "a--b", "-a"] {
            assert!(!is_model_name(path), "{path}");
        }
    }

    #[test]
    fn a_model_is_found_under_its_name_and_its_old_one() {
        let place = tempfile::tempdir().unwrap();
        let cache = HubCache::new(place.path());
        let add = |name: &str, commit: &str| {
            let snapshot = cache.snapshot(name, "0a1b");
            fs::create_dir_all(&snapshot).unwrap();
            fs::write(snapshot.join("config.json"), "{}").unwrap();
            fs::create_dir_all(cache.reference(name).parent().unwrap()).unwrap();
            fs::write(cache.reference(name), commit).unwrap();
            snapshot
        };
        assert_eq!(cache.find("bert-base-uncased"), None);
        let new = add("google-bert/bert-base-uncased", "0a1b\n");
        assert_eq!(cache.find("google-bert/bert-base-uncased"), Some(new.clone()));
        assert_eq!(cache.find("bert-base-uncased"), Some(new));
        let old = add("bert-base-cased", "0a1b");
        assert_eq!(cache.find("google-bert/bert-base-cased"), Some(old));
        for (name, commit) in [("a/outside", "../../x"), ("a/nowhere", "ffff"), ("a/empty", "")] {
            add(name, commit);
            assert_eq!(cache.find(name), None, "{name}");
        }
        assert_eq!(cache.find("../x"), None);
    }
}
