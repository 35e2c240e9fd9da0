//! Rules about a file's name and size.

use super::Violation;

/// Larger files do not belong in git: models and data are fetched or generated. 1 MiB.
const NUM_BYTES_MAX: usize = 1 << 20;
/// Names that say nothing about what is inside, for files, folders and modules.
const BANNED_NAMES: [&str; 8] = ["util", "utils", "common", "commons", "helper", "helpers", "manager", "managers"];

/// Checks the name of a file and its size.
pub(super) fn check(path: &str, num_bytes: usize) -> Vec<Violation> {
    let mut violations = Vec::new();
    if num_bytes > NUM_BYTES_MAX {
        violations.push(Violation::new(path, 1, format!("has {num_bytes} bytes, limit {NUM_BYTES_MAX}")));
    }
    for name in path.split('/').map(|part| part.split_once('.').map_or(part, |(stem, _)| stem)) {
        if is_banned(name) {
            violations.push(Violation::new(path, 1, format!("the name `{name}` says nothing: name the noun inside")));
        }
    }
    violations
}

/// Whether `name` is a banned file, folder or module name.
pub(super) fn is_banned(name: &str) -> bool {
    BANNED_NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_limit() {
        assert!(check("fixtures/model.safetensors", NUM_BYTES_MAX).is_empty());
        assert_eq!(check("fixtures/model.safetensors", NUM_BYTES_MAX + 1).len(), 1);
    }

    #[test]
    fn banned_names_of_files_and_folders() {
        assert_eq!(check("engine/src/utils.rs", 0).len(), 1);
        assert_eq!(check("engine/tests/common/mod.rs", 0).len(), 1);
        assert_eq!(check("clients/python/src/helpers.py", 0).len(), 1);
        assert!(check("engine/src/scheduler.rs", 0).is_empty());
        assert!(check("engine/src/helpers_of_state.rs", 0).is_empty());
    }
}
