//! What the user typed, read as exactly one of catalogue name, path and hub id.

use std::path::PathBuf;

use crate::{CatalogueEntry, StoreError, catalogue};

/// States which model a reference means.
#[derive(Debug)]
pub(crate) enum Reference {
    /// A model of the catalogue.
    Catalogue(&'static CatalogueEntry),
    /// A file or folder of this machine.
    Path(PathBuf),
    /// A repository of the hub, or one file of it.
    Hub(HubReference),
}

/// Names a repository of the hub, a revision and perhaps one file: `org/name[@revision][:file]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubReference {
    pub(crate) repo: String,
    pub(crate) revision: String,
    pub(crate) file: Option<String>,
}

impl Reference {
    /// Reads a reference. A catalogue name wins over a path of the same name, and an existing path over a hub id.
    pub(crate) fn parse(reference: &str) -> Result<Self, StoreError> {
        if let Some(entry) = catalogue().iter().find(|entry| entry.name == reference) {
            return Ok(Self::Catalogue(entry));
        }
        let path = PathBuf::from(reference);
        let looks_like_path = reference.starts_with(['.', '/', '~']) || path.is_absolute();
        if looks_like_path || (!reference.is_empty() && path.exists()) {
            return Ok(Self::Path(path));
        }
        if !reference.contains('/') {
            let names: Vec<_> = catalogue().iter().map(|entry| entry.name).collect();
            let reason =
                format!("not a hub id `org/name`, not a path, and the catalogue has only {}", names.join(", "));
            return Err(invalid(reference, reason));
        }
        HubReference::parse(reference).map(Self::Hub)
    }
}

impl HubReference {
    /// Reads `org/name[@revision][:file]`.
    fn parse(reference: &str) -> Result<Self, StoreError> {
        let (rest, file) = match reference.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (reference, None),
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let num_parts = repo.split('/').count();
        if num_parts != 2 || !is_clean_path(repo) {
            return Err(invalid(reference, "not a file here, and no hub id `org/name[@revision][:file]`".to_owned()));
        }
        for part in std::iter::once(revision).chain(file) {
            if !is_clean_path(part) {
                return Err(invalid(reference, format!("`{part}` has characters that no name here has")));
            }
        }
        Ok(Self { repo: repo.to_owned(), revision: revision.to_owned(), file: file.map(str::to_owned) })
    }

    /// Gives the name of the model in the cache: one folder name, different for each reference.
    pub(crate) fn cache_name(&self) -> String {
        let mut name = self.repo.clone();
        if self.revision != "main" {
            name = format!("{name}@{}", self.revision);
        }
        if let Some(file) = &self.file {
            name = format!("{name}--{file}");
        }
        name.replace('/', "--")
    }
}

/// Tells whether text is a relative path of plain names: safe as a folder below ours and as a part of a URL.
pub(crate) fn is_clean_path(text: &str) -> bool {
    let is_plain = |name: &str| {
        !name.is_empty()
            && !name.chars().all(|c| c == '.')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '='))
    };
    text.split('/').all(is_plain)
}

fn invalid(reference: &str, reason: String) -> StoreError {
    StoreError::ReferenceInvalid { reference: reference.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(reference: &str) -> HubReference {
        match Reference::parse(reference).unwrap() {
            Reference::Hub(hub) => hub,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reads_each_form() {
        assert!(matches!(Reference::parse("smollm2-135m-instruct"), Ok(Reference::Catalogue(_))));
        assert!(matches!(Reference::parse("./smollm2-135m-instruct"), Ok(Reference::Path(_))));
        assert!(matches!(Reference::parse("/absent/x.gguf"), Ok(Reference::Path(_))));
        assert!(matches!(Reference::parse("src/lib.rs"), Ok(Reference::Path(_))));
        let plain = hub("org/name");
        assert_eq!((plain.revision.as_str(), plain.file.as_deref()), ("main", None));
        let full = hub("org/name@refs/pr/1:sub/x.gguf");
        assert_eq!((full.revision.as_str(), full.file.as_deref()), ("refs/pr/1", Some("sub/x.gguf")));
        assert_eq!(full.cache_name(), "org--name@refs--pr--1--sub--x.gguf");
        assert_eq!(hub("org/name:x.gguf").cache_name(), "org--name--x.gguf");
    }

    #[test]
    fn refuses_what_could_leave_the_cache() {
        for bad in
            ["", "nope", "a/b/c", "a/..", "a/b:../x", "a/b:/etc/x", "a/b@", "a/b:", "a/b c", "a/b:x\\y", "a/b%2f"]
        {
            let error = Reference::parse(bad).unwrap_err();
            assert!(matches!(error, StoreError::ReferenceInvalid { .. }), "{bad}: {error}");
        }
        let error = Reference::parse("smollm").unwrap_err().to_string();
        assert!(error.contains("smollm2-135m-instruct"), "{error}");
    }
}
