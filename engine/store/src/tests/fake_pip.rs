//! A shell script that takes the arguments of `pip download` and copies wheels that the test has built.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

pub(super) struct FakePip {
    folder: tempfile::TempDir,
}

impl FakePip {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let script = r#"
here=$(dirname "$0")
while [ $# -gt 1 ]; do
    if [ "$1" = --dest ]; then dest=$2; fi
    shift
done
echo "$1" >> "$here/log"
sleep "$(cat "$here/delay")"
cp "$here/$1.whl" "$dest/" 2>/dev/null || { echo "ERROR: No matching distribution found for $1" >&2; exit 1; }
"#;
        fs::write(folder.path().join("pip.sh"), script).unwrap();
        fs::write(folder.path().join("delay"), "0").unwrap();
        Self { folder }
    }

    pub(super) fn command(&self) -> Vec<OsString> {
        vec!["sh".into(), self.path("pip.sh").into()]
    }

    pub(super) fn delay(&self, seconds: &str) {
        fs::write(self.path("delay"), seconds).unwrap();
    }

    /// Puts a wheel with the given entries on the shelf.
    pub(super) fn add_wheel(&self, package: &str, entries: &[(&str, &[u8])]) {
        write_wheel(&self.path(&format!("{package}==1.0.whl")), entries);
    }

    pub(super) fn remove_wheel(&self, package: &str) {
        fs::remove_file(self.path(&format!("{package}==1.0.whl"))).unwrap();
    }

    /// Gives what was asked for, in order.
    pub(super) fn log(&self) -> Vec<String> {
        fs::read_to_string(self.path("log")).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn write_wheel(path: &Path, entries: &[(&str, &[u8])]) {
    let mut wheel = ZipWriter::new(File::create(path).unwrap());
    for (name, bytes) in entries {
        wheel.start_file(*name, SimpleFileOptions::default()).unwrap();
        wheel.write_all(bytes).unwrap();
    }
    wheel.finish().unwrap();
}
