//! Rules about the text of any file: markers of unfinished work, paths of one machine, hosts of package registries.

use super::Violation;

/// Split in two so that this file does not break its own rule.
const MARKERS: [&str; 4] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("HA", "CK")];
/// The one marker that may stand with the number of an issue: `(#12)`.
const WITH_ISSUE: &str = MARKERS[0];
const MACHINE_DIRS: [&str; 4] =
    [concat!("/tm", "p/"), concat!("/roo", "t/"), concat!("/hom", "e/"), concat!("/wor", "k/")];
const REGISTRY_HOSTS: [&str; 11] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("python", "hosted.org"),
    concat!("npm", "js.org"),
    concat!("npm", "js.com"),
    concat!("deb.", "debian.org"),
    concat!("proxy.", "golang.org"),
    concat!("ruby", "gems.org"),
    concat!("repo.", "maven.apache.org"),
    concat!("repo1.", "maven.org"),
    concat!("yarn", "pkg.com"),
];

/// Checks every line of a file, but not of lock files: cargo writes those.
pub(super) fn check(path: &str, text: &str) -> Vec<Violation> {
    if path.ends_with(".lock") {
        return Vec::new();
    }
    let mut violations = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        // Prose may speak of a marker; code may not carry one.
        if !path.ends_with(".md") {
            violations.extend(marker(line).map(|message| Violation::new(path, number, message)));
        }
        violations.extend(machine_dir(line).map(|message| Violation::new(path, number, message)));
        violations.extend(registry_host(line).map(|message| Violation::new(path, number, message)));
    }
    violations
}

fn marker(line: &str) -> Option<String> {
    for marker in MARKERS {
        for (start, _) in line.match_indices(marker) {
            let (before, after) = (&line[..start], &line[start + marker.len()..]);
            let is_word = !before.ends_with(is_word_char) && !after.starts_with(is_word_char);
            if is_word && !(marker == WITH_ISSUE && names_issue(after)) {
                return Some(format!("`{marker}`: finish it, or file an issue and write `{WITH_ISSUE}(#n)`"));
            }
        }
    }
    None
}

/// Whether `after`, the text behind a marker, starts with the number of an issue: `(#12)`.
fn names_issue(after: &str) -> bool {
    let number = after.strip_prefix("(#").and_then(|rest| rest.split_once(')')).map(|(number, _)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn machine_dir(line: &str) -> Option<String> {
    for dir in MACHINE_DIRS {
        for (start, _) in line.match_indices(dir) {
            // `target/tmp/` and `$HOME/work/` go on from somewhere; only the start of a path names this machine.
            let continues = line[..start].ends_with(|c: char| is_word_char(c) || ".-~*}>)".contains(c));
            if !continues {
                return Some(format!("`{dir}` is a path of one machine: take it from the environment or an argument"));
            }
        }
    }
    None
}

fn registry_host(line: &str) -> Option<String> {
    let lower = line.to_ascii_lowercase();
    let host = REGISTRY_HOSTS.into_iter().find(|host| lower.contains(host))?;
    Some(format!("`{host}` is the host of a package registry: its client knows it, we name packages only"))
}

fn is_word_char(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn num_violations(path: &str, text: &str) -> usize {
        check(path, text).len()
    }

    #[test]
    fn markers_need_an_issue() {
        for marker in MARKERS {
            assert_eq!(num_violations("a.rs", &format!("// {marker}: later\n")), 1, "{marker}");
            assert_eq!(num_violations("a.md", &format!("no bare {marker}\n")), 0, "{marker}");
        }
        assert_eq!(num_violations("a.rs", &format!("// {WITH_ISSUE}(#12): later\n")), 0);
        assert_eq!(num_violations("a.rs", &format!("// {WITH_ISSUE}(#): later\n")), 1);
        assert_eq!(num_violations("a.rs", &format!("// {WITH_ISSUE}(#12): a, {WITH_ISSUE} b\n")), 1);
        assert_eq!(num_violations("a.rs", "const TODOS: u8 = 1; // todo in small letters is a word\n"), 0);
    }

    #[test]
    fn paths_of_one_machine() {
        for dir in MACHINE_DIRS {
            let found = check("a.sh", &format!("ok\ncat {dir}x\n"));
            assert_eq!(found.len(), 1, "{dir}");
            assert_eq!(found[0].line, 2);
            assert_eq!(num_violations("a.md", &format!("see file://{dir}x\n")), 1, "{dir}");
            assert_eq!(num_violations("a.sh", &format!("cat target{dir}x ${{HOME}}{dir}x\n")), 0, "{dir}");
        }
    }

    #[test]
    fn hosts_of_registries() {
        for host in REGISTRY_HOSTS {
            assert_eq!(num_violations("a.md", &format!("https://static.{host}/x\n")), 1, "{host}");
            assert_eq!(num_violations("Cargo.lock", &format!("source = \"{host}\"\n")), 0, "{host}");
        }
        assert_eq!(num_violations("a.md", "on PyPI as a package, or from the hub\n"), 0);
    }
}
